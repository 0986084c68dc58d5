"""What a method of learning from partly mismatched pairs has to say; the trainer does the rest, the same for all."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l2rm.data.batches import Batch, Batches, shuffled
from l2rm.rematching import objectives
from l2rm.rematching.settings import HardObjective
from l2rm.similarity.model import RetrievalModel
from l2rm.training.divide import divide
from l2rm.training.lesson import Lesson
from l2rm.training.settings import TrainConfig

ORDER, MISMATCHED, DIVISION, FINAL_DIVISION = range(4)
"""Streams of random numbers that the batches of one epoch are drawn from, with the seed and the epoch."""

Step = tuple[Lesson | None, ...]
"""What one gradient step reads: a lesson, or one of matched pairs and one of suspects, or what a method makes of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Taught:
    """What one step found: the `loss` to be differentiated, its `terms` and further `facts` by name.

    Means of `terms` over an epoch are its `losses` in the metrics, those of `facts` its `transport` statistics.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    facts: dict[str, float | Tensor] = field(default_factory=dict)


class Method(ABC):
    """One way of learning; `model` is trained by the trainer, all else that changes is in `state` and in `parts`.

    In the order in which the trainer asks, every epoch: `restarts`, `set_learning_rate`, `divide`, `steps`, then
    `learn` for each step. `state` holds tensors, numbers, strings and containers of them, and is saved with the run.

    Args:
        model: of `networks` members.
        batches: all training pairs.
        config: of the run.
    """

    divides: ClassVar[bool] = False
    """Whether it finds out match probabilities; where not, those of `pairs.parquet` are only what the model says."""

    def __init__(self, model: RetrievalModel, batches: Batches, config: TrainConfig) -> None:
        self.model, self.batches, self.config = model, batches, config
        self.rows = np.arange(len(batches))
        self.state: dict[str, Any] = {}
        self.keep: Callable[[], None] = lambda: None
        """To be called in `divide` whenever `state` holds a part that need not be done again: it may be saved."""

    # ------------------------------------------------------------------------------------------------- an epoch

    def stage(self, epoch: int) -> str:
        """What an epoch (from 0) is called."""
        return "training"

    @abstractmethod
    def objective(self, epoch: int) -> str:
        """What pairs taken as matched teach in an epoch."""

    def restarts(self, epoch: int) -> bool:
        """Whether the model and its optimiser begin anew with an epoch."""
        return False

    def set_learning_rate(self, factor: float) -> None:
        """Multiply the starting learning rates of the method's own optimisers."""
        return

    def divide(self, epoch: int, stop: Callable[[], None]) -> dict[str, Any] | None:
        """Find out, before an epoch, which pairs to trust; statistics for the metrics, None where nothing was asked.

        Args:
            epoch: from 0.
            stop: called at every step of long work; may raise.
        """
        return None

    @abstractmethod
    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        """What each step of an epoch reads, decided by the seed and `state` alone; and how many steps there are."""

    def learn(self, epoch: int, *batches: Batch | None) -> Taught:
        """What the model learns from one step: unless a method says more, the objective on the first batch."""
        matched = batches[0]
        assert matched is not None
        S = self.model(matched.images, matched.captions, matched.lengths)
        loss = self.named_objective(epoch)(S, weights=matched.weights)
        return Taught(loss=loss, terms={"loss": loss})

    # ----------------------------------------------------------------------------------------------- the whole run

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What else learns, to be saved with the run."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`; its tensors come on the CPU."""
        self.state = state

    def match_probability(self, best: RetrievalModel) -> NDArray[np.float32]:
        """(rows,) what is known of the training pairs in the end: unless a method knows more, what `best` says."""
        config = self.config
        seed = (config.seed, FINAL_DIVISION)
        return divide(best, self.batches, config.rematching, batch_size=config.batch_size, seed=seed).match_probability

    def rematches(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(rows,) the image that each caption was last rematched to, -1 for none, and how sure that is, in [0, 1]."""
        return np.full(len(self.rows), -1), np.zeros(len(self.rows), dtype=np.float32)

    # --------------------------------------------------------------------------------------------- for subclasses

    @property
    def truth(self) -> NDArray[np.bool_] | None:
        """Which pairs are mismatched, where that is known: for oracle and metrics only."""
        return self.batches.pairs.is_mismatched

    def seed(self, epoch: int, stream: int) -> tuple[int, ...]:
        """Of one stream of random numbers of an epoch."""
        return self.config.seed, epoch, stream

    def full_pass(self, lesson: Lesson, epoch: int) -> tuple[Iterable[Step], int]:
        """One pass over a lesson."""
        batches = lesson.batches(self.config.batch_size, seed=self.seed(epoch, ORDER))
        return [(batch,) for batch in batches], len(batches)

    def equal_steps(self, lesson: Lesson, epoch: int) -> tuple[Iterable[Step], int]:
        """A lesson cycled for as many gradient steps as all pairs would make."""
        size, count = self.config.batch_size, self.steps_of_all(epoch)
        return [(batch,) for batch in lesson.steps(size, count, seed=self.seed(epoch, ORDER))], count

    def steps_of_all(self, epoch: int) -> int:
        """Gradient steps in one pass over all pairs."""
        return len(shuffled(self.rows, self.config.batch_size, seed=self.seed(epoch, ORDER)))

    def named_objective(self, epoch: int) -> Callable[..., Tensor]:
        """The objective of an epoch, its parameter filled in."""
        settings = self.config.rematching
        name: HardObjective = self.objective(epoch)  # type: ignore[assignment]
        return objectives.named(name, margin=settings.margin, tau=settings.tau)


def chosen_objective(config: TrainConfig, *, warming_up: bool) -> HardObjective:
    """The single objective that `config.objective` stands for.

    Raises:
        ValueError: "auto", which stands for several.
    """
    if config.objective == "auto":
        raise ValueError('a Trainer needs a single objective; `train` tries those that "auto" stands for')
    if config.objective == "two_stage":
        return "symmetric_cross_entropy" if warming_up else "max_violation"
    return config.objective
