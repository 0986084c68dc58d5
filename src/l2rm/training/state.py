"""All that a run needs to go on as if it had never stopped: one named dict, saved in `last/`."""

from pathlib import Path
from typing import Any

import torch

from l2rm.errors import InputError
from l2rm.files import folder_written_whole

FILE = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `last/`, whole or not at all: tensors, numbers, strings and containers of them, and the generators' state."""
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators |= {f"cuda:{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    with folder_written_whole(folder / "last") as beside:
        torch.save({**state, "generators": generators}, beside / FILE)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read `last/` and set the generators; None where nothing was saved yet. Executes no pickle.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / "last" / FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read ({reason}); delete the RUN folder and train again") from error
    generators = state.pop("generators")
    torch.set_rng_state(generators.pop("cpu"))
    for device, value in generators.items():
        torch.cuda.set_rng_state(value, device)
    return state


def seed_everything(seed: int) -> None:
    """Seed torch; NumPy generators are made from seeds where they are used."""
    torch.manual_seed(seed)
