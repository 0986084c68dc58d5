"""Images of earlier steps, as they were encoded then, that a plan may choose from besides those of its batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from l2rm.rematching.dataset import sparse_transport, sure_mass
from l2rm.rematching.transport import TransportPlan

CANDIDATES = 64
"""Images that a caption may choose from."""
_MOST = 0.98  # share of the mass that surely fits which is asked for at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """The last images, each once, newest first. (A memory of drifting vectors: Wang et al., "XBM", CVPR 2020.)

    Attributes:
        ids: `(n,)`; which images.
        vectors: `(n, D)`; as a dual encoder encoded them, without gradient.

    Example:
        >>> memory = Memory().newer(torch.tensor([4, 7]), torch.eye(2), size=3)
        >>> memory.newer(torch.tensor([9, 4]), torch.eye(2), size=2).ids.tolist()
        [9, 4]
    """

    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    vectors: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def __len__(self) -> int:
        return len(self.ids)

    def newer(self, ids: Tensor, vectors: Tensor, *, size: int) -> Memory:
        """With these images in front, at most `size`; what it had of the same images is forgotten."""
        vectors = vectors.detach()
        everything = torch.cat([ids, self.ids.to(ids.device)])
        known = torch.cat([vectors, self.vectors.to(vectors)]) if len(self) else vectors
        first = first_places(everything)[:size]
        return Memory(ids=everything[first], vectors=known[first])

    def without(self, ids: Tensor) -> Memory:
        """The other images."""
        other = ~torch.isin(self.ids, ids)
        return Memory(ids=self.ids[other], vectors=self.vectors[other])


def plan_from_many(
    cost: Tensor, forbidden: Tensor, *, mass: float, reg: float, tolerance: float, max_iterations: int
) -> TransportPlan | None:
    """The plan from many images (rows) to few captions (columns), by the images that cost each caption least.

    A caption weighs `1/m`, and so does an image, however many there are: each can take one caption. (In
    `partial_transport` rows weigh `1/n`; of many rows each could take a small part of a caption only, and a caption
    would have to be spread over many.) Cells beyond the `CANDIDATES` best of a caption carry nothing.

    Args:
        cost: `(n, m)`.
        forbidden: `(n, m)`; these cells carry nothing.
        mass: share of the captions' weight that is transported, less where candidates have no room for it.
        reg, tolerance, max_iterations: as in `partial_transport`.

    Returns:
        The plan, None where nothing can be carried.
    """
    n, m = cost.shape
    open_cost = cost.detach().cpu().double().masked_fill(forbidden.cpu(), torch.inf)
    best, rows = open_cost.topk(min(CANDIDATES, n), dim=0, largest=False)
    there = best.T.isfinite().numpy()
    captions = np.repeat(np.arange(m), there.sum(1))
    images, cells = rows.T.numpy()[there], best.T.numpy()[there]
    weights, capacities = np.ones(m), np.ones(n)
    sure = sure_mass(captions, images, weights=weights, capacities=capacities, enough=mass * m / _MOST)
    if not sure > 0:
        return None
    found = sparse_transport(
        captions,
        images,
        cells,
        weights=weights,
        capacities=capacities,
        mass=min(mass * m, _MOST * sure),
        reg=reg,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    matrix = torch.zeros(n, m, dtype=torch.float64)
    matrix[torch.from_numpy(found.images).long(), torch.from_numpy(found.captions).long()] = torch.from_numpy(
        found.cell_mass / m
    )
    return TransportPlan(
        matrix=matrix.to(cost.device, cost.dtype),
        marginal_error=found.marginal_error,
        iterations=found.iterations,
        converged=found.converged,
        cost=found.cost / m,
    )


def first_places(ids: Tensor) -> Tensor:
    """Where each id comes first, in order."""
    _, first = np.unique(ids.cpu().numpy(), return_index=True)
    return torch.from_numpy(np.sort(first)).to(ids.device)
