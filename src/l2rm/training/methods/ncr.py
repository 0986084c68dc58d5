"""`ncr`: two networks divide the pairs for each other and soften margins (Huang et al., NeurIPS 2021)."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.batches import Batch, Batches
from l2rm.rematching.gaussian import GaussianMixture
from l2rm.rematching.objectives import hinges, mean_violation, pair_loss
from l2rm.similarity.model import RetrievalModel
from l2rm.training.divide import Division, pair_losses
from l2rm.training.lesson import Lesson
from l2rm.training.methods.method import DIVISION, FINAL_DIVISION, MISMATCHED, ORDER, Method, Step, Taught
from l2rm.training.settings import TrainConfig


class Ncr(Method):
    """Learning with noisy correspondence. After a warm-up by mean triplet, every epoch:

    - *co-dividing*: a Gaussian mixture on each network's losses gives the match probabilities `w` that the *other* one
      learns with;
    - *co-rectifying*: a matched pair's label is `w + (1 − w) p`, with `p` the network's own prediction; a suspect's is
      the mean of what both networks predict;
    - *robust learning*: hardest-negative triplets whose margin is scaled by the label.

    Both networks take a step at a time, each in its own order of batches, as many steps as with all pairs; matched and
    suspects count in one step (published: a step each). The two answer as an ensemble, so they compare with ensembles
    of two seeds of others.
    """

    divides = True

    def __init__(self, model: RetrievalModel, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        self.state |= {"match_probability": None}

    def stage(self, epoch: int) -> str:
        return "warm-up" if epoch < self.config.warmup_epochs else "training"

    def objective(self, epoch: int) -> str:
        return "mean_violation" if self.stage(epoch) == "warm-up" else "soft_margin"

    def divide(self, epoch: int, stop: Callable[[], None]) -> dict[str, Any] | None:
        """
        Raises:
            RuntimeError: fewer than two pairs are taken as matched.
        """
        if self.stage(epoch) == "warm-up":
            return None
        started = time.monotonic()
        probability, losses = self._probabilities(self.model, self.seed(epoch, DIVISION), stop)
        self.state["match_probability"] = probability
        threshold = self.config.rematching.matched_above
        fewest = int((probability > threshold).sum(1).min())
        if fewest < 2:
            raise RuntimeError(
                f"the sample division of epoch {epoch + 1} takes {fewest} pairs as matched, "
                "so nothing is left to learn from; warm up longer, or with a smaller learning rate"
            )
        division = Division(losses=losses.mean(0).numpy(), match_probability=probability.mean(0).numpy(), facts={})
        return division.statistics(threshold, self.truth) | {"seconds": time.monotonic() - started}

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        size, seed = self.config.batch_size, self.seed(epoch, ORDER)
        members = range(len(self.model.members))
        if self.stage(epoch) == "warm-up":
            passes = [Lesson(rows=self.rows).batches(size, seed=(*seed, member)) for member in members]
            return zip(*passes, strict=True), len(passes[0])
        count = self.steps_of_all(epoch)
        orders: list[list[Lesson]] = []
        suspects: list[list[Lesson] | list[None]] = []
        for member in members:
            trusted = self.state["match_probability"][1 - member].numpy()  # of the other one
            matched = trusted > self.config.rematching.matched_above
            lesson = Lesson(rows=self.rows[matched], weights=trusted[matched])
            orders.append(lesson.steps(size, count, seed=(*seed, member)))
            if not matched.all() and self._learns_from_suspects(epoch):
                lesson = Lesson(rows=self.rows[~matched])
                suspects.append(lesson.steps(size, count, seed=(*self.seed(epoch, MISMATCHED), member)))
            else:
                suspects.append([None] * count)
        return zip(*orders, *suspects, strict=True), count

    def learn(self, epoch: int, *batches: Batch | None) -> Taught:
        members, matched, suspects = self.model.members, batches[:2], batches[2:]
        if self.stage(epoch) == "warm-up":
            margin = self.config.rematching.margin
            losses = [mean_violation(_similarity(*one), margin) for one in zip(members, matched, strict=True)]
            return Taught(loss=torch.stack(losses).sum(), terms={"loss": torch.stack(losses).mean()})
        trusted = [self._from_matched(*one) for one in zip(members, matched, strict=True)]
        doubted = [self._from_suspects(*one) for one in zip(members, suspects, strict=True) if one[1] is not None]
        terms = {"matched": torch.stack(trusted).mean()}
        if doubted:
            terms["suspects"] = torch.stack(doubted).mean()
        return Taught(loss=torch.stack(trusted + doubted).sum(), terms=terms)

    def match_probability(self, best: RetrievalModel) -> NDArray[np.float32]:
        """The mean of what both networks say in the end."""
        probability, _ = self._probabilities(best, (self.config.seed, FINAL_DIVISION))
        mean: NDArray[np.float32] = probability.mean(0).numpy()
        return mean

    def _probabilities(
        self, model: RetrievalModel, seed: tuple[int, ...], stop: Callable[[], None] = lambda: None
    ) -> tuple[Tensor, Tensor]:
        """(members, rows) match probabilities by each network's losses, and those losses."""
        margin, size = self.config.rematching.margin, self.config.batch_size
        losses = torch.stack(
            [
                pair_losses(one, self.batches, margin=margin, batch_size=size, seed=seed, stop=stop)
                for one in model.members
            ]
        )
        return torch.stack([GaussianMixture.fit(row).match_probability(row).float() for row in losses]), losses

    def _learns_from_suspects(self, epoch: int) -> bool:
        done = epoch - self.config.warmup_epochs
        return done >= self.config.ncr.suspects_from * self.config.rematching_epochs

    def _from_matched(self, member: RetrievalModel, batch: Batch | None) -> Tensor:
        assert batch is not None
        assert batch.weights is not None
        label = batch.weights + (1 - batch.weights) * self._predicted(member, batch)
        return self._violation(member, batch, label)

    def _from_suspects(self, member: RetrievalModel, batch: Batch | None) -> Tensor:
        assert batch is not None
        label = torch.stack([self._predicted(one, batch) for one in self.model.members]).mean(0)
        return self._violation(member, batch, label)

    def _predicted(self, member: RetrievalModel, batch: Batch) -> Tensor:
        S = member.similarity(batch.images, batch.captions, batch.lengths)
        return predicted_label(S, self.config.rematching.margin)

    def _violation(self, member: RetrievalModel, batch: Batch, label: Tensor) -> Tensor:
        scale = (10**label - 1) / 9 if self.config.ncr.soft_margin == "exponential" else label
        return soft_margin_violation(_similarity(member, batch), self.config.rematching.margin * scale)


def predicted_label(S: Tensor, margin: float) -> Tensor:
    """(B,) how matched the pairs on the diagonal of `S (B, B)` look, in [0, 1].

    `p = clamp(margin − ½ pair_loss, 0)`, in units of the mean of the best tenth of the batch.

    Example:
        >>> predicted_label(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 0.2)
        tensor([1., 0.])
    """
    p = (margin - 0.5 * pair_loss(S, margin)).clamp(min=0)
    best = p.topk(len(p) // 10 + 1).values.mean()
    return (p / best.clamp(min=1e-12)).clamp(max=1)


def soft_margin_violation(S: Tensor, margins: Tensor) -> Tensor:
    """Triplet loss with the hardest negative, summed; each pair of `S (B, B)` asks for its own of `margins (B,)`.

    Example:
        >>> soft_margin_violation(torch.eye(2), torch.tensor([0.5, 1.5]))
        tensor(1.)
    """
    to_caption, to_image = hinges(S, margins)
    return to_caption.amax(1).sum() + to_image.amax(0).sum()


def _similarity(member: RetrievalModel, batch: Batch | None) -> Tensor:
    assert batch is not None
    S: Tensor = member(batch.images, batch.captions, batch.lengths)
    return S
