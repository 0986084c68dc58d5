"""All that a run needs to go on as if it had never stopped: one named dict, saved in `last/`, and the one before it."""

import logging
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from l2rm.errors import InputError
from l2rm.files import remove_leftovers, written_whole

FILE, BEFORE = "state.pt", "state.before.pt"
log = logging.getLogger("l2rm")


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `last/`: tensors, numbers, strings and containers of them, and the state of torch's generators.

    One file, which replaces the one before at a stroke: a kill leaves the old or the new, never neither. The one before
    is kept under another name, for the day that the disk spoils the new one.
    """
    newest = folder / "last" / FILE
    with written_whole(newest) as beside:
        torch.save({**state, "generators": generators()}, beside)
        if newest.exists():
            os.replace(newest, newest.with_name(BEFORE))


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read `last/` and set the generators; None where nothing was saved yet. Executes no pickle.

    A file that is damaged is told of in a warning, and the one before it is taken.

    Raises:
        InputError: every file that is there is damaged.
    """
    last = folder / "last"
    remove_leftovers(last)
    refusals: list[InputError] = []
    for path in (last / FILE, last / BEFORE):
        if not path.is_file():
            continue
        try:
            state = _read(path)
        except InputError as refusal:
            refusals.append(refusal)
            continue
        if refusals:
            log.warning("%s; going on from the one before it, %s", refusals[0], path.name)
        set_generators(state.pop("generators"))
        return state
    if refusals:
        raise InputError(f"{refusals[0]}; delete the RUN folder and train again") from refusals[0]
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes a checksum of every record, but never looks at it
            if (record := archive.testzip()) is not None:
                raise InputError(f"{path}: is damaged (the checksum of {record} is wrong)")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state["generators"]["cpu"], torch.Tensor):
            raise TypeError("no state of a generator in it")
    except InputError:
        raise
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read ({reason})") from error
    return state


def generators() -> dict[str, torch.Tensor]:
    """The state of torch's generators of random numbers, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": value for i, value in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_generators(states: dict[str, torch.Tensor]) -> None:
    """Put generators back to what `generators` told; those of devices that are not here are left out."""
    for device, value in states.items():
        if device == "cpu":
            torch.set_rng_state(value)
        elif device == "mps":
            if torch.backends.mps.is_available():
                torch.mps.set_rng_state(value)
        elif torch.device(device).index < torch.cuda.device_count():  # a run may be resumed on another machine
            torch.cuda.set_rng_state(value, device)
