"""The L2RM step without its mask, as the public code takes it where no mismatches were injected."""

import torch
from torch import Tensor

from l2rm.rematching.step import RematchingStep


class UnmaskedStep(RematchingStep):
    """A step whose plan may leave a caption with the image that it is given (`forbid="nothing"`).

    The public code forbids given pairs only where the ratio of *injected* mismatches is above 0. On web data such as
    CC152K that ratio is 0, so its numbers there are of plans without a mask.

    Example:
        >>> step = UnmaskedStep(model, cost, cost_optimiser, RematchingConfig(forbid="nothing"))  # doctest: +SKIP
    """

    def forbidden(self, candidates: Tensor, given: Tensor) -> Tensor:
        """No cell is."""
        return torch.zeros(len(candidates), len(given), dtype=torch.bool, device=given.device)
