"""Similarity graph reasoning over regions and words (SGR of SGRAF, Diao et al., AAAI 2021).

Shape suffixes: N images, R regions, C captions of one length, L words, D joint space, S similarity space.
Captions are scored in groups of equal length, so that no padding enters a mean, an attention or a softmax.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2rm.encoders.towers import l2_normalise, linear
from l2rm.similarity.model import Encoded, RetrievalModel
from l2rm.similarity.settings import DataShape, ModelConfig

ATTENTION_SHARPNESS = 9.0
LEAK = 0.1
CHUNK_ELEMENTS = 500_000
"""Contexts (N, C·L, D) are made this many numbers at a time when nothing is learned: they then stay in cache."""


class GatedPool(nn.Module):
    """One vector for a set of local ones, each weighed by its agreement with their mean.

    `Σ softmax(w · (branch(x) ∘ branch(mean x))) x`, l2; branch = linear, BatchNorm (images only), tanh, dropout.
    With `regions` given, BatchNorm runs over the regions for the local branch and over D for the mean's.
    """

    def __init__(self, dim: int, dropout: float, regions: int | None = None) -> None:
        super().__init__()
        self.local = linear(dim, dim)
        self.mean = linear(dim, dim)
        self.local_norm = nn.Identity() if regions is None else nn.BatchNorm1d(regions)
        self.mean_norm = nn.Identity() if regions is None else nn.BatchNorm1d(dim)
        self.gate = linear(dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, local: Tensor, mean: Tensor, present: Tensor | None = None) -> Tensor:
        """(N, R, D) and their mean (N, D), with `present (N, R)` false on padding -> (N, D)."""
        gate_local = self.dropout(torch.tanh(self.local_norm(self.local(local))))
        gate_mean = self.dropout(torch.tanh(self.mean_norm(self.mean(mean))))
        logits = self.gate(gate_local * gate_mean[:, None]).squeeze(-1)
        if present is not None:
            logits = logits.masked_fill(~present, -torch.inf)
        return l2_normalise((logits.softmax(1)[..., None] * local).sum(1))


class GraphStep(nn.Module):
    """`x ← relu(W softmax(q(x) k(x)ᵀ) x + b)` over the nodes of each pair.

    A term that only the query decides drops out of the softmax, so `q(x) k(x)ᵀ` needs one product with the folded
    `W_qᵀ W_k` and one vector: half the work, the same function.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = linear(dim, dim)
        self.key = linear(dim, dim)
        self.out = linear(dim, dim)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        """(P, K, S) nodes -> the first `queries` of them, updated, (P, queries, S)."""
        fold = self.query.weight.T @ self.key.weight
        shift = self.query.bias @ self.key.weight
        logits = torch.baddbmm((x @ shift)[:, None], x[:, :queries] @ fold, x.transpose(1, 2))
        return F.relu(self.out(logits.softmax(-1) @ x))


class SGR(RetrievalModel):
    """A pair's score by reasoning over a graph of similarity vectors: one of the whole pair, one of each word.

    Word `w` attends to the regions, `a = leaky_relu(v·w, 0.1)`, l2 over words, softmax over regions of `9a`; its node
    is `l2(W (context − w)² + b)`. The whole pair's node does the same with the two global vectors, goes first, and
    after the graph steps is the score: `sigmoid(linear)`.
    """

    range = (0.0, 1.0)

    def __init__(self, config: ModelConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        D, S = config.embed_dim, config.similarity_dim
        self.image_pool = GatedPool(D, config.dropout, shape.regions)
        self.caption_pool = GatedPool(D, config.dropout)
        self.local_node = linear(D, S)
        self.global_node = linear(D, S)
        self.graph = nn.ModuleList(GraphStep(S) for _ in range(config.graph_steps))
        self.to_score = linear(S, 1)

    def encode_images(self, images: Tensor) -> Encoded:
        regions = self.image_tower(images)
        return Encoded(self.image_pool(regions, regions.mean(1)), regions)

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        words = self.caption_tower(captions, lengths)
        if lengths is None:
            lengths = torch.ones(len(words), dtype=torch.long)
        on_device = lengths.to(words.device)
        present = torch.arange(words.shape[1], device=words.device) < on_device[:, None]
        whole = self.caption_pool(words, words.sum(1) / on_device[:, None], present)
        return Encoded(whole, words, lengths.cpu())

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        assert captions.lengths is not None
        columns, order = [], []
        for group, length in _groups_of_equal_length(captions.lengths):
            columns.append(self._score_group(images, captions.take(group), length))
            order.append(group)
        return torch.cat(columns, 1)[:, torch.cat(order).argsort()]

    def _score_group(self, images: Encoded, captions: Encoded, length: int) -> Tensor:
        """Scores (N, C) of captions of one length."""
        assert images.local is not None
        assert captions.local is not None
        words = captions.local[:, :length]
        if torch.is_grad_enabled():
            return self._score_chunk(images.whole, images.local, captions.whole, words)
        chunk = max(1, CHUNK_ELEMENTS // max(1, words.numel()))
        return torch.cat(
            [
                self._score_chunk(whole, local, captions.whole, words)
                for whole, local in zip(images.whole.split(chunk), images.local.split(chunk), strict=True)
            ]
        )

    def _score_chunk(self, image_ND: Tensor, region_NRD: Tensor, caption_CD: Tensor, word_CLD: Tensor) -> Tensor:
        N, (C, L, _) = len(image_ND), word_CLD.shape
        context = attend(region_NRD, word_CLD)
        local = l2_normalise(self.local_node((context - word_CLD) ** 2))
        whole = l2_normalise(self.global_node((image_ND[:, None] - caption_CD) ** 2))
        nodes = torch.cat([whole[:, :, None], local], 2).view(N * C, L + 1, -1)
        for step, reason in enumerate(self.graph, start=1):
            nodes = reason(nodes, queries=1 if step == len(self.graph) else L + 1)
        return torch.sigmoid(self.to_score(nodes[:, 0])).view(N, C)


def attend(region_NRD: Tensor, word_CLD: Tensor) -> Tensor:
    """What each word sees in each image: a unit context (N, C, L, D), attention sharpened 9 times."""
    N, R, D = region_NRD.shape
    C, L, _ = word_CLD.shape
    affinity = F.leaky_relu(region_NRD.reshape(N * R, D) @ word_CLD.reshape(C * L, D).T, LEAK)
    affinity = l2_normalise(affinity.view(N, R, C, L))
    attention = (ATTENTION_SHARPNESS * affinity).softmax(1).view(N, R, C * L)
    return l2_normalise(attention.transpose(1, 2) @ region_NRD).view(N, C, L, D)


def _groups_of_equal_length(lengths: Tensor) -> Iterator[tuple[Tensor, int]]:
    for length in lengths.unique().tolist():
        yield (lengths == length).nonzero().squeeze(1), length
