"""A rematched data set as files: a table to train on, an index file, a filter list for WebDataset."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from l2rm.auditing.rematch import Rematched
from l2rm.data.mismatch import Mismatched, write_index
from l2rm.data.shards import sample_of
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


def write_filter(rematched: Rematched, path: str | Path) -> int:
    """Write what to do with the samples of a WebDataset whose images these are.

    The key of a sample is its image's name up to the first dot of the last part, as WebDataset has it in `__key__`;
    `shard` is the `.tar` file that the name leads into, "" where it leads into none. Shards may share keys.

    - `.jsonl`: a line a pair: `{"key", "shard", "decision", "partner", "partner_shard", "pair_id", "caption"}`.
      `partner` is the key of the sample whose image the caption goes with: another one where the decision is `rematch`,
      none (null) at `drop`.
    - `.txt`: the keys, one a line, of the samples to keep as they are: those all of whose pairs are kept, in every
      shard that has the key.

    Returns:
        Samples that a `.txt` does not list although all their pairs are kept, as another shard's of that key is not.

    Raises:
        InputError: another suffix, or the file exists.
    """
    path = Path(path)
    check_new(path, FILTERS)
    pairs, decisions = rematched.pairs_given, rematched.decision
    samples = [sample_of(image) for image in pairs.images]
    unlisted = 0
    if path.suffix.lower() == ".txt":
        bad = {samples[image] for image in pairs.image_of[decisions != "keep"]}
        bad_keys = {key for _, key in bad}
        kept = dict.fromkeys(one for image in pairs.image_of if (one := samples[image]) not in bad)
        lines = list(dict.fromkeys(key for _, key in kept if key not in bad_keys))
        unlisted = sum(key in bad_keys for _, key in kept)
    else:
        lines = []
        for row, image in enumerate(pairs.image_of):
            shard, key = samples[image]
            goes_to = None if decisions[row] == "drop" else samples[rematched.image_of[row]]
            line = {
                "key": key,
                "shard": shard,
                "decision": str(decisions[row]),
                "partner": goes_to and goes_to[1],
                "partner_shard": goes_to and goes_to[0],
                "pair_id": pairs.pair_ids[row],
                "caption": pairs.captions[row],
            }
            lines.append(json.dumps(line, ensure_ascii=False))
    with written_whole(path) as beside:
        beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return unlisted
