"""The similarity as everyone writes it: one caption after the other against all images. What speed is measured against.

Same weights as a model of ours and the same outputs; padding is cut off, and nothing is folded, chunked or recomputed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from l2rm.encoders.towers import l2_normalise
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.sgraf import SAF, SGR


def naive_similarity(model: RetrievalModel, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """(N, R, F) features, (M, L) tokens, (M,) lengths -> (N, M), by a loop over the captions."""
    assert isinstance(model, SGR | SAF)
    image = model.encode_images(images)
    caption = model.encode_captions(tokens, lengths)
    columns = []
    for c, length in enumerate(lengths.tolist()):
        words = caption.local[c, :length].expand(len(images), -1, -1)
        affinity = F.leaky_relu(image.local @ words.transpose(1, 2), 0.1)
        weights = (9 * l2_normalise(affinity, dim=2).transpose(1, 2)).softmax(2)
        context = l2_normalise(weights @ image.local)
        local = l2_normalise(model.local_node((context - words) ** 2))
        whole = l2_normalise(model.global_node((image.whole - caption.whole[c]) ** 2))
        nodes = torch.cat([whole[:, None], local], 1)
        columns.append(torch.sigmoid(model.to_score(_summary(model, nodes))).squeeze(1))
    return torch.stack(columns, 1)


def _summary(model: SGR | SAF, nodes: Tensor) -> Tensor:
    if isinstance(model, SGR):
        for step in model.graph:
            edges = (step.query(nodes) @ step.key(nodes).transpose(1, 2)).softmax(2)
            nodes = F.relu(step.out(edges @ nodes))
        return nodes[:, 0]
    gates = torch.sigmoid(model.gate_norm(model.gate(nodes).transpose(1, 2)))  # (N, 1, nodes): one caption
    return l2_normalise((F.normalize(gates, p=1, dim=2) @ nodes).squeeze(1))
