"""Similarity vectors of regions and words, reasoned over in a graph (SGR) or filtered by attention (SAF).

Both are of SGRAF (Diao et al., AAAI 2021), which is the mean of an SGR's and a SAF's similarities.

Shape suffixes: N images, R regions, C captions of one length, L words, D joint space, S similarity space.
Captions are scored in groups of equal length, so that no padding enters a mean, an attention or a softmax.
"""

from abc import abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2rm.encoders.towers import NORM_FLOOR, l2_normalise, linear
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


class SimilarityVectors(RetrievalModel):
    """What SGR and SAF share: a similarity vector, the node, for each word of a pair and one for the whole pair.

    Word `w` attends to the regions, `a = leaky_relu(v·w, 0.1)`, l2 over words, softmax over regions of `9a`; its node
    is `l2(W (context − w)² + b)`. The whole pair's node does the same with the two global vectors, and goes first.
    """

    range = (0.0, 1.0)

    def __init__(self, config: ModelConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        D, S = config.embed_dim, config.similarity_dim
        self.image_pool = GatedPool(D, config.dropout, shape.regions)
        self.caption_pool = GatedPool(D, config.dropout)
        self.local_node = linear(D, S)
        self.global_node = linear(D, S)
        self.to_score = linear(S, 1)

    @abstractmethod
    def summarise(self, nodes: Tensor) -> Tensor:
        """Nodes (N, C, 1 + L, S), the whole pair's first -> the vectors (N, C, S) that the scores are read off."""

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
        if torch.is_grad_enabled() or self.training:
            return self._score_chunk(images.whole, images.local, captions.whole, words)
        chunk = max(1, CHUNK_ELEMENTS // max(1, words.numel()))
        return torch.cat(
            [
                self._score_chunk(whole, local, captions.whole, words)
                for whole, local in zip(images.whole.split(chunk), images.local.split(chunk), strict=True)
            ]
        )

    def _score_chunk(self, image_ND: Tensor, region_NRD: Tensor, caption_CD: Tensor, word_CLD: Tensor) -> Tensor:
        context = attend(region_NRD, word_CLD)
        local = l2_normalise(self.local_node((context - word_CLD) ** 2))
        whole = l2_normalise(self.global_node((image_ND[:, None] - caption_CD) ** 2))
        summary = self.summarise(torch.cat([whole[:, :, None], local], 2))
        return torch.sigmoid(self.to_score(summary)).squeeze(-1)


class SGR(SimilarityVectors):
    """Similarity graph reasoning: nodes exchange what they hold, then the whole pair's node is the summary."""

    def __init__(self, config: ModelConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.graph = nn.ModuleList(GraphStep(config.similarity_dim) for _ in range(config.graph_steps))

    def summarise(self, nodes: Tensor) -> Tensor:
        N, C, K, S = nodes.shape
        x = nodes.view(N * C, K, S)
        for step, reason in enumerate(self.graph, start=1):
            x = reason(x, queries=1 if step == len(self.graph) else K)
        return x[:, 0].view(N, C, S)


class CaptionNorm(nn.BatchNorm1d):
    """BatchNorm of one channel whose batch is one caption against all images, however many captions come at once.

    In training each caption is normalised by its own mean and variance, over images and nodes, and the running
    statistics move a step a caption, as they do where captions are scored one after the other.
    """

    def forward(self, logits: Tensor) -> Tensor:
        """(N, C, K) -> the same shape."""
        if not self.training:
            return super().forward(logits.reshape(-1, 1)).view_as(logits)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        variance, mean = torch.var_mean(logits, (0, 2), correction=0)
        with torch.no_grad():
            C, count = logits.shape[1], logits.shape[0] * logits.shape[2]
            weight = self.momentum * (1 - self.momentum) ** torch.arange(C - 1, -1, -1, device=logits.device)
            kept = (1 - self.momentum) ** C
            unbiased = variance.detach() * count / max(1, count - 1)
            self.running_mean.mul_(kept).add_((weight * mean.detach()).sum())
            self.running_var.mul_(kept).add_((weight * unbiased).sum())
            self.num_batches_tracked.add_(C)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (logits - mean[:, None]) * scale[:, None] + self.bias


class SAF(SimilarityVectors):
    """Similarity attention filtration: the summary is the mean of the nodes, each weighed by a gate of its own.

    `gate = sigmoid(BatchNorm(linear(node)))`, l1 over the nodes; l2 of the weighted sum.
    """

    def __init__(self, config: ModelConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.gate = linear(config.similarity_dim, 1)
        self.gate_norm = CaptionNorm(1)

    def summarise(self, nodes: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gate_norm(self.gate(nodes).squeeze(-1)))
        shares = gates / (gates.sum(2, keepdim=True) + NORM_FLOOR)
        return l2_normalise((shares[:, :, None] @ nodes).squeeze(2))


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
