"""A rematched data set as files: a table to train on, an index file, a filter list for WebDataset."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from l2rm.auditing.rematch import Rematched
from l2rm.data.mismatch import Mismatched, write_index
from l2rm.data.tables import SUFFIXES, write_table
from l2rm.errors import InputError
from l2rm.files import written_whole

INDEX = ".npy"
FILTERS = (".jsonl", ".txt")


def check_new(path: Path, suffixes: Sequence[str]) -> None:
    """A file that may be written: of a known kind, and not there yet, so that no input can be lost.

    Raises:
        InputError: another suffix, or the file exists.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: {path.suffix or 'no suffix'} is nothing to write; use one of {', '.join(suffixes)}")
    if path.exists():
        raise InputError(f"{path}: is there already, and nothing is overwritten; choose another name or remove it")


def write_rematched(rematched: Rematched, path: str | Path, *, keep_dropped: bool = False) -> int:
    """Write the repaired data set in the form that the suffix names, and return how many rows that is.

    A table (.csv, .tsv, .jsonl, .parquet) has the columns of `Rematched.table` and leaves dropped rows out. An index
    file (.npy, the image from 0 that each caption is given) cannot leave any out: dropped captions keep their image.

    Args:
        rematched: what to write.
        path: a new file.
        keep_dropped: leave dropped rows in the table, with the image that they had; the column `decision` tells.

    Raises:
        InputError: another suffix, the file exists, or no row is left.
    """
    path = Path(path)
    check_new(path, (*SUFFIXES, INDEX))
    pairs = rematched.pairs_given
    if path.suffix.lower() == INDEX:
        repaired = replace(pairs, image_of=rematched.image_of)
        changed = rematched.image_of != pairs.image_of
        write_index(
            path, Mismatched(pairs=repaired, is_mismatched=changed, ratio=float(changed.mean()), level="caption")
        )
        return len(pairs)
    kept = np.flatnonzero((rematched.decision != "drop") | keep_dropped)
    if not len(kept):
        raise InputError(f"{path}: every pair would be dropped; lower --rematch-threshold or --keep-threshold")
    table = rematched.table.take(kept)
    write_table(path, {name: table[name].to_pylist() for name in table.column_names})
    return len(kept)


def write_filter(rematched: Rematched, path: str | Path) -> None:
    """Write what to do with the samples of a WebDataset whose images these are.

    The key of a sample is its image's name up to the first dot of the last part, as WebDataset has it in `__key__`.

    - `.jsonl`: a line a pair: `{"key", "decision", "partner", "pair_id", "caption"}`. `partner` is the key of the
      sample whose image the caption goes with: another one where the decision is `rematch`, none (null) at `drop`.
    - `.txt`: the keys, one a line, of the samples to keep as they are: those all of whose pairs are kept.

    Raises:
        InputError: another suffix, or the file exists.
    """
    path = Path(path)
    check_new(path, FILTERS)
    pairs, decisions = rematched.pairs_given, rematched.decision
    keys = [sample_key(image) for image in pairs.images]
    if path.suffix.lower() == ".txt":
        bad = {keys[image] for image in pairs.image_of[decisions != "keep"]}
        lines = [key for key in dict.fromkeys(keys[image] for image in pairs.image_of) if key not in bad]
    else:
        lines = [
            json.dumps(
                {
                    "key": keys[pairs.image_of[row]],
                    "decision": str(decisions[row]),
                    "partner": None if decisions[row] == "drop" else keys[rematched.image_of[row]],
                    "pair_id": pairs.pair_ids[row],
                    "caption": pairs.captions[row],
                },
                ensure_ascii=False,
            )
            for row in range(len(pairs))
        ]
    with written_whole(path) as beside:
        beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def sample_key(image: str) -> str:
    """The WebDataset key of an image's name.

    Example:
        >>> sample_key("shard/000012.rgb.jpg"), sample_key("000012.jpg")
        ('shard/000012', '000012')
    """
    path = PurePosixPath(image)
    return str(path.with_name(path.name.split(".")[0] or path.name))
