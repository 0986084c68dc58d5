"""`crcl`: active complementary loss and self-refining correspondence (Qin et al., NeurIPS 2023)."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.batches import Batch, Batches
from l2rm.similarity.model import RetrievalModel
from l2rm.training.divide import Division
from l2rm.training.lesson import Lesson
from l2rm.training.methods.method import Method, Step, Taught
from l2rm.training.settings import TrainConfig


class Crcl(Method):
    """Cross-modal robust complementary learning. Every pair has a label `y`, 1 at first, and is learned from by

        y (−log P_ii − log Q_ii) + 5 (R(P) + R(Q)),    R(P) = Σ_{j≠i} tan P_ij / (Σ_j tan P_ij)^(1−y)

    the first term being active, the second complementary: it only says which captions are *not* of an image, which a
    mismatched pair seldom gets wrong. A step refines the labels of its pairs, `y ← 0.8 y + 0.2 (P_ii + Q_ii) / 2`,
    but in the first epochs of a round; a round starts with fresh weights and keeps the labels, so that what a model
    came to know by heart is forgotten. All rounds together have the epochs of other methods.
    """

    divides = True

    def __init__(self, model: RetrievalModel, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        self.state |= {"labels": torch.ones(len(batches), device=batches.device)}

    @property
    def starts(self) -> list[int]:
        """The first epoch of each round."""
        early = max(1, round(self.config.crcl.early_share * self.config.epochs))
        return [early * turn for turn in range(self.config.crcl.rounds) if early * turn < self.config.epochs]

    def stage(self, epoch: int) -> str:
        return f"round {sum(start <= epoch for start in self.starts)}"

    def objective(self, epoch: int) -> str:
        return "active_complementary"

    def restarts(self, epoch: int) -> bool:
        return epoch in self.starts[1:]

    def divide(self, epoch: int, stop: Callable[[], None]) -> dict[str, Any] | None:
        if epoch == 0:
            return None
        labels = self.state["labels"].cpu().numpy()
        division = Division(losses=1 - labels, match_probability=labels, facts={})
        return division.statistics(self.config.rematching.matched_above, self.truth)

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        return self.full_pass(Lesson(rows=self.rows), epoch)

    def learn(self, epoch: int, *batches: Batch | None) -> Taught:
        (batch,) = batches
        assert batch is not None
        settings, tau = self.config.crcl, self.config.rematching.tau
        S = self.model(batch.images, batch.captions, batch.lengths)
        with torch.no_grad():
            seen = 0.5 * ((S / tau).softmax(1).diagonal() + (S / tau).softmax(0).diagonal()).float()
        index = torch.from_numpy(batch.rows).to(self.state["labels"].device)
        labels = self.state["labels"][index]
        since = epoch - max(start for start in self.starts if start <= epoch)
        if since >= settings.frozen_epochs:
            labels = settings.momentum * labels + (1 - settings.momentum) * seen
        labels = torch.where(labels < settings.least, 0.0, labels)
        first_look = epoch == since == settings.frozen_epochs - 1
        self.state["labels"][index] = seen if first_look else labels
        active, complementary = active_complementary(S, labels, tau)
        loss = active + settings.complement * complementary
        return Taught(loss=loss, terms={"loss": loss, "active": active, "complementary": complementary})

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state | {"labels": state["labels"].to(self.batches.device)})

    def match_probability(self, best: RetrievalModel) -> NDArray[np.float32]:
        """The labels in the end."""
        labels: NDArray[np.float32] = self.state["labels"].cpu().numpy()
        return labels


def active_complementary(S: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """What pairs on the diagonal of `S (B, B)` teach by their `labels (B,)`, and what all others teach; batch means.

    Example:
        >>> active, complementary = active_complementary(torch.zeros(2, 2), torch.tensor([1.0, 0.0]), 0.05)
        >>> round(float(active), 4)  # one of two pairs is learned: 2 log 2 / 2
        0.6931
    """
    active, complementary = S.new_zeros(()), S.new_zeros(())
    for scores in (S, S.T):
        log_p = (scores / tau).log_softmax(1)
        tangent = log_p.exp().tan()
        active = active - (labels * log_p.diagonal()).mean()
        others = tangent.sum(1) - tangent.diagonal()
        complementary = complementary + (others / tangent.sum(1) ** (1 - labels)).mean()
    return active, complementary
