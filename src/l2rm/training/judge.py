"""Another run's verdict on the same pairs: a cheap model judges and finds partners, an expensive one learns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.training.run import load_run


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a finished run found out about its training pairs.

    Attributes:
        match_probability: (rows,) in [0, 1].
        rematch_image: (rows,) the image that each caption was last rematched to, −1 for none.
        rematch_share: (rows,) how sure that is, in [0, 1].
        evidence: whether its pairs were judged one by one ("pair") or by image ("image").
    """

    match_probability: NDArray[np.float32]
    rematch_image: NDArray[np.int64]
    rematch_share: NDArray[np.float32]
    evidence: str


def read_judgement(folder: str | Path, pairs: Pairs, *, matched_above: float = 0.5) -> Judgement:
    """Read what the run in `folder` found out about `pairs`, whatever features it saw of them.

    Raises:
        InputError: no finished RUN, one whose method divides nothing, one that was trained on other pairs, or one with
            fewer than two pairs whose match probability is above `matched_above`.

    Example:
        >>> read_judgement("runs/dual", noisy.pairs).match_probability.shape  # doctest: +SKIP
        (30000,)
    """
    run = load_run(folder)
    name = f"rematching.judge: {folder}"
    if not run.record.get("finished"):
        raise InputError(f"{name}: is not finished; go on with its l2rm train --resume first")
    division = run.metrics[-1]["division"]
    if division is None:
        raise InputError(f"{name}: method {run.config.method} divides no pairs; give a run of l2rm or division")
    probability = run.match_probability(pairs)
    if probability is None:
        raise InputError(f"{name}: was trained on other pairs; give one of the same DATA, split and mismatches")
    if (matched := int((probability > matched_above).sum())) < 2:
        raise InputError(
            f"{name}: takes {matched} pairs as matched, so nothing is left to learn from; lower "
            f"rematching.matched_above, which is {matched_above:g}, or give another run"
        )
    image, share = _rematches(run.folder / "pairs.parquet", pairs)
    return Judgement(
        match_probability=probability.astype(np.float32),
        rematch_image=image,
        rematch_share=share,
        evidence=division.get("evidence", run.config.rematching.evidence),
    )


def _rematches(path: Path, pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    number_of = {name: number for number, name in enumerate(pairs.images)}
    try:
        table = pq.read_table(path, columns=["rematch_image", "rematch_share"])
        image = np.array([-1 if one is None else number_of[one] for one in table["rematch_image"].to_pylist()])
        return image.astype(np.int64), table["rematch_share"].to_numpy().astype(np.float32)
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read ({reason}); train that run again") from error
