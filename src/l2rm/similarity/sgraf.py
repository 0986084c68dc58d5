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

from l2rm.encoders.linear import Linear
from l2rm.encoders.towers import NORM_FLOOR, l2_normalise
from l2rm.errors import InputError
from l2rm.similarity.graph import GraphStep
from l2rm.similarity.model import Encoded, RetrievalModel
from l2rm.similarity.nodes import LEAK, affinities, at_once, attention, pair_nodes, products, working_type
from l2rm.similarity.settings import DataShape, ModelConfig

AT_ONCE = 128
"""Captions, and where nothing is learned images, that are scored at a time. In training a batch of images stays whole:
SAF's norm runs over it."""


class GatedPool(nn.Module):
    """One vector for a set of local ones, each weighed by its agreement with their mean.

    `Σ softmax(w · (branch(x) ∘ branch(mean x))) x`, l2; branch = linear, BatchNorm (images only), tanh, dropout.
    With `regions` given, BatchNorm runs over the regions for the local branch and over D for the mean's.
    """

    def __init__(self, dim: int, dropout: float, regions: int | None = None) -> None:
        super().__init__()
        self.local = Linear(dim, dim)
        self.mean = Linear(dim, dim)
        self.local_norm = nn.Identity() if regions is None else nn.BatchNorm1d(regions)
        self.mean_norm = nn.Identity() if regions is None else nn.BatchNorm1d(dim)
        self.gate = Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, local: Tensor, mean: Tensor, present: Tensor | None = None) -> Tensor:
        """(N, R, D) and their mean (N, D), with `present (N, R)` false on padding -> (N, D)."""
        gate_local = self.dropout(torch.tanh(self.local_norm(self.local(local))))
        gate_mean = self.dropout(torch.tanh(self.mean_norm(self.mean(mean))))
        logits = self.gate(gate_local * gate_mean[:, None]).squeeze(-1)
        if present is not None:
            logits = logits.masked_fill(~present, -torch.inf)
        return l2_normalise((logits.softmax(1)[..., None] * local).sum(1))


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
        self.local_node = Linear(D, S)
        self.global_node = Linear(D, S)
        self.to_score = Linear(S, 1)

    @property
    def pairs_stand_alone(self) -> bool:
        return True

    @property
    def images_stand_alone(self) -> bool:
        return not self.training  # BatchNorm in the images' pool

    @abstractmethod
    def summarise(self, nodes: Tensor) -> Tensor:
        """Nodes (N, C, 1 + L, S), the whole pair's first -> the vectors (N, C, S) that the scores are read off."""

    def encode_images(self, images: Tensor) -> Encoded:
        with self.autocast():
            regions = self.image_tower(images)
            regions = regions.to(working_type(regions))
            return Encoded(self.image_pool(regions, regions.mean(1)), regions)

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        if lengths is None:
            if self.shape.caption_dim is None:
                raise InputError("captions: token ids come with the length of each caption; give lengths (M,)")
            lengths = torch.ones(len(captions), dtype=torch.long)
        with self.autocast():
            words = self.caption_tower(captions, lengths)
            words = words.to(working_type(words))
            on_device = lengths.to(words.device)
            present = torch.arange(words.shape[1], device=words.device) < on_device[:, None]
            whole = self.caption_pool(words, words.sum(1) / on_device[:, None], present)
            return Encoded(whole, words, lengths.cpu())

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        assert captions.lengths is not None
        order = captions.lengths.argsort(stable=True)
        images_at_once = len(images) if torch.is_grad_enabled() or self.training else AT_ONCE
        parts = [slice(start, start + images_at_once) for start in range(0, len(images), images_at_once)]
        columns = []
        with self.autocast():
            for block in order.split(AT_ONCE):
                some = captions.take(block)
                columns.append(torch.cat([self._score_block(images.take(part), some) for part in parts]))
        return torch.cat(columns, 1)[:, order.argsort()]

    def _score_block(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (N, C) of captions that lie in the order of their lengths."""
        assert images.local is not None
        assert captions.local is not None
        groups = list(_of_equal_length(captions))
        words = [captions.local[group, :length] for group, length in groups]
        with_one_another = products(images.local)
        return torch.cat(
            [
                self._scores(attention(affinity, with_one_another), images, captions.whole[None, group], word[None])
                for (group, _), word, affinity in zip(groups, words, affinities(images.local, words), strict=True)
            ],
            1,
        )

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        assert images.local is not None
        with self.autocast():
            with_one_another = products(images.local)
            scores, groups = [], list(_of_equal_length(captions))
            for group, length in groups:
                scores.append(self._paired(images.take(group), with_one_another[group], captions, group, length))
        return torch.cat(scores)[torch.cat([group for group, _ in groups]).argsort()]

    @torch.no_grad()
    def score_listed(self, images: Encoded, captions: Encoded, row: Tensor, column: Tensor) -> Tensor:
        """The similarities (P,) of images `row` and captions `column`: many pairs of few images, without gradient.

        As `score_pairs` of the pairs written out, of which only some are here at a time.
        """
        assert images.local is not None
        assert captions.lengths is not None
        lengths = captions.lengths[column.cpu()].to(row.device)
        order = lengths.argsort(stable=True)
        found = self.to_score.weight.new_empty(len(row))
        most = max(1, 2 * at_once(images.local) // images.local[0].numel())
        with self.autocast():
            with_one_another = products(images.local)
            for length, count in zip(*lengths[order].unique_consecutive(return_counts=True), strict=True):
                for part in order[:count].split(most):
                    some = row[part]
                    pairs = images.take(some), with_one_another[some], captions, column[part], int(length)
                    found[part] = self._paired(*pairs)
                order = order[count:]
        return found

    def _paired(
        self, image: Encoded, with_one_another: Tensor, captions: Encoded, column: Tensor, length: int
    ) -> Tensor:
        """Scores (P,) of images, and products of their regions, with the captions `column`, all of one length."""
        assert image.local is not None
        assert captions.local is not None
        word = captions.local[column, None, :length]
        affinity = F.leaky_relu(image.local @ word[:, 0].transpose(1, 2), LEAK)[:, :, None]
        return self._scores(attention(affinity, with_one_another), image, captions.whole[column, None], word).squeeze(1)

    def _scores(self, shares: Tensor, images: Encoded, whole: Tensor, words: Tensor) -> Tensor:
        """(N, R, C·L) attention of N images to captions (B, C, D) with words (B, C, L, D) -> (N, C)."""
        assert images.local is not None
        local_layer = (self.local_node.weight, self.local_node.bias)
        whole_layer = (self.global_node.weight, self.global_node.bias)
        nodes = pair_nodes(shares, (images.whole, images.local), (whole, words), whole_layer, local_layer)
        summary = self.summarise(nodes)
        with torch.autocast(summary.device.type, enabled=False):
            return torch.sigmoid(self.to_score(summary.to(self.to_score.weight.dtype))).squeeze(-1)


def _of_equal_length(captions: Encoded) -> Iterator[tuple[Tensor, int]]:
    """Where the captions of each length are, and the length."""
    assert captions.lengths is not None
    for length in captions.lengths.unique().tolist():
        yield (captions.lengths == length).nonzero().squeeze(1), length


class SGR(SimilarityVectors):
    """Similarity graph reasoning: nodes exchange what they hold, then the whole pair's node is the summary."""

    def __init__(self, config: ModelConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        self.graph = nn.ModuleList(GraphStep(config.similarity_dim) for _ in range(config.graph_steps))

    def summarise(self, nodes: Tensor) -> Tensor:
        N, C, K, S = nodes.shape
        x = nodes.view(N * C, K, S)
        for step, reason in enumerate(self.graph, start=1):
            x = reason(x, 1 if step == len(self.graph) else K)
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
        self.gate = Linear(config.similarity_dim, 1)
        self.gate_norm = CaptionNorm(1)

    @property
    def pairs_stand_alone(self) -> bool:
        return not self.training

    def summarise(self, nodes: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gate_norm(self.gate(nodes).squeeze(-1)))
        shares = gates / (gates.sum(2, keepdim=True) + NORM_FLOOR)
        return l2_normalise((shares[:, :, None] @ nodes).squeeze(2))
