"""`l2rm` beyond the batch: the suspects of the whole data set are rematched at once, then taught like given pairs."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.data.batches import Batches
from l2rm.evaluation.scores import Stoppable
from l2rm.rematching.partners import Partners
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.scoring import ModelScores
from l2rm.training.divide import Division
from l2rm.training.judge import Judgement
from l2rm.training.lesson import Lesson
from l2rm.training.methods.divided import Divided
from l2rm.training.methods.method import Step
from l2rm.training.settings import TrainConfig
from l2rm.training.suspects import partners_of_suspects, with_partners

log = logging.getLogger("l2rm")


class RematchDataset(Divided):
    """After the warm-up, every caption with its given image, and every suspect also with the image a plan gives it.

    Every `rematching.rematch_every` epochs the model so far scores all suspects and all images that have room, and one
    sparse transport plan gives each suspect a partner (`find_partners`). With match probability p, a caption teaches
    with its given image at weight p (or 1 above `matched_above`, by `rematching.take`), with its partner at weight
    `rematch_weight · (1 − p)`. A similar image teaches too, so partners count whether or not the plan is sure of them.
    With `rematching.judge` that run's partners stand, and no plan is made.
    Suspects have taught nothing before the first plan, so the model has not learned their given images by heart. An
    epoch makes as many gradient steps as one over all pairs.
    """

    def __init__(self, model: RetrievalModel, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        self.state |= {
            "rematch_image": torch.full((len(self.rows),), -1),
            "rematch_share": torch.zeros(len(self.rows)),
            "plan": None,
        }

    @property
    def later_stage(self) -> str:
        return "rematching"

    def divide(self, epoch: int, stop: Callable[[], None]) -> dict[str, Any] | None:
        statistics = super().divide(epoch, stop)
        if self.stage(epoch) == "warm-up":
            return statistics
        assert statistics is not None
        settings = self.config.rematching
        if not settings.judge and (epoch - self.config.warmup_epochs) % settings.rematch_every == 0:
            self._rematch(statistics.get("evidence", settings.evidence), stop)
        return statistics | {"plan": self.state["plan"]}

    def adopted(self, judgement: Judgement) -> Division:
        self.state["rematch_image"] = torch.from_numpy(judgement.rematch_image)
        self.state["rematch_share"] = torch.from_numpy(judgement.rematch_share)
        return super().adopted(judgement)

    def _rematch(self, evidence: str, stop: Callable[[], None]) -> None:
        """Find the suspects new partners."""
        probability = self.state["match_probability"].numpy()
        scores = Stoppable(ModelScores(self.model, self.batches.pairs), stop)
        found = partners_of_suspects(scores, self.batches.pairs, probability, self.config, evidence)
        self.state["rematch_image"] = torch.from_numpy(found.suggested[:, 0].copy())
        self.state["rematch_share"] = torch.from_numpy(found.confidence).float()
        self.state["plan"] = self._told(found)

    def _told(self, found: Partners) -> dict[str, Any] | None:
        """What the metrics tell of a plan; with the truth, how many of all mismatched captions got their own image."""
        if found.plan is None:
            return None
        plan, pairs = found.plan, self.batches.pairs
        facts: dict[str, Any] = {name: getattr(plan, name) for name in ("mass", "marginal_error", "iterations")}
        facts |= {"converged": plan.converged, "reg": found.reg}
        if self.truth is not None and pairs.true_image_of is not None and self.truth.any():
            facts["hit1"] = float((found.suggested[:, 0] == pairs.true_image_of)[self.truth].mean())
            log.info("rematched: %.1f %% of all mismatched captions got their own image", 100 * facts["hit1"])
        return facts

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        if self.stage(epoch) == "warm-up":
            return self.full_pass(self.everything(), epoch)
        return self.equal_steps(self.repaired(), epoch)

    def repaired(self) -> Lesson:
        """Given pairs as far as they are taken as matched, and rematched ones."""
        settings, given = self.config.rematching, self.batches.pairs.image_of
        probability: NDArray[np.float32] = self.state["match_probability"].numpy()
        partner = self.state["rematch_image"].numpy()
        trust = probability if settings.take == "weight" else (probability > settings.matched_above).astype(np.float32)
        return with_partners(self.rows, given, trust, partner, settings.rematch_weight * (1 - probability))

    def rematches(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self.state["rematch_image"].numpy(), self.state["rematch_share"].numpy()
