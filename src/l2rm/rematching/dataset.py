"""Rematching beyond the batch: sparse partial optimal transport of a data set's captions onto its images.

The problem, for candidate cells `E` (a caption i, an image j, a cost `C_ij`), captions of weight `a_i`, images of
capacity `b_j`, a `mass` and `reg > 0`:

    min  sum_E C_ij P_ij + reg * sum (P log P - P)   over P >= 0, zero outside E
    each caption moves at most a_i, each image takes at most b_j, and `mass` moves in all.

Both inequalities are equalities with a slack: `a_i - sum_j P_ij` stays with a dummy image that takes `sum a - mass`,
`b_j - sum_i P_ij` comes from a dummy caption that has `sum b - mass`. Slack cells cost nothing and count in the
entropy, as in `l2rm.rematching.transport`: on a complete graph with weights 1/n and capacities 1/m this is the same
problem, and gives the same plan.

The solver is in `l2rm.rematching.sparse`: time and memory go with the number of cells, not with captions × images.

Brauer et al., "A Sinkhorn–Newton method for entropic optimal transport", 2017; partial transport by dummy points:
Chapel et al., "Partial optimal transport with applications on positive-unlabeled learning", 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from l2rm.errors import InputError
from l2rm.rematching.sparse import Solver

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FILLINGS = 50  # rounds in which capacity is filled up, before an exact maximum flow is asked for


@dataclass(frozen=True, kw_only=True, eq=False)
class SparsePlan:
    """What `sparse_transport` found. Cells are ordered by caption, and as they were given within one.

    Attributes:
        captions: `(cells,)`; the caption of each candidate cell.
        images: `(cells,)`; its image.
        cell_mass: `(cells,)` float64; how much goes from the caption to the image.
        weights: `(n,)`; what each caption can move at most.
        capacities: `(m,)`; what each image can take at most.
        marginal_error: L1 distance of all caption and image sums, dummies included, from what they should be, as a
            share of the captions' whole weight.
        iterations: how many iterations were made, all stages of `reg` together.
        converged: whether `marginal_error` came down to the tolerance.
        cost: what all that is moved costs.
    """

    captions: NDArray[np.int32]
    images: NDArray[np.int32]
    cell_mass: Floats
    weights: Floats
    capacities: Floats
    marginal_error: float
    iterations: int
    converged: bool
    cost: float

    @property
    def mass(self) -> float:
        """How much is moved in all."""
        return float(self.cell_mass.sum())

    @cached_property
    def row_mass(self) -> Floats:
        """`(n,)`; how much each caption moves, at most its weight."""
        return np.bincount(self.captions, self.cell_mass, minlength=len(self.weights)).astype(np.float64)

    @cached_property
    def column_mass(self) -> Floats:
        """`(m,)`; how much each image takes, at most its capacity (within the marginal error)."""
        return np.bincount(self.images, self.cell_mass, minlength=len(self.capacities)).astype(np.float64)

    @cached_property
    def partner(self) -> Integers:
        """`(n,)`; the image that takes most of each caption, the first candidate of equals; −1 for none."""
        partner = np.full(len(self.weights), -1)
        best = self._best_cell
        partner[self.captions[best]] = self.images[best]
        return partner

    @cached_property
    def confidence(self) -> Floats:
        """`(n,)` in [0, 1]; the share of each caption's weight that its partner takes, 0 for none.

        It is the product of how much of the caption is moved at all and how much of that goes to one image. Where `reg`
        is the temperature at which scores are odds, it reads as the probability that the partner is right.
        """
        confidence = np.zeros(len(self.weights))
        best = self._best_cell
        rows = self.captions[best]
        confidence[rows] = np.clip(self.cell_mass[best] / self.weights[rows], 0.0, 1.0)
        return confidence

    @cached_property
    def _best_cell(self) -> Integers:
        """The heaviest cell of each caption that moves anything."""
        order = np.lexsort((-self.cell_mass, self.captions))
        first = np.diff(self.captions[order], prepend=-1) > 0
        best: Integers = order[first]
        return best[self.cell_mass[best] > 0]


def sparse_transport(
    captions: NDArray[np.integer],
    images: NDArray[np.integer],
    cost: NDArray[np.floating],
    *,
    weights: NDArray[np.floating],
    capacities: NDArray[np.floating],
    mass: float,
    reg: float = 0.05,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> SparsePlan:
    """Moves `mass` from captions to candidate images at least cost, smoothed by entropy (see the module).

    Args:
        captions: `(cells,)`; which caption each candidate cell is about.
        images: `(cells,)`; which image. No cell stands twice; what may not be, such as the pair as given, is left out.
        cost: `(cells,)`; finite. Only differences count.
        weights: `(n,)`; at least 0, usually 1 each.
        capacities: `(m,)`; at least 0. Ones make it one-to-one.
        mass: how much to move in all, in the unit of the weights.
        reg: weight of the entropy, in the unit of the cost. The smaller, the sparser the plan.
        tolerance: the marginal error to reach, as a share of the captions' whole weight.
        max_iterations: when to give up. This raises nothing: `converged` says so and the plan is the last iterate.

    Raises:
        InputError: an argument is out of range, or the cells cannot carry `mass`.

    Example:
        >>> plan = sparse_transport(
        ...     np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0.1, 0.3, 0.2]),
        ...     weights=np.ones(2), capacities=np.ones(2), mass=2.0, reg=0.01)
        >>> plan.converged, plan.partner.tolist(), plan.confidence.round(3).tolist()
        (True, [1, 0], [1.0, 1.0])
    """
    weights, capacities = (np.asarray(given, dtype=np.float64) for given in (weights, capacities))
    captions, images = (np.asarray(given).astype(np.int32, copy=False) for given in (captions, images))
    cost = np.asarray(cost)
    _check(captions, images, cost, weights, capacities)
    _check_numbers(mass, reg, tolerance, max_iterations)
    if (np.diff(captions) < 0).any():
        order = np.argsort(captions, kind="stable")
        captions, images, cost = captions[order], images[order], cost[order]
    live = (weights[captions] > 0) & (capacities[images] > 0)
    rows, row_of = np.unique(captions[live], return_inverse=True)
    columns, column_of = np.unique(images[live], return_inverse=True)
    # Captions and images without a cell keep everything, which changes nothing for the others.
    a, b = weights[rows], capacities[columns]
    _check_feasible(row_of, column_of, a, b, mass)
    start = np.append(0, np.cumsum(np.bincount(row_of, minlength=len(rows))))
    indices, data = column_of.astype(np.int32), cost[live].astype(np.float64)
    del row_of, column_of
    cells = csr_array((data, indices, start.astype(np.int32)), shape=(len(rows), len(columns)))
    solver = Solver(cells, a, b, mass)
    iterations, error = solver.run(reg, tolerance, max_iterations)
    cell_mass = np.zeros(len(cost))
    cell_mass[live] = solver.plan()
    return SparsePlan(
        captions=captions,
        images=images,
        cell_mass=cell_mass,
        weights=weights,
        capacities=capacities,
        marginal_error=error,
        iterations=iterations,
        converged=error <= tolerance,
        cost=float(cost.astype(np.float64) @ cell_mass),
    )


def sure_mass(
    captions: NDArray[np.integer],
    images: NDArray[np.integer],
    *,
    weights: NDArray[np.floating],
    capacities: NDArray[np.floating],
    enough: float = math.inf,
) -> float:
    """A mass that the cells can carry, found by filling capacity up evenly; seldom much below the most they can.

    Args:
        captions, images, weights, capacities: as in `sparse_transport`.
        enough: stop when this much is carried.
    """
    weight, capacity = np.asarray(weights, dtype=np.float64), np.asarray(capacities, dtype=np.float64)
    left, free = weight.copy(), capacity.copy()
    carried = 0.0
    for _ in range(_FILLINGS):
        open_cell = (left[captions] > 1e-12 * weight[captions]) & (free[images] > 1e-12 * capacity[images])
        if not open_cell.any():
            break
        row, column = captions[open_cell], images[open_cell]
        by_row = left / np.bincount(row, minlength=len(left)).clip(1)
        by_column = free / np.bincount(column, minlength=len(free)).clip(1)
        flow = np.minimum(by_row[row], by_column[column])
        carried += float(flow.sum())
        left -= np.bincount(row, flow, minlength=len(left))
        free -= np.bincount(column, flow, minlength=len(free))
        if carried >= enough:
            break
    return carried


def _check(
    captions: NDArray[np.int32], images: NDArray[np.int32], cost: NDArray[np.floating], a: Floats, b: Floats
) -> None:
    if not captions.ndim == images.ndim == cost.ndim == 1 or not len(captions) == len(images) == len(cost):
        raise InputError(
            f"cells: captions {captions.shape}, images {images.shape}, cost {cost.shape}; give one of each a cell"
        )
    if not len(cost):
        raise InputError("cells: there are none; allow at least one")
    for name, place, size in (("caption", captions, a), ("image", images, b)):
        wrong = np.flatnonzero((place < 0) | (place >= len(size)))
        if len(wrong):
            raise InputError(f"cells: {name} {place[wrong[0]]} of cell {wrong[0]}, but there are {len(size)} {name}s")
    for what, values in (("weights", a), ("capacities", b)):
        wrong = np.flatnonzero(~((values >= 0) & (values < math.inf)))  # NaN fails both
        if values.ndim != 1 or len(wrong):
            told = f"shape {values.shape}" if values.ndim != 1 else f"{values[wrong[0]]} at {wrong[0]}"
            raise InputError(f"{what}: {told}; give one number, at least 0 and finite, each")
    if cost.dtype.kind != "f" or not np.isfinite(cost).all():
        bad = 0 if cost.dtype.kind != "f" else int(np.flatnonzero(~np.isfinite(cost))[0])
        raise InputError(
            f"cost: {cost.dtype} {cost[bad]} in cell {bad}; give finite floats, and leave cells out that may not be"
        )
    if len(np.unique(captions.astype(np.int64) * len(b) + images)) != len(cost):
        raise InputError("cells: a caption has an image twice; give each cell once")


def _check_numbers(mass: float, reg: float, tolerance: float, max_iterations: int) -> None:
    if not 0 < mass < math.inf:
        raise InputError(f"mass: {mass} is not positive and finite; give how much of the weight to move")
    if not 0 < reg < math.inf:
        raise InputError(f"reg: {reg} is not positive and finite; try 0.01 to 0.1")
    if not tolerance > 0:
        raise InputError(f"tolerance: {tolerance} is not positive; try 1e-6")
    if max_iterations < 1:
        raise InputError(f"max_iterations: {max_iterations} is less than 1; try 1000")


def _check_feasible(row: Integers, column: Integers, a: Floats, b: Floats, mass: float) -> None:
    """InputError if no plan on the cells carries `mass`."""
    if sure_mass(row, column, weights=a, capacities=b, enough=mass) >= mass:
        return
    most = _most_mass(row, column, a, b)
    if most < mass * (1 - 1e-9):
        raise InputError(
            f"mass: the cells carry at most {most:.6g} of the {mass:.6g} asked for; lower the mass, or give captions "
            "more candidates or images more capacity"
        )


def _most_mass(row: Integers, column: Integers, a: Floats, b: Floats) -> float:
    """The most that the cells can carry, as an integer maximum flow: exact for whole numbers, else rounded up a bit."""
    n, m = len(a), len(b)
    whole = bool((a % 1 == 0).all() and (b % 1 == 0).all())
    unit = 1.0 if whole else max(float(a.sum()), float(b.sum())) / 2**29
    left, free = (np.ceil(values / unit).astype(np.int32) for values in (a, b))
    source, sink = n + m, n + m + 1
    start = np.concatenate([np.full(n, source), row, n + np.arange(m)])
    end = np.concatenate([np.arange(n), n + column, np.full(m, sink)])
    capacity = np.concatenate([left, np.minimum(left[row], free[column]), free])
    cells = (start.astype(np.int32), end.astype(np.int32))  # scipy before 1.13 refuses wider ones
    graph = csr_array((capacity, cells), shape=(n + m + 2, n + m + 2))
    return float(maximum_flow(graph, source, sink).flow_value * unit)
