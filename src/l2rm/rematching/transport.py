"""Masked partial optimal transport with entropy: which captions should mismatched images be paired with?

The problem, for a cost `C (n, m)`, uniform weights `1/n` and `1/m`, a `mass` in (0, 1] and `reg > 0`: extend the plan
by one dummy row and one dummy column that take what is not transported,

    min <C, P> + reg * sum (P log P - P)  over extended plans (n+1, m+1) >= 0
    rows sum to 1/n, the dummy row to 1 - mass; columns sum to 1/m, the dummy column to 1 - mass;
    the corner and every forbidden cell are exactly zero; dummy cells cost a constant (which one changes nothing).

So exactly `mass` moves between real rows and columns. With `K = exp(-C / reg)` the plan is `u_i K_ij v_j`, the dummy
column `u_i s`, the dummy row `t v_j`, and the extended matrix need never be built:

    u_i (sum_j K_ij v_j + s) = 1/n,   v_j (sum_i K_ij u_i + t) = 1/m,   s sum u = 1 - mass,   t sum v = 1 - mass.

The solver keeps the logarithms of `u, v, s, t`. One iteration is a Newton step on the dual with `v` and `s` eliminated
(they are made exact after every step), damped so that the dual never gets worse; where Newton's matrix cannot be
factorised it is a plain alternation instead. `reg` is lowered in stages from a tenth of the costs' range, each stage
starting from the duals of the one before. A step factorises a matrix as large as the shorter side of the cost: right
for batches of up to a few thousand.

Benamou et al., "Iterative Bregman projections for regularized transportation problems", 2015; partial transport by
dummy points: Chapel et al., "Partial optimal transport with applications on positive-unlabeled learning", 2020; its use
for rematching: L2RM, CVPR 2024.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from l2rm.errors import InputError

_STAGE_FACTOR = 4.0  # reg falls by this from stage to stage
_STAGE_START = 0.1  # the first stage's reg is at most this share of the costs' range
_STAGE_TOLERANCE = 0.1  # marginal error that ends a stage, as a share of the smaller of mass and dummy mass
_STAGE_ITERATIONS = 100  # a stage that is not there by then is left as it is
_CHECK_EVERY = 3  # iterations between checks on an accelerator, because reading the error waits for it
_RIDGE = 1e-10  # relative; Newton's matrix is near singular where parts of a sparse plan hardly touch each other


@dataclass(frozen=True, kw_only=True, eq=False)
class TransportPlan:
    """What `partial_transport` found, on the device and in the dtype of the cost.

    Attributes:
        matrix: `(n, m)`; how much goes from row i to column j. Forbidden cells are exactly zero.
        marginal_error: L1 distance of all row and column sums, dummies included, from what they should be. It is that
            of the float64 plan; a float32 `matrix` is this plan, rounded.
        iterations: how many iterations were made, all stages of `reg` together.
        converged: whether `marginal_error` came down to the tolerance.
        cost: `<C, matrix>`; forbidden cells count nothing, whatever their cost.
    """

    matrix: Tensor
    marginal_error: float
    iterations: int
    converged: bool
    cost: float

    @property
    def mass(self) -> float:
        """How much is transported in all."""
        return float(self.matrix.sum(dtype=_wide(self.matrix)))

    @property
    def row_mass(self) -> Tensor:
        """`(n,)`; how much leaves each row, at most 1/n (within the marginal error)."""
        return self.matrix.sum(1)

    @property
    def column_mass(self) -> Tensor:
        """`(m,)`; how much reaches each column, at most 1/m (within the marginal error)."""
        return self.matrix.sum(0)


@torch.no_grad()
def partial_transport(
    cost: Tensor,
    *,
    mass: float = 0.1,
    reg: float = 0.07,
    forbidden: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 10_000,
) -> TransportPlan:
    """Transports `mass` from uniform rows to uniform columns at least cost, smoothed by entropy (see the module).

    Args:
        cost: `(n, m)`, floating point, finite wherever a cell is allowed. Only differences count: a constant added to
            all cells changes nothing in the plan.
        mass: share of the weight that is transported, in (0, 1]; 1 is ordinary entropic transport, without dummies.
        reg: weight of the entropy, in the unit of the cost. The smaller, the sparser the plan.
        forbidden: `(n, m)` boolean; these cells carry exactly nothing. A row or column may be forbidden altogether.
        tolerance: the marginal error to reach.
        max_iterations: when to give up. This raises nothing: `converged` says so and the plan is the last iterate.

    Returns:
        The plan. No gradient flows through it. It is computed in float64 (on the CPU where the device has no float64)
        and returned on the device and in the dtype of `cost`; half precisions come back as float32.

    Raises:
        InputError: an argument is out of range, or the allowed cells cannot carry `mass`.

    Example:
        >>> plan = partial_transport(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), mass=0.5, reg=0.05)
        >>> plan.converged, round(plan.mass, 4)
        (True, 0.5)
    """
    allowed = _checked(cost, mass, reg, forbidden, tolerance, max_iterations)
    given = cost.detach()
    home = torch.device("cpu") if given.device.type == "mps" else given.device  # MPS has no float64
    work = given.to(home, torch.float64)
    allowed = None if allowed is None else allowed.to(home)
    if allowed is not None:
        work = work.masked_fill(~allowed, math.inf)
        _check_feasible(allowed, mass)
    transposed = work.shape[0] > work.shape[1]  # Newton's matrix has the size of the rows
    solver = _Solver(work.T if transposed else work, mass)
    iterations, error = solver.run(reg, tolerance, max_iterations)
    plan = solver.plan.T if transposed else solver.plan
    total = torch.where(plan > 0, work * plan, 0.0).sum()
    dtype = torch.float64 if given.dtype == torch.float64 else torch.float32
    return TransportPlan(
        matrix=plan.to(dtype).to(given.device).contiguous(),
        marginal_error=error,
        iterations=iterations,
        converged=error <= tolerance,
        cost=float(total),
    )


class _Solver:
    """The iterate: `f, g, s, t` are the logarithms of `u, v, s, t`; `plan`, `row_dummy`, `rows` follow from them."""

    def __init__(self, cost: Tensor, mass: float) -> None:
        n, m = cost.shape
        lowest, highest = torch.aminmax(torch.where(cost.isfinite(), cost, cost[cost.isfinite()][0]))
        self.cost = cost - lowest
        self.closed = cost.isinf()
        self.range = float(highest - lowest)
        self.mass, self.dummy = mass, 1.0 - mass
        self.row, self.column = 1.0 / n, 1.0 / m
        self.log_dummy = math.log(self.dummy) if self.dummy > 0 else -math.inf
        self.f, self.g = cost.new_zeros(n), cost.new_zeros(m)
        self.s = self.t = cost.new_full((), 0.0 if self.dummy > 0 else -math.inf)

    def run(self, reg: float, tolerance: float, max_iterations: int) -> tuple[int, float]:
        """Iterates until the marginal error is at most `tolerance`; returns the iterations made and the error."""
        stages = [reg]
        while stages[-1] * _STAGE_FACTOR < self.range * _STAGE_START:
            stages.append(stages[-1] * _STAGE_FACTOR)
        every = 1 if self.cost.device.type == "cpu" else _CHECK_EVERY
        iterations, previous, error = 0, stages[-1], math.inf
        for stage in reversed(stages):
            last = stage == reg
            target = tolerance if last else _STAGE_TOLERANCE * min(0.1, self.mass, self.dummy or 1.0)
            limit = max_iterations if last else min(max_iterations - 1, iterations + _STAGE_ITERATIONS)
            if iterations >= limit:
                continue  # what is left of a small budget belongs to the last stage
            self._start_stage(stage, previous)
            previous = stage
            iterations += 1
            error = float(self._error())
            while error > target and iterations < limit:
                for _ in range(min(every, limit - iterations)):
                    self._step()
                    iterations += 1
                error = float(self._error())
        return iterations, error

    def _start_stage(self, reg: float, previous: float) -> None:
        self.log_kernel = -self.cost / reg
        ratio = previous / reg
        self.f, self.g, self.s, self.t = self.f * ratio, self.g * ratio, self.s * ratio, self.t * ratio
        self._alternate()

    def _alternate(self) -> None:
        """Makes the rows exact, then the columns: one sweep of Sinkhorn's alternation on the extended problem."""
        self.f, self.t = self._exact_rows()
        self._exact_columns()

    def _exact_rows(self) -> tuple[Tensor, Tensor]:
        sums = torch.logaddexp(torch.logsumexp(self.log_kernel + self.g, 1), self.s)
        return math.log(self.row) - sums, self.log_dummy - torch.logsumexp(self.g, 0)

    def _exact_columns(self) -> None:
        scaled = self.log_kernel + self.f[:, None]
        self.g = math.log(self.column) - torch.logaddexp(torch.logsumexp(scaled, 0), self.t)
        self.s = self.log_dummy - torch.logsumexp(self.f, 0)
        self.plan = torch.exp(scaled + self.g)
        self.row_dummy = torch.exp(self.f + self.s)
        self.rows = self.plan.sum(1) + self.row_dummy

    def _error(self) -> Tensor:
        column_dummy = torch.exp(self.g + self.t)
        return (
            (self.rows - self.row).abs().sum()
            + (self.plan.sum(0) + column_dummy - self.column).abs().sum()
            + (self.row_dummy.sum() - self.dummy).abs()
            + (column_dummy.sum() - self.dummy).abs()
        )

    def _step(self) -> None:
        """A damped Newton step in `f` (`t` is pinned: one dual is free), then exact columns.

        With exact columns the gradient is the rows' residual and the Hessian the Schur complement of the columns in
        [[diag(rows), P], [P', diag(columns)]]. Along the step a cell grows as exp(change), so the curvature grows at
        most as exp(largest change): a share log(1 + largest) / largest of the step cannot overshoot the minimum.
        """
        hessian = -(self.plan @ self.plan.T) / self.column
        if self.dummy > 0:
            hessian -= torch.outer(self.row_dummy, self.row_dummy / self.dummy)
        hessian.diagonal().add_(self.rows * (1 + _RIDGE))
        factor, info = torch.linalg.cholesky_ex(hessian)
        step = torch.cholesky_solve((self.row - self.rows)[:, None], factor)[:, 0]
        pulled = (self.plan.T @ step) / self.column  # what the columns take back
        change = (step[:, None] - pulled).masked_fill(self.closed, 0.0).amax().clamp_min(0.0)
        if self.dummy > 0:
            change = torch.maximum(change, (step - (self.row_dummy @ step) / self.dummy).amax())
            change = torch.maximum(change, -pulled.amin())
        share = torch.where(change > 1e-8, torch.log1p(change) / change, 1.0)
        sound = (info == 0) & step.isfinite().all() & share.isfinite()
        f, t = self._exact_rows()
        self.f = torch.where(sound, self.f + share * step, f)
        self.t = torch.where(sound, self.t, t)
        self._exact_columns()


