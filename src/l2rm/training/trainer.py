"""One run: warm-up, then every epoch sample division and rematching (or what another method does instead)."""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from l2rm.data.batches import Batch, Batches, ahead, cycled, shuffled
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.metrics import evaluate_scores
from l2rm.evaluation.scores import Stoppable
from l2rm.rematching import objectives
from l2rm.rematching.cost import LinearCost
from l2rm.rematching.settings import HardObjective
from l2rm.rematching.step import RematchingStep
from l2rm.rematching.transport import TransportPlan
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.scoring import ModelScores
from l2rm.training.crossfit import cross_fit
from l2rm.training.divide import Division, divide
from l2rm.training.failure import undone_if_not_finite
from l2rm.training.interrupt import Interrupted, Interruption, interruptible
from l2rm.training.run import write_lines, write_model
from l2rm.training.settings import TrainConfig
from l2rm.training.state import load_state, save_state

log = logging.getLogger("l2rm")
ORDER, MISMATCHED, DIVISION = range(3)
"""Streams of random numbers that the batches of one epoch are drawn from, with the seed and the epoch."""

Step = tuple[NDArray[np.int64], NDArray[np.int64] | None]
"""Rows to learn from as matched, and rows to rematch, if any."""


class Trainer:
    """Trains one model with one configuration in one folder; `fit` starts or resumes.

    Everything that changes while it runs is in `state` (a dict of tensors, numbers and strings), in the model, in the
    cost and in the two optimisers; `save` writes them all.
    """

    def __init__(
        self, model: RetrievalModel, pairs: Pairs, dev: Pairs, config: TrainConfig, folder: Path, *, progress: bool
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.dev, self.config, self.folder, self.progress = model, dev, config, folder, progress
        self.batches = Batches(pairs, model.vocabulary, device)
        self.truth = pairs.is_mismatched
        self.rows = np.arange(len(pairs))
        self.cost: nn.Module = LinearCost(config.batch_size).to(device)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        self.cost_optimiser = torch.optim.Adam(self.cost.parameters(), lr=config.rematching.cost_lr)
        self.rematching_step = RematchingStep(model, self.cost, self.cost_optimiser, config.rematching)
        queue = np.random.default_rng((config.seed, len(pairs))).integers(pairs.n_images, size=self._queue_extra)
        self.state: dict[str, Any] = {
            "epoch": 0,
            "step": 0,
            "best": None,
            "lines": [],
            "sums": {},
            "division": None,
            "cross_fitted": None,
            "folds": [],
            "seconds": 0.0,
            "match_probability": None,
            "queue": torch.from_numpy(queue).to(device),
            "rematch_image": torch.full((len(pairs),), -1, device=device),
            "rematch_share": torch.zeros(len(pairs), device=device),
        }

    @property
    def _queue_extra(self) -> int:
        return max(0, self.config.rematching.queue_size - self.config.batch_size)

    # ---------------------------------------------------------------------------------------------------- the run

    def fit(self, *, resume: bool) -> None:
        """Train to the last epoch; what was saved before, if `resume`, is not done again.

        Raises:
            Interrupted: a signal asked to stop; the run was saved.
            InputError: what was saved is damaged, or is of other pairs.
            RuntimeError: a gradient or a loss is not finite (the run was saved as it was before), or the sample
                division leaves nothing to learn from.
        """
        if resume:
            self._restore()
        with interruptible() as interruption:
            while self.state["epoch"] < self.config.epochs:
                self._train_epoch(interruption)
                self._end_epoch(interruption)
                if interruption.signal is not None:
                    raise Interrupted(interruption.signal)
        best = self.state["best"]
        if best["stage"] == "warm-up" and self.config.rematching_epochs:
            log.warning("the best model on dev is of the warm-up (epoch %d): no later epoch beat it", best["epoch"])

    def stage(self, epoch: int) -> str:
        """What an epoch (from 0) is: warm-up, rematching, or training (methods without stages)."""
        if epoch < self.config.warmup_epochs and (self.config.method == "l2rm" or self.config.objective == "two_stage"):
            return "warm-up"
        return "rematching" if self.config.method == "l2rm" else "training"

    def _train_epoch(self, interruption: Interruption) -> None:
        state, epoch = self.state, self.state["epoch"]
        for optimiser, lr in ((self.optimiser, self.config.lr), (self.cost_optimiser, self.config.rematching.cost_lr)):
            for group in optimiser.param_groups:
                group["lr"] = lr * self.config.learning_rate_factor(epoch)
        started = saved = time.monotonic()
        if self._is_divided(epoch) and state["division"] is None:
            self._divide(interruption)
        steps, total = self._steps(epoch)
        self.model.train()
        with ahead(self._read, islice(steps, state["step"], None)) as batches:
            bar = tqdm(
                batches,
                initial=state["step"],
                total=total,
                desc=f"epoch {epoch + 1}/{self.config.epochs} {self.stage(epoch)}",
                disable=None if self.progress else True,
                leave=False,
            )
            for batch, suspects in bar:
                with undone_if_not_finite(self, batch, suspects):
                    self._learn(epoch, batch, suspects)
                state["step"] += 1
                now = time.monotonic()
                if interruption.signal is not None or now - saved > self.config.save_seconds:
                    state["seconds"] += now - started
                    started = saved = now
                    self.save()
                if interruption.signal is not None:
                    raise Interrupted(interruption.signal)
        state["seconds"] += time.monotonic() - started

    def _steps(self, epoch: int) -> tuple[Iterator[Step], int]:
        """The batches of an epoch, and how many."""
        size, seed = self.config.batch_size, (self.config.seed, epoch)
        suspects: Iterator[NDArray[np.int64] | None] = repeat(None)
        if self.stage(epoch) == "rematching":
            matched, mismatched = self._divided()
            batches = shuffled(matched, size, seed=(*seed, ORDER))
            if len(np.unique(self.batches.pairs.image_of[mismatched])) > 1:  # else there is nothing to exchange
                suspects = cycled(mismatched, size, seed=(*seed, MISMATCHED))
        else:
            batches = shuffled(self.rows, size, seed=(*seed, ORDER))
            if self.config.method == "oracle":  # as many gradient steps as with all pairs
                assert self.truth is not None
                batches = list(islice(cycled(self.rows[~self.truth], size, seed=(*seed, ORDER)), len(batches)))
        return zip(batches, suspects, strict=False), len(batches)

    def _read(self, step: Step) -> tuple[Batch, Batch | None]:
        matched, mismatched = step
        return self.batches.batch(matched), None if mismatched is None else self.batches.batch(mismatched)

    def _learn(self, epoch: int, batch: Batch, suspects: Batch | None) -> None:
        """One gradient step."""
        weights = self._weights(epoch, batch.rows)
        if self.stage(epoch) == "rematching":
            result = self.rematching_step(self.batches, batch, suspects, self.state["queue"], weights)
            loss, terms = result.loss, result.terms
            if suspects is not None:
                self._count({"transport.skipped": float(result.plan is None)})
                self.state["queue"] = torch.cat([suspects.image_ids, self.state["queue"]])[: self._queue_extra]
            if suspects is not None and result.plan is not None and result.candidates is not None:
                self._remember(suspects.rows, result.candidates, result.plan)
        else:
            S = self.model(batch.images, batch.captions, batch.lengths)
            loss = self._objective(epoch)(S, weights=weights)
            terms = {"loss": loss}
        self.optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not norm.isfinite():  # before it spoils the model
            raise FloatingPointError(f"the gradient is {float(norm)}")
        self.optimiser.step()
        self._count({name: value.detach() for name, value in terms.items()})

    def objective(self, epoch: int) -> HardObjective:
        """What pairs taken as matched teach in an epoch (from 0)."""
        stage, chosen = self.stage(epoch), self.config.objective
        if stage == "rematching":
            return self.config.rematching.matched_objective
        if stage == "warm-up" or self.config.method == "warmup":
            return "symmetric_cross_entropy"
        if chosen == "two_stage":
            return "max_violation"
        if chosen == "auto":
            raise ValueError('a Trainer needs a single objective; `train` tries those that "auto" stands for')
        return chosen

    def _objective(self, epoch: int) -> Callable[..., Tensor]:
        settings = self.config.rematching
        return objectives.named(self.objective(epoch), margin=settings.margin, tau=settings.tau)

    # ------------------------------------------------------------------------------------- division and rematching

    def _is_divided(self, epoch: int) -> bool:
        """Whether match probabilities are known in an epoch: by folds from the first on, else after the warm-up."""
        by_folds = self.config.method == "l2rm" and self.config.rematching.folds > 0
        return by_folds or self.stage(epoch) == "rematching"

    def _weights(self, epoch: int, rows: NDArray[np.int64]) -> Tensor | None:
        """How far each row is taken as matched; None: in full."""
        if self.config.rematching.take != "weight" or not self._is_divided(epoch):
            return None
        weights: Tensor = self.state["match_probability"][torch.from_numpy(rows)]
        return weights.to(self.batches.device)

    def _divide(self, interruption: Interruption) -> None:
        started = time.monotonic()
        if self.state["cross_fitted"]:
            self.state["division"] = self.state["cross_fitted"]
            return
        if self.config.rematching.folds:
            division = self._cross_fitted(interruption)
        else:
            division = divide(
                self.model,
                self.batches,
                self.config.rematching,
                batch_size=self.config.batch_size,
                seed=(self.config.seed, self.state["epoch"], DIVISION),
                previous=None if self.state["match_probability"] is None else self.state["match_probability"].numpy(),
                stop=interruption.check,
            )
        self.state["match_probability"] = torch.from_numpy(division.match_probability)
        threshold = self.config.rematching.matched_above
        self.state["division"] = division.statistics(threshold, self.truth)
        self.state["division"]["seconds"] = time.monotonic() - started
        if self.config.rematching.folds:
            self.state["cross_fitted"] = self.state["division"]
        matched = division.match_probability > threshold
        if matched.sum() < 2:
            raise RuntimeError(
                f"the sample division of epoch {self.state['epoch'] + 1} takes {matched.sum()} pairs as matched, "
                "so nothing is left to learn from; warm up longer, or with a smaller learning rate"
            )

    def _cross_fitted(self, interruption: Interruption) -> Division:
        """The division by folds; those that are finished are saved, so that they are not computed again."""
        done, saved = self.state["folds"], time.monotonic()

        def finished(p_values: Tensor) -> None:
            nonlocal saved
            done.append(p_values)
            if time.monotonic() - saved > self.config.save_seconds:
                self.save()
                saved = time.monotonic()

        try:
            division = cross_fit(
                self.model, self.batches, self.config, stop=interruption.check, done=tuple(done), finished=finished
            )
        except Interrupted:
            self.save()
            raise
        self.state["folds"] = []
        return division

    def _divided(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows to learn from as matched, and rows to rematch."""
        matched = self.state["match_probability"].numpy() > self.config.rematching.matched_above
        by_weight = self.config.rematching.take == "weight"
        return self.rows if by_weight else self.rows[matched], self.rows[~matched]

    def _remember(self, rows: NDArray[np.int64], candidates: Tensor, plan: TransportPlan) -> None:
        """Keep for each rematched caption the image that most of it went to, and the share that did."""
        share, row = plan.matrix.max(0)
        index = torch.from_numpy(rows).to(share.device)
        self.state["rematch_image"][index] = torch.where(share > 0, candidates[row], -1)
        self.state["rematch_share"][index] = (share * plan.matrix.shape[1]).float()
        self._count(
            {"transport.mass": plan.mass, "transport.unconverged": float(not plan.converged)}
            | {"transport.marginal_error": plan.marginal_error, "transport.iterations": plan.iterations}
        )

    def _count(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            total, number = self.state["sums"].get(name, (0.0, 0))
            self.state["sums"][name] = (total + value, number + 1)

    # ------------------------------------------------------------------------------- what an epoch leaves behind

    def _end_epoch(self, interruption: Interruption) -> None:
        state, epoch = self.state, self.state["epoch"]
        means = {name: float(total) / number for name, (total, number) in state["sums"].items()}
        losses = {name: mean for name, mean in means.items() if not name.startswith("transport.")}
        if not np.isfinite(list(losses.values())).all():
            raise RuntimeError(f"the loss of epoch {epoch + 1} is not finite; train with a smaller learning rate")
        started = time.monotonic()
        try:
            scores = Stoppable(ModelScores(self.model, self.dev), interruption.check)
            dev = evaluate_scores(scores, self.dev.image_of)
        except Interrupted:
            self.save()  # with every step of the epoch done, so that it goes on from here
            raise
        line: dict[str, Any] = {"epoch": epoch + 1, "stage": self.stage(epoch), "objective": self.objective(epoch)}
        line |= {"lr": self.optimiser.param_groups[0]["lr"], "steps": state["step"], "losses": losses}
        line["division"] = state["division"]
        transport = {name.removeprefix("transport."): mean for name, mean in means.items() if name not in losses}
        line["transport"] = transport or None
        line["dev"] = dev.to_dict()
        line["seconds"] = {"train": state["seconds"], "dev": time.monotonic() - started}
        log.info("%s", _summary(line, self.config.epochs))
        state["lines"].append(line)
        if state["best"] is None or dev.rsum > state["best"]["rsum"]:
            state["best"] = {"rsum": dev.rsum, "epoch": epoch + 1, "stage": line["stage"]}
            write_model(self.folder, self.model, copy=True)
        state |= {"epoch": epoch + 1, "step": 0, "sums": {}, "division": None, "seconds": 0.0}
        write_lines(self.folder / "metrics.jsonl", state["lines"])
        self.save()

    def save(self) -> None:
        """Write `last/`."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        save_state(self.folder, {**self.state, **parts})

    def _restore(self) -> None:
        saved = load_state(self.folder)
        if saved is None:
            return
        if len(saved["rematch_image"]) != len(self.rows):
            raise InputError(
                f"{self.folder}: was trained on {len(saved['rematch_image'])} pairs, not on these "
                f"{len(self.rows)}; resume with the same data"
            )
        device = self.state["queue"].device
        for name, part in self._parts().items():
            part.load_state_dict(saved.pop(name))
        for name in ("queue", "rematch_image", "rematch_share"):
            saved[name] = saved[name].to(device)
        self.state |= saved
        log.info("resumed at epoch %d, step %d", self.state["epoch"] + 1, self.state["step"])

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "cost": self.cost,
            "optimiser": self.optimiser,
            "cost_optimiser": self.cost_optimiser,
        }


def _summary(line: dict[str, Any], epochs: int) -> str:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in line["losses"].items())
    text = f"epoch {line['epoch']}/{epochs} {line['stage']}: dev rSum {line['dev']['rsum']:.1f}, {losses}"
    if division := line["division"]:
        text += f", {division['matched']} matched of {division['matched'] + division['mismatched']}"
        if "accuracy" in division:
            text += f" (accuracy {100 * division['accuracy']:.1f} %)"
    return f"{text}, {line['seconds']['train']:.0f} s"
