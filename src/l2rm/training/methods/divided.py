"""What `division` and `l2rm` share: a warm-up on all pairs, and a sample division."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.batches import Batches
from l2rm.rematching.settings import HardObjective
from l2rm.similarity.model import RetrievalModel
from l2rm.training.crossfit import cross_fit, recognise_evidence
from l2rm.training.divide import Division, divide
from l2rm.training.judge import Judgement, read_judgement
from l2rm.training.lesson import Lesson
from l2rm.training.methods.method import DIVISION, Method
from l2rm.training.settings import TrainConfig

log = logging.getLogger("l2rm")


class Divided(Method):
    """A warm-up by symmetric cross entropy, then every epoch a division by the model's own losses.

    With `rematching.folds` there is one division, cross-fitted, before all else, and with `rematching.judge` that of
    another run; with `rematching.take="weight"` every pair then counts by its match probability from the first epoch.
    """

    divides = True

    def __init__(self, model: RetrievalModel, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        self.state |= {"evidence": None, "match_probability": None, "cross_fitted": None, "folds": []}

    def stage(self, epoch: int) -> str:
        return "warm-up" if epoch < self.config.warmup_epochs else self.later_stage

    @property
    def later_stage(self) -> str:
        """What the epochs after the warm-up are called."""
        return "training"

    def objective(self, epoch: int) -> HardObjective:
        warming_up = self.stage(epoch) == "warm-up"
        return "symmetric_cross_entropy" if warming_up else self.config.rematching.matched_objective

    def divide(self, epoch: int, stop: Callable[[], None]) -> dict[str, Any] | None:
        """
        Raises:
            RuntimeError: fewer than two pairs are taken as matched.
        """
        settings = self.config.rematching
        if (cross_fitted := self.state["cross_fitted"]) is not None:
            return dict(cross_fitted)
        if not (settings.folds or settings.judge) and self.stage(epoch) == "warm-up":
            return None
        started = time.monotonic()
        if settings.judge:
            division = self.adopted(read_judgement(self.batches.pairs, settings))
        else:
            division = self._by_folds(stop) if settings.folds else self._own(epoch, stop)
        self.state["match_probability"] = torch.from_numpy(division.match_probability)
        statistics = division.statistics(settings.matched_above, self.truth)
        statistics["seconds"] = time.monotonic() - started
        if settings.judge or settings.folds:
            statistics["evidence"] = self._evidence(stop)
            self.state["cross_fitted"] = statistics
        if (matched := statistics["matched"]) < 2:
            raise RuntimeError(
                f"the sample division of epoch {epoch + 1} takes {matched} pairs as matched, "
                "so nothing is left to learn from; warm up longer, or with a smaller learning rate"
            )
        return statistics

    def adopted(self, judgement: Judgement) -> Division:
        """The division of another run, which stands for all epochs."""
        self.state["evidence"] = judgement.evidence
        probability = judgement.match_probability
        return Division(losses=1 - probability, match_probability=probability, facts={})

    def _by_folds(self, stop: Callable[[], None]) -> Division:
        """By models of other images; the folds that are finished stand in `state` meanwhile."""
        done = self.state["folds"]

        def finished(p_values: Tensor) -> None:
            done.append(p_values)
            self.keep()

        config = replace(self.config, rematching=replace(self.config.rematching, evidence=self._evidence(stop)))
        division = cross_fit(self.model, self.batches, config, stop=stop, done=tuple(done), finished=finished)
        self.state["folds"] = []
        return division

    def _evidence(self, stop: Callable[[], None]) -> Literal["pair", "image"]:
        """What is ranked by folds; found out once where the configuration leaves it open, told by a judge."""
        settings = self.config.rematching
        if settings.evidence != "auto" and not settings.judge:
            return settings.evidence
        if self.state["evidence"] is None:
            self.state["evidence"], correlation = recognise_evidence(self.model, self.batches, self.config, stop=stop)
            log.info("captions of an image go astray with correlation %.2f: by %s", correlation, self.state["evidence"])
        evidence: Literal["pair", "image"] = self.state["evidence"]
        return evidence

    def _own(self, epoch: int, stop: Callable[[], None]) -> Division:
        """By the losses of the model that is being trained."""
        previous = self.state["match_probability"]
        return divide(
            self.model,
            self.batches,
            self.config.rematching,
            batch_size=self.config.batch_size,
            seed=self.seed(epoch, DIVISION),
            previous=None if previous is None else previous.numpy(),
            stop=stop,
        )

    def everything(self) -> Lesson:
        """All pairs, by match probability where that is to weigh them and is known."""
        probability = self.state["match_probability"]
        if self.config.rematching.take != "weight" or probability is None:
            return Lesson(rows=self.rows)
        return Lesson(rows=self.rows, weights=probability.numpy())

    def divided(self) -> tuple[Lesson, NDArray[np.int64]]:
        """What to learn from as matched, and the rows of the suspects."""
        matched = self.state["match_probability"].numpy() > self.config.rematching.matched_above
        if self.config.rematching.take == "weight":
            return self.everything(), self.rows[~matched]
        return Lesson(rows=self.rows[matched]), self.rows[~matched]

    def match_probability(self, best: RetrievalModel) -> NDArray[np.float32]:
        """That of the cross-fitted division, where there was one."""
        if self.state["cross_fitted"] is None:
            return super().match_probability(best)
        probability: NDArray[np.float32] = self.state["match_probability"].numpy()
        return probability
