"""A step whose loss or gradient is not finite is undone, and the pairs that it was of are told."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from l2rm.data.batches import Batch
from l2rm.training.run import write_json
from l2rm.training.state import generators, set_generators

if TYPE_CHECKING:
    from l2rm.training.trainer import Trainer

FILE = "not_finite.json"
LISTED = 5


@contextmanager
def undone_if_not_finite(trainer: "Trainer", matched: Batch, suspects: Batch | None) -> Iterator[None]:
    """Where the step inside the block fails by a `FloatingPointError`, save the run as it was before that step.

    All pair ids of the step are written to `not_finite.json` in the RUN folder.

    Raises:
        RuntimeError: the step failed so; names the epoch, the step and the first pair ids.
    """
    state = trainer.state
    before = {name: state[name] for name in ("queue", "rematch_image", "rematch_share")}
    sums, random = dict(state["sums"]), generators()
    cost, cost_optimiser = (copy.deepcopy(part.state_dict()) for part in (trainer.cost, trainer.cost_optimiser))
    try:
        yield
    except FloatingPointError as error:
        trainer.state |= {**before, "sums": sums}
        trainer.cost.load_state_dict(cost)
        trainer.cost_optimiser.load_state_dict(cost_optimiser)
        set_generators(random)
        trainer.save()
        ids = trainer.batches.pairs.pair_ids
        told = {
            "epoch": state["epoch"] + 1,
            "step": state["step"] + 1,
            "what": str(error),
            "pair_ids": [ids[row] for row in matched.rows],
            "rematched_pair_ids": [ids[row] for row in (() if suspects is None else suspects.rows)],
        }
        write_json(trainer.folder / FILE, told)
        several = [*told["pair_ids"], *told["rematched_pair_ids"]]
        more = f" and {len(several) - LISTED} more" if len(several) > LISTED else ""
        raise RuntimeError(
            f"epoch {told['epoch']}, step {told['step']}: {error}; the run is saved as it was before. The step was of "
            f"pairs {', '.join(several[:LISTED])}{more} (all in {trainer.folder / FILE}): look at their features, or "
            "train anew with a smaller learning rate"
        ) from error
