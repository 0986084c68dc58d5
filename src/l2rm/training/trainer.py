"""One run, whatever the method: epochs, gradient steps, the best model on dev, and what is saved to go on from."""

import logging
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from l2rm.data.batches import Batch, Batches, ahead
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.metrics import evaluate_scores
from l2rm.evaluation.scores import Stoppable
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.training.failure import undone_if_not_finite
from l2rm.training.interrupt import Interrupted, Interruption, interruptible
from l2rm.training.methods.method import Method, Step
from l2rm.training.methods.registry import method_of
from l2rm.training.optimiser import make_optimiser, set_learning_rate
from l2rm.training.processes import agreed, is_first, share, sum_gradients, unite, wait
from l2rm.training.run import write_lines, write_model
from l2rm.training.settings import TrainConfig
from l2rm.training.state import load_state, save_state

log = logging.getLogger("l2rm")


class Trainer:
    """Trains one model with one configuration in one folder; `fit` starts or resumes.

    What is learned from is the method's business. Everything that changes while it runs is in `state` and the method's
    `state` (dicts of tensors, numbers and strings), in the model, in the optimiser and in the method's parts; `save`
    writes them all. `state["taken"]` counts the gradient steps since the weights were fresh.
    """

    def __init__(
        self, model: RetrievalModel, pairs: Pairs, dev: Pairs, config: TrainConfig, folder: Path, *, progress: bool
    ) -> None:
        device = next(model.parameters()).device
        self.model, self.dev, self.config, self.folder, self.progress = model, dev, config, folder, progress
        self.batches = Batches(pairs, model.vocabulary, device)
        self.method: Method = method_of(config)(share(model), self.batches, config)
        self.optimiser = make_optimiser(model, config)
        self.state: dict[str, Any] = {
            "epoch": 0,
            "step": 0,
            "taken": 0,
            "best": None,
            "lines": [],
            "sums": {},
            "division": None,
            "seconds": 0.0,
            "rows": len(pairs),
        }

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
        for part in (self.model, *self.method.parts().values()):
            if isinstance(part, nn.Module):
                unite(part)
        try:
            with interruptible(agreed) as interruption:
                while self.state["epoch"] < self.config.epochs:
                    self._train_epoch(interruption)
                    self._end_epoch(interruption)
                    interruption.check()
        except Interrupted:
            wait()  # for the first process to have saved
            raise
        wait()
        best = self.state["best"]
        if best["stage"] == "warm-up" and self.config.rematching_epochs:
            log.warning("the best model on dev is of the warm-up (epoch %d): no later epoch beat it", best["epoch"])

    def stage(self, epoch: int) -> str:
        """What an epoch (from 0) is: warm-up, rematching, training, or what else the method calls it."""
        return self.method.stage(epoch)

    def objective(self, epoch: int) -> str:
        """What pairs taken as matched teach in an epoch (from 0)."""
        return self.method.objective(epoch)

    def _train_epoch(self, interruption: Interruption) -> None:
        state, epoch = self.state, self.state["epoch"]
        started = saved = time.monotonic()
        if state["step"] == 0 and self.method.restarts(epoch):
            self._restart()
        self.method.set_learning_rate(self.config.learning_rate_factor(epoch))
        if state["division"] is None:
            self._divide(interruption)
        steps, total = self.method.steps(epoch)
        self.method.model.train()
        with ahead(self._read, islice(steps, state["step"], None)) as read:
            bar = tqdm(
                read,
                initial=state["step"],
                total=total,
                desc=f"epoch {epoch + 1}/{self.config.epochs} {self.stage(epoch)}",
                disable=None if self.progress and is_first() else True,
                leave=False,
            )
            for batches in bar:
                set_learning_rate(self.optimiser, self.config, epoch, state["taken"])
                with undone_if_not_finite(self, batches):
                    self._learn(epoch, *batches)
                state["step"] += 1
                state["taken"] += 1
                now, asked = time.monotonic(), interruption.asked()
                if asked is not None or now - saved > self.config.save_seconds:
                    state["seconds"] += now - started
                    started = saved = now
                    self.save()
                if asked is not None:
                    raise Interrupted(asked)
        state["seconds"] += time.monotonic() - started

    def _divide(self, interruption: Interruption) -> None:
        """Let the method divide the pairs; of long work, what it has finished is saved now and then."""
        epoch, saved = self.state["epoch"], time.monotonic()
        if self.method.restarts(epoch):  # a save would find it restarted, and restart it again
            self.state["division"] = self.method.divide(epoch, interruption.check)
            return

        def keep() -> None:
            nonlocal saved
            if time.monotonic() - saved > self.config.save_seconds:
                self.save()
                saved = time.monotonic()

        self.method.keep = keep
        try:
            self.state["division"] = self.method.divide(epoch, interruption.check)
        except Interrupted:
            self.save()
            raise

    def _restart(self) -> None:
        """Fresh weights, and an optimiser that remembers nothing."""
        fresh = build_model(self.model.config, self.model.shape, networks=self.config.networks)
        self.model.load_state_dict(fresh.state_dict())
        self.optimiser.state.clear()
        self.state["taken"] = 0

    def _read(self, step: Step) -> tuple[Batch | None, ...]:
        return tuple(None if lesson is None else lesson.read(self.batches) for lesson in step)

    def _learn(self, epoch: int, *batches: Batch | None) -> None:
        """One gradient step."""
        taught = self.method.learn(epoch, *batches)
        self.optimiser.zero_grad()
        taught.loss.backward()
        sum_gradients(self.model)
        for member in self.model.members:
            norm = nn.utils.clip_grad_norm_(member.parameters(), self.config.clip)
            if not norm.isfinite():  # before it spoils the model
                raise FloatingPointError(f"the gradient is {float(norm)}")
        self.optimiser.step()
        self._count({f"transport.{name}": value for name, value in taught.facts.items()})
        self._count({name: value.detach() for name, value in taught.terms.items()})

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
            scores = Stoppable(ModelScores(self.method.model, self.dev), interruption.check)
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
            if is_first():
                write_model(self.folder, self.model, copy=True)
        state |= {"epoch": epoch + 1, "step": 0, "sums": {}, "division": None, "seconds": 0.0}
        if is_first():
            write_lines(self.folder / "metrics.jsonl", state["lines"])
        self.save()

    def save(self) -> None:
        """Write `last/`."""
        if not is_first():
            return
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        save_state(self.folder, {**self.state, "method": self.method.state, **parts})

    def _restore(self) -> None:
        saved = load_state(self.folder)
        if saved is None:
            return
        if saved.get("rows") != self.state["rows"]:
            raise InputError(
                f"{self.folder}: was trained on {saved.get('rows')} pairs, not on these {self.state['rows']}; "
                "resume with the same data"
            )
        for name, part in self._parts().items():
            part.load_state_dict(saved.pop(name))
        self.method.restore(saved.pop("method"))
        self.state |= saved
        log.info("resumed at epoch %d, step %d", self.state["epoch"] + 1, self.state["step"])

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimiser": self.optimiser, **self.method.parts()}


def _summary(line: dict[str, Any], epochs: int) -> str:
    losses = ", ".join(f"{name} {value:.3f}" for name, value in line["losses"].items())
    text = f"epoch {line['epoch']}/{epochs} {line['stage']}: dev rSum {line['dev']['rsum']:.1f}, {losses}"
    if division := line["division"]:
        text += f", {division['matched']} matched of {division['matched'] + division['mismatched']}"
        if "accuracy" in division:
            text += f" (accuracy {100 * division['accuracy']:.1f} %)"
    return f"{text}, {line['seconds']['train']:.0f} s"
