"""A step whose loss or gradient is not finite is undone, and the pairs that it was of are told."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from l2rm.data.batches import Batch
from l2rm.training.processes import is_first
from l2rm.training.run import write_json
from l2rm.training.state import generators, set_generators

if TYPE_CHECKING:
    from l2rm.training.trainer import Trainer

FILE = "not_finite.json"
LISTED = 5


@contextmanager
def undone_if_not_finite(trainer: "Trainer", batches: Sequence[Batch | None]) -> Iterator[None]:
    """Where the step inside the block fails by a `FloatingPointError`, save the run as it was before that step.

    All pair ids of the step are written to `not_finite.json` in the RUN folder.

    Raises:
        RuntimeError: the step failed so; names the epoch, the step and the first pair ids.
    """
    rows = np.concatenate([batch.rows for batch in batches if batch is not None])
    before = _Before(trainer, rows)
    try:
        yield
    except FloatingPointError as error:
        before.come_back(trainer)
        trainer.save()
        pair_ids = trainer.batches.pairs.pair_ids
        ids = list(dict.fromkeys(pair_ids[row] for row in rows))
        epoch, step = trainer.state["epoch"] + 1, trainer.state["step"] + 1
        told = {"epoch": epoch, "step": step, "what": str(error), "pair_ids": ids}
        if is_first():
            write_json(trainer.folder / FILE, told)
        more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
        raise RuntimeError(
            f"epoch {epoch}, step {step}: {error}; the run is saved as it was before. The step was of pairs "
            f"{', '.join(ids[:LISTED])}{more} (all in {trainer.folder / FILE}): look at their features, or train anew "
            "with a smaller learning rate"
        ) from error


class _Before:
    """What a step may change before its gradient is known to be finite."""

    def __init__(self, trainer: "Trainer", rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows)
        self.sums, self.generators = dict(trainer.state["sums"]), generators()
        self.buffers = [buffer.clone() for buffer in trainer.model.buffers()]  # means and variances of norms
        self.parts = {name: copy.deepcopy(part.state_dict()) for name, part in trainer.method.parts().items()}
        self.state = dict(trainer.method.state)
        self.entries = {name: value[self._at(value)].clone() for name, value in self._by_row(trainer)}

    def come_back(self, trainer: "Trainer") -> None:
        trainer.state["sums"] = self.sums
        trainer.method.state |= self.state
        for name, value in self._by_row(trainer):
            value[self._at(value)] = self.entries[name]
        for name, part in trainer.method.parts().items():
            part.load_state_dict(self.parts[name])
        for buffer, before in zip(trainer.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        set_generators(self.generators)

    def _at(self, value: Tensor) -> Tensor:
        return self.rows.to(value.device)

    @staticmethod
    def _by_row(trainer: "Trainer") -> list[tuple[str, Any]]:
        """Tensors with an entry for each pair, which a step changes in place."""
        total = (len(trainer.batches),)
        items = trainer.method.state.items()
        return [(name, value) for name, value in items if isinstance(value, Tensor) and value.shape[:1] == total]
