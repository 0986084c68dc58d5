"""The solver of `l2rm.rematching.dataset`: Newton by conjugate gradients on the dual, over the cells of a sparse graph.

With `K = exp(-C / reg)` on the cells, the plan is `u_i K_ij v_j`, what stays with a caption `u_i s`, and what an image
has left `t v_j`. One iteration makes `u` and `t` exact, so that no caption ever moves more than its weight, and takes a
damped Newton step in `g = log v` (`s` is pinned: one dual is free). Newton's matrix,

    diag(column sums) - P' diag(1/a) P - (the dummy caption's rank one),

is never formed: conjugate gradients ask for its products, two passes over the cells each, preconditioned by its
diagonal. Along a step a cell grows as exp(change), so the curvature grows at most as exp(largest change), and a share
log(1 + largest) / largest of the step cannot overshoot the minimum. `reg` is lowered in stages, each from the duals of
the one before; a stage begins with a few plain alternations.

Everything is float64: at reg 0.001 exponents are in the hundreds, of which float32 loses the fourth digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import logsumexp

Floats = NDArray[np.float64]

_STAGE_FACTOR = 4.0  # reg falls by this from stage to stage
_STAGE_START = 0.1  # the first stage's reg is at most this share of the costs' range
_STAGE_TOLERANCE = 1e-2  # marginal error that ends a stage
_STAGE_ITERATIONS = 50  # a stage that is not there by then is left as it is
_ALTERNATIONS = 5  # at the beginning of a stage; one costs two products
_PRODUCTS = 500  # of conjugate gradients in one Newton step, at most
_CHUNK = 2**20  # cells at a time, so that temporaries stay small


class Solver:
    """The iterate. `kernel` has rows of exp(g - C / reg), each divided by a number that `scale` makes up for.

    Args:
        cost: cells in rows of captions; no row and no column is empty. It is overwritten by nobody.
        weights, capacities: positive.
        mass: what moves in all; the cells can carry it.
    """

    def __init__(self, cost: csr_array, weights: Floats, capacities: Floats, mass: float) -> None:
        self.cost, self.weights, self.capacities = cost, weights, capacities
        self.lowest = float(cost.data.min())
        self.range = float(cost.data.max()) - self.lowest
        self.total = float(weights.sum())
        self.stays = _rest(self.total, mass)  # with captions
        self.free = _rest(float(capacities.sum()), mass)  # of the images' capacity
        self.g = np.zeros(cost.shape[1])
        self.s = 0.0 if self.stays > 0 else -math.inf
        self.kernel = csr_array((np.empty_like(cost.data), cost.indices, cost.indptr), shape=cost.shape)

    def run(self, reg: float, tolerance: float, max_iterations: int) -> tuple[int, float]:
        """Iterate until the marginal error is at most `tolerance`; returns the iterations made and the error."""
        stages = [reg]
        while stages[-1] * _STAGE_FACTOR < self.range * _STAGE_START:
            stages.append(stages[-1] * _STAGE_FACTOR)
        iterations, previous, error = 0, stages[-1], math.inf
        for stage in reversed(stages):
            last = stage == reg
            target = tolerance if last else _STAGE_TOLERANCE
            limit = max_iterations if last else min(max_iterations - 1, iterations + _STAGE_ITERATIONS)
            if iterations >= limit:
                continue  # what is left of a small budget belongs to the last stage
            self.reg = stage
            self.g, self.s = self.g * (previous / stage), self.s * (previous / stage)
            previous = stage
            self._exact_rows()
            iterations += 1
            error = self._error()
            begun = 0
            while error > target and iterations < limit:
                if begun < _ALTERNATIONS:
                    self._alternate()
                else:
                    self._newton(error)
                begun += 1
                iterations += 1
                error = self._error()
        return iterations, error

    def plan(self) -> Floats:
        """What each cell carries."""
        cells: Floats = self.kernel.data * np.repeat(self.scale, np.diff(self.kernel.indptr))
        return cells

    # ------------------------------------------------------------------------------------------------- iterations

    def _exact_rows(self) -> None:
        """Makes `u` and `t` exact for the present `g` and `s`."""
        n = len(self.weights)
        sums, stays = np.empty(n), np.empty(n)
        indices, data = self.kernel.indices, self.kernel.data
        for rows, cells, starts, counts in self._chunks():
            exponent = (self.lowest - self.cost.data[cells]) / self.reg
            exponent += self.g[indices[cells]]
            largest = np.maximum(np.maximum.reduceat(exponent, starts), self.s)
            exponent -= np.repeat(largest, counts)
            np.exp(exponent, out=data[cells])
            stays[rows] = np.exp(self.s - largest)
            sums[rows] = np.add.reduceat(data[cells], starts) + stays[rows]
        self.scale = self.weights / sums
        self.slack = stays * self.scale
        self.left = np.zeros_like(self.g)
        if self.free > 0:
            self.left = self.free * np.exp(self.g - logsumexp(self.g))
        self.columns = self.kernel.T @ self.scale + self.left

    def _error(self) -> float:
        """Captions and their dummy are exact; images and theirs need not be."""
        off = np.abs(self.columns - self.capacities).sum() + abs(self.slack.sum() - self.stays)
        return float(off) / self.total

    def _alternate(self) -> None:
        """Makes the columns exact, then the rows: Sinkhorn's alternation. A shift of all duals keeps `s` pinned."""
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.log(self.capacities / self.columns)
        self.g += np.clip(np.nan_to_num(change), -50, 50)
        if self.stays > 0:
            self.g -= math.log(self.stays / max(self.slack.sum(), 1e-300))
        self._exact_rows()

    def _newton(self, error: float) -> None:
        step = self._solve(self.capacities - self.columns, min(0.1, math.sqrt(error)))
        pulled = self._times(step) / self.weights  # what the captions take back
        change = self._largest_change(step, pulled)
        share = math.log1p(change) / change if change > 1e-8 else 1.0
        if not np.isfinite(step).all() or not math.isfinite(share):
            self._alternate()
            return
        self.g += share * step
        self._exact_rows()

    def _largest_change(self, step: Floats, pulled: Floats) -> float:
        largest = 0.0
        for rows, cells, starts, _ in self._chunks():
            highest = np.maximum.reduceat(step[self.kernel.indices[cells]], starts)
            largest = max(largest, float((highest - pulled[rows]).max()))
        if self.stays > 0:
            largest = max(largest, float(-pulled.min()))
        if self.free > 0:
            largest = max(largest, float(step.max() - (self.left @ step) / self.free))
        return largest

    def _solve(self, residual: Floats, accuracy: float) -> Floats:
        """Conjugate gradients for Newton's matrix, preconditioned by its diagonal."""
        squares = csr_array((self.kernel.data**2, self.kernel.indices, self.kernel.indptr), shape=self.kernel.shape)
        diagonal = self.columns - squares.T @ (self.scale**2 / self.weights)
        if self.free > 0:
            diagonal -= self.left**2 / self.free
        diagonal = np.maximum(diagonal, 1e-10 * self.columns)
        del squares
        step = np.zeros_like(residual)
        rest = residual.copy()
        conditioned = rest / diagonal
        direction = conditioned.copy()
        size = float(rest @ conditioned)
        target = accuracy**2 * size
        for _ in range(_PRODUCTS):
            image = self._hessian(direction)
            curvature = float(direction @ image)
            if not curvature > 1e-14 * float(direction @ (diagonal * direction)):
                break  # flat up to rounding: nothing more to gain
            step += size / curvature * direction
            rest -= size / curvature * image
            conditioned = rest / diagonal
            size, before = float(rest @ conditioned), size
            if size <= target:
                break
            direction = conditioned + size / before * direction
        return step

    def _hessian(self, direction: Floats) -> Floats:
        found: Floats = self.columns * direction
        found -= self.kernel.T @ (self.scale * (self._times(direction) / self.weights))
        if self.free > 0:
            found -= self.left * ((self.left @ direction) / self.free)
        return found

    def _times(self, direction: Floats) -> Floats:
        moved: Floats = self.scale * (self.kernel @ direction)
        return moved

    def _chunks(self) -> Iterator[tuple[slice, slice, NDArray[np.int64], NDArray[np.int64]]]:
        """Rows, their cells, where each row starts among these, and how many it has."""
        bounds = self.kernel.indptr.astype(np.int64)
        row = 0
        while row < len(bounds) - 1:
            end = max(row + 1, int(np.searchsorted(bounds, bounds[row] + _CHUNK, side="right")) - 1)
            yield (
                slice(row, end),
                slice(bounds[row], bounds[end]),
                bounds[row:end] - bounds[row],
                np.diff(bounds[row : end + 1]),
            )
            row = end


def _rest(total: float, mass: float) -> float:
    """What is left of `total`; nothing where that is rounding."""
    return total - mass if total - mass > 1e-12 * total else 0.0
