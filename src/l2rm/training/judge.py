"""Another run's verdict on the same pairs: a cheap model judges and finds partners, an expensive one learns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.rematching.settings import RematchingConfig
from l2rm.training.run import places_of, read_lines, read_record

COLUMNS = ("image", "caption", "match_probability", "rematch_image", "rematch_share")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a finished run found out about pairs that it was trained on.

    Attributes:
        match_probability: (rows,) in [0, 1]; 1 for pairs that people took as matched.
        rematch_image: (rows,) the image that each caption was last rematched to, −1 for none.
        rematch_share: (rows,) how sure that is, in [0, 1].
        evidence: whether its pairs were judged one by one ("pair") or by image ("image").
    """

    match_probability: NDArray[np.float32]
    rematch_image: NDArray[np.int64]
    rematch_share: NDArray[np.float32]
    evidence: str


def read_judgement(pairs: Pairs, settings: RematchingConfig) -> Judgement:
    """What the run in `settings.judge` found out about `pairs`, whatever features it saw of them.

    A pair is found again by its image and caption, so pairs may have been left out since. Those that people decided
    about (`pairs.trusted`) are matched whatever the judge says, and need not be known to it.

    Raises:
        InputError: no finished RUN, one that divided no pairs, one that does not know some of `pairs`, one that takes
            fewer than two of them as matched, or, where partners are wanted, one that looked for none.

    Example:
        >>> settings = RematchingConfig(judge="runs/dual", scope="dataset")
        >>> read_judgement(noisy.pairs, settings).match_probability.shape  # doctest: +SKIP
        (30000,)
    """
    name = f"rematching.judge: {settings.judge}"
    evidence = _evidence(Path(settings.judge), name)
    table = _table(Path(settings.judge) / "pairs.parquet")
    places = places_of(pairs, table["image"], table["caption"])
    trusted = np.zeros(len(pairs), dtype=bool) if pairs.trusted is None else pairs.trusted
    if unknown := np.flatnonzero((places < 0) & ~trusted).tolist():
        raise InputError(
            f"{name}: does not know pair {pairs.pair_ids[unknown[0]]} ({len(unknown)} in all); give a run of the same "
            "DATA, split and mismatches"
        )
    judged = (places >= 0) & ~trusted
    probability = np.ones(len(pairs), dtype=np.float32)
    probability[judged] = np.array(table["match_probability"], dtype=np.float32)[places[judged]]
    if (matched := int((probability > settings.matched_above).sum())) < 2:
        raise InputError(
            f"{name}: takes {matched} pairs as matched, so nothing is left to learn from; lower "
            f"rematching.matched_above, which is {settings.matched_above:g}, or give another run"
        )
    number_of = {image: number for number, image in enumerate(pairs.images)}
    partner, share = np.full(len(pairs), -1), np.zeros(len(pairs), dtype=np.float32)
    for row in np.flatnonzero(judged):
        partner[row] = number_of.get(table["rematch_image"][places[row]], -1)
        share[row] = table["rematch_share"][places[row]] if partner[row] >= 0 else 0
    suspects = int((probability <= settings.matched_above).sum())
    if settings.scope == "dataset" and suspects and (partner < 0).all():
        raise InputError(f"{name}: has partners for none of {suspects} suspects; give a run of l2rm, or scope batch")
    return Judgement(match_probability=probability, rematch_image=partner, rematch_share=share, evidence=evidence)


def check_judge(folder: str | Path) -> None:
    """
    Raises:
        InputError: no finished RUN, or one that divided no pairs.
    """
    _evidence(Path(folder), f"rematching.judge: {folder}")


def _evidence(folder: Path, name: str) -> str:
    """How the run judged its pairs, once it is clear that it did."""
    record = read_record(folder)
    if not record.get("finished"):
        raise InputError(f"{name}: is not finished; go on with its l2rm train --resume first")
    lines = read_lines(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    division = lines[-1]["division"] if lines else None
    if division is None:
        raise InputError(f"{name}: divided no pairs; give a run of l2rm or division that went on after its warm-up")
    evidence: str = division.get("evidence", record["config"]["rematching"].get("evidence", "pair"))
    return evidence


def _table(path: Path) -> dict[str, list[Any]]:
    try:
        table: dict[str, list[Any]] = pq.read_table(path, columns=list(COLUMNS)).to_pydict()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read ({reason}); train that run again") from error
    return table
