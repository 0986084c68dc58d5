"""Decisions that people made about pairs: read, and applied to the pairs as truth."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from l2rm.data.pairs import Pairs
from l2rm.data.tables import BadRows, read_table
from l2rm.errors import InputError

Verdict = Literal["keep", "rematch", "drop"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
STORE = "decisions.sqlite"
"""What the review's store is called, beside the audit."""
FORMAT = 1
_NAMES = ("pair_id", "image", "caption", "decision", "new_image", "new_caption")
_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a person decided about one pair.

    Attributes:
        pair_id, image, caption: the pair as it was shown.
        verdict: `keep` it, `drop` it, or `rematch` it: another pair takes its place.
        new_image, new_caption: of a rematch, the image that the caption moves to, or the caption that the image gets;
            "" where the pair keeps its own.
    """

    pair_id: str
    image: str
    caption: str
    verdict: Verdict
    new_image: str = ""
    new_caption: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decided:
    """Pairs after decisions were applied, and how many there were of each.

    `elsewhere` counts rematches whose image (or caption) belongs to another split: those rows are left out, so that
    nothing of one split is learned or measured in another.
    """

    pairs: Pairs
    keep: int
    rematch: int
    drop: int
    elsewhere: int


def read_decisions(path: str | Path) -> tuple[Decision, ...]:
    """Read decisions: a review's `decisions.sqlite`, the audit folder it lies in, or a table exported from it.

    Rows of a table whose `decision` is empty are not decided yet and left out.

    Raises:
        InputError: no such file, neither a store nor a table of decisions, a row that makes no sense.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "decisions.csv"
        >>> _ = path.write_text("pair_id,image,caption,decision,new_image,new_caption\\n7,a.jpg,a cat,drop,,\\n")
        >>> read_decisions(path)[0].verdict
        'drop'
    """
    path = Path(path)
    if path.is_dir():
        path = path / STORE
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the {STORE} of a review, or a table exported from it")
    with path.open("rb") as file:
        is_store = file.read(len(_SQLITE)) == _SQLITE
    columns = _read_store(path) if is_store or path.suffix == ".sqlite" else _read_table(path)
    decisions = []
    for row, cells in enumerate(zip(*(columns[name] for name in _NAMES), strict=True), start=1):
        pair_id, image, caption, verdict, new_image, new_caption = cells
        if not verdict:
            continue
        if verdict not in VERDICTS:
            raise InputError(f"{path}:row {row}: decision {verdict!r}; write one of {', '.join(VERDICTS)}")
        if (verdict == "rematch") != bool(new_image or new_caption):
            raise InputError(
                f"{path}:row {row}: {verdict} {'without' if verdict == 'rematch' else 'with'} a new_image or "
                "new_caption; only a rematch has one, and needs it"
            )
        decisions.append(
            Decision(
                pair_id=pair_id,
                image=image,
                caption=caption,
                verdict=verdict,
                new_image=new_image,
                new_caption=new_caption,
            )
        )
    return tuple(decisions)


def apply_decisions(
    pairs: Pairs, decisions: Sequence[Decision], *, others: Sequence[Pairs] = (), source: str = "decisions"
) -> Decided:
    """Take decisions as truth: dropped rows leave, rematched ones get their new image or caption, kept ones stay.

    Rows decided to be kept or rematched become `trusted`: a sample division gives them match probability 1.

    Args:
        pairs: the pairs that were reviewed, mismatches included.
        decisions: about rows of `pairs`, each at most once.
        others: the other splits of the same data; see `Decided.elsewhere`.
        source: what messages call the decisions.

    Raises:
        InputError: names the pair: it is not there, has another image or caption than when it was decided, is decided
            twice, or moves to an image or caption that is nowhere in the data.

    Example:
        >>> pairs = Pairs(images=("a", "b", "c"), image_of=np.arange(3), captions=("a cat", "a dog", "a kite"))
        >>> drop = Decision(pair_id="0", image="a", caption="a cat", verdict="drop")
        >>> move = Decision(pair_id="1", image="b", caption="a dog", verdict="rematch", new_image="c")
        >>> decided = apply_decisions(pairs, [drop, move]).pairs
        >>> decided.captions, [decided.images[image] for image in decided.image_of], decided.trusted.tolist()
        (('a dog', 'a kite'), ['c', 'c'], [True, False])
    """
    row_of = {pair_id: row for row, pair_id in enumerate(pairs.pair_ids)}
    number_of = {name: number for number, name in enumerate(pairs.images)}
    speaker_of = {caption: row for row, caption in reversed(list(enumerate(pairs.captions)))}
    other_images = {name for other in others for name in other.images}
    other_captions = {caption for other in others for caption in other.captions}
    image_of, captions = pairs.image_of.copy(), list(pairs.captions)
    spoken_by = np.arange(len(pairs))  # the row whose caption, and caption features, a row has
    stays = np.ones(len(pairs), dtype=bool)
    trusted = np.zeros(len(pairs), dtype=bool) if pairs.trusted is None else pairs.trusted.copy()
    counts, elsewhere = dict.fromkeys(VERDICTS, 0), 0
    seen = np.zeros(len(pairs), dtype=bool)
    for decision in decisions:
        row = _row(decision, pairs, row_of, source)
        if seen[row]:
            raise InputError(f"{source}: pair {decision.pair_id!r} is decided twice; leave one decision")
        seen[row] = True
        counts[decision.verdict] += 1
        image_known = _known("new_image", decision, number_of, other_images, pairs, source)
        caption_known = _known("new_caption", decision, speaker_of, other_captions, pairs, source)
        stays[row] = decision.verdict != "drop" and image_known and caption_known
        elsewhere += decision.verdict == "rematch" and not stays[row]
        trusted[row] = stays[row]
        if stays[row] and decision.new_image:
            image_of[row] = number_of[decision.new_image]
        if stays[row] and decision.new_caption:
            captions[row], spoken_by[row] = decision.new_caption, speaker_of[decision.new_caption]
    if not stays.any():
        raise InputError(f"{source}: every pair of {pairs.source} is dropped and nothing is left; keep some")
    features = pairs.caption_features
    changed = replace(
        pairs,
        image_of=image_of,
        captions=tuple(captions),
        caption_features=None if features is None else features.take(spoken_by),
        trusted=trusted,
    )
    return Decided(pairs=changed.take(stays), elsewhere=int(elsewhere), **counts)


def _row(decision: Decision, pairs: Pairs, row_of: dict[str, int], source: str) -> int:
    """The row that a decision is about, after a look whether it is still the same pair."""
    row = row_of.get(decision.pair_id)
    if row is None:
        raise InputError(
            f"{source}: pair {decision.pair_id!r} is not in {pairs.source}; give the data that were reviewed"
        )
    given = {"image": pairs.images[pairs.image_of[row]], "caption": pairs.captions[row]}
    for name, value in given.items():
        was = getattr(decision, name)
        if was != value:
            raise InputError(
                f"{source}: pair {decision.pair_id!r} was decided with {name} {_short(was)}, but has {_short(value)} "
                f"in {pairs.source}; give the data that were reviewed, or review that pair again"
            )
    return row


def _known(
    name: Literal["new_image", "new_caption"],
    decision: Decision,
    here: Collection[str],
    elsewhere: Collection[str],
    pairs: Pairs,
    source: str,
) -> bool:
    """Whether what a pair is rematched with is in these pairs; an error where it is nowhere in the data."""
    wanted: str = getattr(decision, name)
    if not wanted or wanted in here:
        return True
    if wanted in elsewhere:
        return False
    raise InputError(
        f"{source}: pair {decision.pair_id!r} is rematched with {name.removeprefix('new_')} {_short(wanted)}, which is "
        f"not in {pairs.source}; give the data that were reviewed, or review that pair again"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _read_store(path: Path) -> dict[str, list[str]]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as store:
            (form,) = store.execute("PRAGMA user_version").fetchone()
            if form != FORMAT:
                raise InputError(f"{path}: format {form}, this version reads {FORMAT}; give the {STORE} of a review")
            rows = store.execute(
                f"SELECT {', '.join(_NAMES)} FROM decisions WHERE decision != '' ORDER BY version"
            ).fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{path}: cannot be read ({error}); give the {STORE} of a review") from error
    return {name: [row[place] for row in rows] for place, name in enumerate(_NAMES)}


def _read_table(path: Path) -> dict[str, list[str]]:
    columns = read_table(path, BadRows(path, skip=False), names=_NAMES, least=0)
    for name in _NAMES:
        if name not in columns:
            raise InputError(
                f"{path}: no column {name!r}; give a table of decisions as `l2rm decisions` or the review page writes "
                "it (an audit's own suggestions are no decisions)"
            )
    return columns
