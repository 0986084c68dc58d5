"""What a review leaves: decisions, the repaired pairs, a filter list, an index file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from l2rm.auditing.decisions import Choice
from l2rm.auditing.queue import UNDECIDED, ReviewQueue
from l2rm.data.shards import sample_of
from l2rm.data.tables import SUFFIXES, write_table
from l2rm.errors import InputError
from l2rm.files import written_whole

Kind = Literal["decisions", "pairs", "filter", "index"]
Undecided = Literal["audit", "keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """How many rows a file got, and what it cannot tell (one line, "" where it tells everything)."""

    rows: int
    note: str = ""


def export(queue: ReviewQueue, kind: Kind, path: Path, *, undecided: Undecided = "audit") -> Exported:
    """Write one of the four files; the suffix says in which form.

    `decisions`: a row for every decided pair (`pair_id, image, caption, decision, new_image, new_caption`), for
    `l2rm train --decisions`. `pairs`: the repaired table, dropped pairs left out and rematched ones with their new
    partner, each with `decided_by` (person, audit or nobody). `filter`: keys of the pairs that stay as they are, one a
    line: those of their samples where images lie in WebDataset shards, pair ids elsewhere. `index`: the number of the
    image that each caption is given, as `--mismatch` reads it.

    Args:
        queue: the review.
        kind: which.
        path: where to; `.csv`, `.tsv`, `.jsonl` or `.parquet` for the tables, `.txt` for the filter, `.npy` for the
            index.
        undecided: of pairs that nobody decided about, do what the audit says, keep them, or drop them.

    Raises:
        InputError: another suffix, or an index file of an audit that does not know how DATA count their images.
    """
    suffixes = {"filter": (".txt",), "index": (".npy",)}.get(kind, SUFFIXES)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: {path.suffix or 'no suffix'} for {kind}; use {', '.join(suffixes)}")
    if kind == "decisions":
        return _write_decisions(queue, path)
    choices = [_effective(queue, row, choice, undecided) for row, choice in _all(queue)]
    if kind == "pairs":
        return _write_pairs(queue, path, choices)
    if kind == "index":
        return _write_index(queue, path, choices)
    return _write_filter(queue, path, choices)


def _all(queue: ReviewQueue) -> list[tuple[int, Choice]]:
    decided = queue.decisions()
    return [(row, decided.get(row, UNDECIDED)) for row in range(len(queue.folder))]


def _effective(queue: ReviewQueue, row: int, choice: Choice, undecided: Undecided) -> Choice:
    """What to do with a pair, decided or not."""
    if choice.verdict:
        return choice
    verdict = queue.said(row) if undecided == "audit" else undecided
    image = queue.folder.rematch_image_of[row]
    if verdict != "rematch":
        return Choice(verdict=verdict)
    return Choice(verdict="rematch", new_image=queue.folder.images[image]) if image >= 0 else Choice(verdict="drop")


def _write_decisions(queue: ReviewQueue, path: Path) -> Exported:
    decided = queue.decisions()
    pairs = [queue.pair(row) for row in decided]
    columns: dict[str, Sequence[str]] = {
        "pair_id": [pair.pair_id for pair in pairs],
        "image": [pair.image for pair in pairs],
        "caption": [pair.caption for pair in pairs],
        "decision": [choice.verdict for choice in decided.values()],
        "new_image": [choice.new_image for choice in decided.values()],
        "new_caption": [choice.new_caption for choice in decided.values()],
    }
    write_table(path, columns)
    return Exported(rows=len(pairs))


def _write_pairs(queue: ReviewQueue, path: Path, choices: list[Choice]) -> Exported:
    decided = queue.decisions()
    rows = [row for row, choice in enumerate(choices) if choice.verdict != "drop"]
    pairs = [queue.pair(row) for row in rows]
    columns: dict[str, Sequence[str]] = {
        "pair_id": [pair.pair_id for pair in pairs],
        "image": [choices[row].new_image or pair.image for row, pair in zip(rows, pairs, strict=True)],
        "caption": [choices[row].new_caption or pair.caption for row, pair in zip(rows, pairs, strict=True)],
        "decided_by": [
            "person" if row in decided else "nobody" if choices[row].verdict == "keep" else "audit" for row in rows
        ],
    }
    write_table(path, columns)
    return Exported(rows=len(rows))


def _write_filter(queue: ReviewQueue, path: Path, choices: list[Choice]) -> Exported:
    folder = queue.folder
    samples = [sample_of(image) for image in folder.images]
    keys = []
    for row, image in enumerate(folder.image_of):
        shard, key = samples[image]
        keys.append(key if shard else folder.pair_ids[row])
    stays = [choice.verdict == "keep" for choice in choices]
    bad = {key for key, stay in zip(keys, stays, strict=True) if not stay}
    kept = [key for key, stay in zip(keys, stays, strict=True) if stay]
    listed = dict.fromkeys(key for key in kept if key not in bad)
    with written_whole(path) as beside:
        beside.write_text("".join(f"{' '.join(key.splitlines())}\n" for key in listed), encoding="utf-8")
    moved, unlisted = sum(choice.verdict == "rematch" for choice in choices), sum(key in bad for key in kept)
    notes = [f"{moved:,} rematched pairs are not listed"] if moved else []
    if unlisted:
        notes.append(f"{unlisted:,} that stay share a key with one that does not, and are not listed either")
    return Exported(rows=len(listed), note="; ".join(notes))


def _write_index(queue: ReviewQueue, path: Path, choices: list[Choice]) -> Exported:
    folder = queue.folder
    if not folder.in_order:
        raise InputError(
            f"{folder.folder}: has no audit.json, which tells how the data count their images; run `l2rm audit` again, "
            "or export a table"
        )
    number = {name: place for place, name in enumerate(folder.images)}
    index = folder.image_of.copy()
    untold = 0
    for row, choice in enumerate(choices):
        untold += choice.verdict == "drop" or bool(choice.new_caption)
        if choice.new_image:
            index[row] = number[choice.new_image]
    with written_whole(path) as beside, beside.open("wb") as file:
        np.save(file, index)
    note = f"an index file cannot tell {untold:,} dropped pairs or new captions: they stay as given" if untold else ""
    return Exported(rows=len(index), note=note)
