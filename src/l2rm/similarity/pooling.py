"""Generalised pooling: how much the largest, the second largest, … value of each dimension counts is learned."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

SHARPNESS = 10.0
"""Scores of positions are multiplied with this before their softmax, as published (a temperature of 0.1)."""


class GeneralisedPooling(nn.Module):
    """Pools n vectors to one: `Σ_k θ_k max_k(x)`, with `max_k` the k-th largest value of each dimension by itself.

    The weights `θ (n,)` depend on n alone: positions 0 … n−1, encoded by sines and cosines, go through a bi-GRU (the
    two directions averaged) and a linear layer; softmax. So mean pooling (all θ equal) and max pooling (θ = 1, 0, …)
    are special cases, and the order of the vectors does not matter. (Chen et al., "Learning the best pooling strategy
    for visual semantic embedding", CVPR 2021.)

    Args:
        dim: of the position codes and of the GRU's states, as published 32.

    Example:
        >>> pool = GeneralisedPooling()
        >>> pool(torch.rand(2, 5, 8), torch.tensor([5, 3])).shape
        torch.Size([2, 8])
    """

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.dim = dim
        self.gru = nn.GRU(dim, dim, batch_first=True, bidirectional=True)
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, vectors: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(N, L, D), of which the first `lengths (N,)` of each count (None: all L) -> (N, D)."""
        longest = vectors.shape[1]
        if lengths is None:
            return (
                vectors.sort(1, descending=True).values * self.weights([longest]).to(vectors.dtype)[0, :, None]
            ).sum(1)
        distinct, which = lengths.cpu().unique(return_inverse=True)
        weights = self.weights(distinct.tolist(), longest).to(vectors.dtype)[which.to(vectors.device)]
        beyond = torch.arange(longest, device=vectors.device)[None, :] >= lengths.to(vectors.device)[:, None]
        ordered = vectors.masked_fill(beyond[:, :, None], -math.inf).sort(1, descending=True).values
        return (ordered.masked_fill(beyond[:, :, None], 0.0) * weights[:, :, None]).sum(1)

    def weights(self, lengths: list[int], longest: int | None = None) -> Tensor:
        """θ for sets of so many vectors: (len(lengths), longest), rows of sum 1, 0 beyond each length."""
        longest = max(lengths) if longest is None else longest
        device = self.score.weight.device
        codes = position_codes(max(lengths), self.dim).to(device).expand(len(lengths), -1, -1)
        packed = pack_padded_sequence(codes, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=longest)
        forward, backward = states.chunk(2, dim=-1)
        scores = SHARPNESS * self.score(0.5 * (forward + backward)).squeeze(-1).float()
        beyond = torch.arange(longest, device=device)[None, :] >= torch.tensor(lengths, device=device)[:, None]
        weights: Tensor = scores.masked_fill(beyond, -math.inf).softmax(1)
        return weights


def position_codes(count: int, dim: int) -> Tensor:
    """(count, dim) `sin(k / 10000^(i/dim))` and, at odd places, `cos(k / 10000^((i−1)/dim))` (Vaswani et al., 2017).

    Example:
        >>> position_codes(1, 4)
        tensor([[0., 1., 0., 1.]])
    """
    angle = torch.arange(count)[:, None] * torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
