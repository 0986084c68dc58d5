"""The method as everyone writes it, one caption after the other against all images. What speed is measured against.

Same weights as a model of ours and the same outputs. As in the code of this family, a caption is copied for every
image, norms are roots of summed squares, queries and keys are products of their own; nothing is folded or made again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from l2rm.encoders import linear
from l2rm.rematching.cost import COST_FLOOR, LinearCost, known_match_loss
from l2rm.rematching.objectives import max_violation, symmetric_kl
from l2rm.rematching.transport import partial_transport
from l2rm.similarity.model import RetrievalModel, evaluating
from l2rm.similarity.sgraf import SAF, SGR


def naive_similarity(model: RetrievalModel, images: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """(N, R, F) features, (M, L) tokens, (M,) lengths -> (N, M), by a loop over the captions."""
    with layers_by_torch():
        return naive_score(model, model.encode_images(images), model.encode_captions(tokens, lengths))


@contextmanager
def layers_by_torch() -> Iterator[None]:
    """Linear layers as torch has them, not as ours."""
    ours, linear.ONEDNN = linear.ONEDNN, False
    try:
        yield
    finally:
        linear.ONEDNN = ours


def naive_score(model: RetrievalModel, image: Any, caption: Any) -> Tensor:
    """Scores (N, M) of encoded images and captions."""
    assert isinstance(model, SGR | SAF)
    columns = []
    for c, length in enumerate(caption.lengths.tolist()):
        words = caption.local[c, :length].repeat(len(image.local), 1, 1)
        affinity = F.leaky_relu(image.local @ words.transpose(1, 2), 0.1)
        weights = (9 * l2(affinity, 2).transpose(1, 2).contiguous()).softmax(2)
        context = l2(weights @ image.local, 2)
        local = l2(F.linear((context - words).pow(2), model.local_node.weight, model.local_node.bias), 2)
        whole = (image.whole - caption.whole[c]).pow(2)
        whole = l2(F.linear(whole, model.global_node.weight, model.global_node.bias), 1)
        nodes = torch.cat([whole[:, None], local], 1)
        summary = _summary(model, nodes)
        columns.append(torch.sigmoid(F.linear(summary, model.to_score.weight, model.to_score.bias)).squeeze(1))
    return torch.stack(columns, 1)


def l2(x: Tensor, dim: int) -> Tensor:
    """`x / (‖x‖ + 1e-8)`; the smallest of numbers keeps the root's gradient finite."""
    return x / (x.pow(2).sum(dim, keepdim=True).clamp(min=1e-30).sqrt() + 1e-8)


def _summary(model: SGR | SAF, nodes: Tensor) -> Tensor:
    if isinstance(model, SGR):
        for step in model.graph:
            query, key = (F.linear(nodes, layer.weight, layer.bias) for layer in (step.query, step.key))
            edges = (query @ key.transpose(1, 2)).softmax(2)
            nodes = F.relu(F.linear(edges @ nodes, step.out.weight, step.out.bias))
        return nodes[:, 0]
    logits = F.linear(nodes, model.gate.weight, model.gate.bias)
    gates = torch.sigmoid(model.gate_norm(logits.transpose(1, 2)))  # (N, 1, nodes): one caption
    return l2((F.normalize(gates, p=1, dim=2) @ nodes).squeeze(1), 1)


def naive_step(
    model: RetrievalModel, cost: LinearCost, optimiser: torch.optim.Optimizer, matched: Any, mismatched: Any, reg: float
) -> tuple[Tensor, Tensor]:
    """A rematching step up to its losses, matched and rematched: all pairs with gradient, a full queue for the cost."""
    learned = max_violation(naive_similarity(model, *matched))
    most = max(1, int(0.1 * len(matched[0])))
    count = int(torch.randint(1, most + 1, ()))
    own = torch.randperm(len(matched[0]))[:count].to(matched[0].device)
    queue = mismatched[0].clone()
    queue[:count] = matched[0][own]
    with evaluating(model), torch.no_grad():
        planted = naive_similarity(model, queue, *matched[1:])[:count]
    charged = known_match_loss(cost, planted, own)
    optimiser.zero_grad()
    charged.backward()
    optimiser.step()
    S = naive_similarity(model, *mismatched)
    with torch.no_grad():
        forbidden = torch.eye(len(S), dtype=torch.bool, device=S.device)
        plan = partial_transport(cost(S.detach()).clamp(min=COST_FLOOR), mass=0.1, reg=reg, forbidden=forbidden)
    return learned, symmetric_kl(S, plan.matrix)


def naive_transport(
    cost: np.ndarray, forbidden: np.ndarray, *, mass: float, reg: float, tolerance: float
) -> tuple[np.ndarray, int]:
    """Masked partial transport by Sinkhorn in the log domain on the problem with a dummy row and column."""
    n, m = cost.shape
    extended = np.zeros((n + 1, m + 1))
    extended[:n, :m] = np.where(forbidden, np.inf, cost)
    extended[n, m] = np.inf
    log_kernel = -extended / reg
    row = np.append(np.full(n, 1 / n), 1 - mass)
    column = np.append(np.full(m, 1 / m), 1 - mass)
    u, v = np.zeros(n + 1), np.zeros(m + 1)
    for iteration in range(1, 1_000_001):
        u = np.log(row) - _log_sum(log_kernel + v, 1)
        v = np.log(column) - _log_sum(log_kernel + u[:, None], 0)
        if iteration % 10 == 0:
            plan = np.exp(log_kernel + u[:, None] + v)
            if np.abs(plan.sum(1) - row).sum() + np.abs(plan.sum(0) - column).sum() <= tolerance:
                return plan[:n, :m], iteration
    raise RuntimeError("Sinkhorn did not converge")


def _log_sum(x: np.ndarray, axis: int) -> np.ndarray:
    most = x.max(axis)
    shifted = x - np.expand_dims(most, axis)
    return most + np.log(np.exp(shifted).sum(axis))  # type: ignore[no-any-return]
