"""The learnable cost: what it takes to move an image to a caption, learned from pairs known to match."""

import torch
from torch import Tensor, nn

COST_FLOOR = 1e-10


class LinearCost(nn.Module):
    """`C = relu(S Wᵀ + b)` along the captions of a batch, `C = relu(1 − S)` at the start (L2RM, CVPR 2024).

    `W (B, B)` mixes the columns of a batch, so the cost belongs to one batch size; a smaller batch uses the leading
    block of `W` and `b`. It is the published cost, kept for comparison with better ones.

    Example:
        >>> LinearCost(3)(torch.tensor([[0.25, 0.5, 1.5]])).tolist()
        [[0.75, 0.5, 0.0]]
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(-torch.eye(batch_size))
        self.bias = nn.Parameter(torch.ones(batch_size))

    def forward(self, S: Tensor) -> Tensor:
        """(images, captions) similarities -> non-negative costs of the same shape."""
        captions = S.shape[1]
        return torch.relu(S @ self.weight[:captions, :captions].T + self.bias[:captions])


def known_match_loss(cost: nn.Module, S: Tensor, own: Tensor, weights: Tensor | None = None) -> Tensor:
    """`Σ_i w_{own_i} C_{i, own_i}`: what the cost charges for pairs known to match, to be brought down.

    `S (k, captions)`: similarities of k planted images to the captions of their batch; `own (k,)`: the caption that
    each one matches; `weights (captions,)`: how far a caption's pair is taken as matched, 1 if left out. The images
    that the public code leaves beside the planted ones never enter this sum.
    """
    costs: Tensor = cost(S)
    known = costs.gather(1, own[:, None])[:, 0]
    return (known if weights is None else known * weights[own]).sum()