def _checked(
    cost: Tensor, mass: float, reg: float, forbidden: Tensor | None, tolerance: float, max_iterations: int
) -> Tensor | None:
    """The allowed cells, None for all; InputError for any argument that is out of range."""
    if not isinstance(cost, Tensor) or cost.ndim != 2 or not cost.is_floating_point():
        raise InputError("cost: want a floating-point tensor (n, m)")
    if min(cost.shape) == 0:
        raise InputError(f"cost: it has shape {tuple(cost.shape)}; want at least one row and one column")
    if not 0 < mass <= 1:
        raise InputError(f"mass: {mass} is outside (0, 1]; give the share of the weight to transport")
    if not 0 < reg < math.inf:
        raise InputError(f"reg: {reg} is not positive and finite; try 0.01 to 0.1")
    if not tolerance > 0:
        raise InputError(f"tolerance: {tolerance} is not positive; try 1e-6")
    if max_iterations < 1:
        raise InputError(f"max_iterations: {max_iterations} is less than 1; try 10000")
    allowed = None
    finite = cost.isfinite()
    if forbidden is not None:
        if not isinstance(forbidden, Tensor) or forbidden.dtype != torch.bool or forbidden.shape != cost.shape:
            raise InputError(f"forbidden: want a boolean tensor of the cost's shape {tuple(cost.shape)}")
        allowed = ~forbidden.to(cost.device)
        finite = finite | ~allowed
    if not bool(finite.all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise InputError(
            f"cost: row {row}, column {column} is {float(cost[row, column])}; make it finite or forbid the cell"
        )
    return allowed


def _check_feasible(allowed: Tensor, mass: float) -> None:
    """InputError if no plan on the allowed cells carries `mass`."""
    n, m = allowed.shape
    open_cells = allowed.to(torch.float64)
    by_row = open_cells.sum(1, keepdim=True).clamp_min(1) * n
    by_column = open_cells.sum(0, keepdim=True).clamp_min(1) * m
    simple_flow = float((open_cells / torch.maximum(by_row, by_column)).sum())  # feasible, seldom maximal
    if simple_flow >= mass:
        return
    most = _maximum_mass(allowed.cpu().numpy())
    if most < mass * (1 - 1e-12):
        raise InputError(
            f"mass: the cells that are not forbidden carry at most {most:.6g} of the {mass:.6g} asked for; "
            "lower the mass or forbid fewer cells"
        )


def _maximum_mass(allowed: np.ndarray) -> float:
    """The most that rows of weight 1/n and columns of weight 1/m can exchange, exactly, as an integer maximum flow."""
    n, m = allowed.shape
    unit = math.gcd(n, m)
    rows, columns = np.nonzero(allowed)
    source, sink = n + m, n + m + 1
    start = np.concatenate([np.full(n, source), rows, n + np.arange(m)])
    end = np.concatenate([np.arange(n), n + columns, np.full(m, sink)])
    capacity = np.concatenate([np.full(n, m // unit), np.full(len(rows), min(n, m) // unit), np.full(m, n // unit)])
    cells = (start.astype(np.int32), end.astype(np.int32))  # scipy before 1.13 refuses wider ones
    graph = csr_array((capacity.astype(np.int32), cells), shape=(n + m + 2, n + m + 2))
    flow = int(maximum_flow(graph, source, sink).flow_value)
    return float(flow * unit / (n * m))


def _wide(matrix: Tensor) -> torch.dtype:
    return matrix.dtype if matrix.device.type == "mps" else torch.float64
