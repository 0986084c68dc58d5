"""All that a run needs to go on as if it had never stopped: one named dict, saved in `last/`."""

import pickle
from pathlib import Path
from typing import Any

import torch

from l2rm.errors import InputError
from l2rm.files import written_whole

FILE = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `last/`: tensors, numbers, strings and containers of them, and the state of torch's generators.

    One file, which replaces the one before at a stroke: a kill leaves the old or the new, never neither.
    """
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators |= {f"cuda:{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    with written_whole(folder / "last" / FILE) as beside:
        torch.save({**state, "generators": generators}, beside)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read `last/` and set the generators; None where nothing was saved yet. Executes no pickle.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / "last" / FILE
    for leftover in path.parent.glob(f".{path.stem}.*"):  # of a process that was killed while it saved
        leftover.unlink()
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        generators = state.pop("generators")
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read ({reason}); delete the RUN folder and train again") from error
    torch.set_rng_state(generators.pop("cpu"))
    for device, value in generators.items():
        if torch.device(device).index < torch.cuda.device_count():  # a run may be resumed on another machine
            torch.cuda.set_rng_state(value, device)
    return state
