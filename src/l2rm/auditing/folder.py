"""An audit as it lies in its folder: `audit.json` beside `audit.parquet`, written and read again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from l2rm.data.decided import VERDICTS
from l2rm.errors import InputError
from l2rm.files import written_whole

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit
    from l2rm.rematching.division import BetaMixture

FORMAT = 1
TABLE, FACTS = "audit.parquet", "audit.json"
_COLUMNS = {
    "pair_id": pa.string(),
    "image": pa.string(),
    "caption": pa.string(),
    "match_probability": pa.float64(),
    "rematch_image": pa.string(),
    "rematch_caption": pa.string(),
    "rematch_confidence": pa.float64(),
    "decision": pa.string(),
}


def write_facts(audit: "Audit", path: Path) -> None:
    """Write `audit.json`: where the images lie, what decided, how much there is, and the mixture.

    `images` lists the names of the images in the order of DATA where the rows of the table do not show that order (rows
    of mismatched pairs): an index file counts images so. It is null where they do.
    """
    pairs, mixture = audit.pairs, audit.mixture
    given = [pairs.images[image] for image in pairs.image_of]
    decision = audit.decision
    facts: dict[str, Any] = {
        "format": FORMAT,
        "source": pairs.source,
        "image_root": None if pairs.image_root is None else str(pairs.image_root.absolute()),
        "keep_threshold": audit.keep_threshold,
        "rematch_threshold": audit.rematch_threshold,
        "counts": {
            "pairs": len(pairs),
            "images": pairs.n_images,
            "mismatched": int(audit.is_mismatched.sum()),
            **{str(verdict): int((decision == verdict).sum()) for verdict in VERDICTS},
        },
        "by_losses": audit.by_losses,
        "calibrated": audit.calibrated,
        "mixture": mixture_facts(mixture),
        "images": None if list(dict.fromkeys(given)) == list(pairs.images) else list(pairs.images),
    }
    with written_whole(path) as beside:
        beside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def mixture_facts(mixture: "BetaMixture") -> dict[str, Any]:
    """A mixture as JSON tells it."""
    return {
        "alpha": mixture.alpha.tolist(),
        "beta": mixture.beta.tolist(),
        "weight": mixture.weight.tolist(),
        "lower": mixture.lower,
        "upper": mixture.upper,
        "converged": mixture.converged,
        "degenerate": mixture.degenerate,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditFolder:
    """The table of an audit and its facts, read again.

    Attributes:
        folder: where it lies.
        pair_ids, captions, rematch_captions, verdicts: (rows,) texts; "" where no caption is suggested.
        images: names of all images, those of DATA first and in its order where that is known.
        image_of, rematch_image_of: (rows,) numbers of the given and of the suggested image, -1 where there is none.
        match_probability, confidence: (rows,) NaN where it is not known.
        image_root: the folder that image names start from; None where there are no pixels.
        source: the data that were audited.
        in_order: whether `images` are numbered as in DATA, so that an index file can be written.
    """

    folder: Path
    pair_ids: Sequence[str]
    captions: Sequence[str]
    rematch_captions: Sequence[str]
    verdicts: Sequence[str]
    images: Sequence[str]
    image_of: NDArray[np.int64]
    rematch_image_of: NDArray[np.int64]
    match_probability: NDArray[np.float64]
    confidence: NDArray[np.float64]
    image_root: Path | None
    source: str
    in_order: bool

    def __len__(self) -> int:
        return len(self.pair_ids)

    @classmethod
    def open(cls, folder: str | Path) -> "AuditFolder":
        """Read what `Audit.write` left in a folder. Without `audit.json`, there are no pixels and no index files.

        Raises:
            InputError: no audit there, a table that lacks a column, or facts of another format.
        """
        folder = Path(folder)
        columns = _read_table(folder / TABLE)
        facts = _read_facts(folder / FACTS)
        listed = facts.get("images") or ()
        names = dict.fromkeys((*listed, *columns["image"], *filter(None, columns["rematch_image"])))
        number = {name: place for place, name in enumerate(names)}
        root = facts.get("image_root")
        return cls(
            folder=folder,
            pair_ids=columns["pair_id"],
            captions=columns["caption"],
            rematch_captions=[text or "" for text in columns["rematch_caption"]],
            verdicts=columns["decision"],
            images=list(names),
            image_of=np.array([number[name] for name in columns["image"]], dtype=np.int64),
            rematch_image_of=np.array([number.get(name, -1) for name in columns["rematch_image"]], dtype=np.int64),
            match_probability=np.array(columns["match_probability"], dtype=np.float64),
            confidence=np.array(columns["rematch_confidence"], dtype=np.float64),
            image_root=None if root is None else Path(root),
            source=str(facts.get("source", folder)),
            in_order=bool(facts),
        )

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Rows in order of suspicion: the least match probability first, those without any before them."""
        return np.argsort(np.nan_to_num(self.match_probability, nan=-1.0), kind="stable")

    @cached_property
    def rows_of_image(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows sorted by the image they are given, and where each image's begin in that list (images + 1 places)."""
        rows = np.argsort(self.image_of, kind="stable")
        return rows, np.searchsorted(self.image_of[rows], np.arange(len(self.images) + 1))

    def captions_of(self, image: int, *, but: int, limit: int = 3) -> list[str]:
        """Captions given to an image, those of row `but` aside."""
        rows, begin = self.rows_of_image
        own = [int(row) for row in rows[begin[image] : begin[image + 1]][: limit + 1] if row != but]
        return [self.captions[row] for row in own[:limit]]

    def image_path(self, image: int) -> Path | None:
        """Where the pixels of an image are; None where there are none."""
        return None if self.image_root is None else self.image_root / self.images[image]


def _read_table(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the --out of `l2rm audit`")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
            if missing:
                raise InputError(f"{path}: no column {missing[0]!r}; give the --out of `l2rm audit`")
            table = file.read(columns=list(_COLUMNS))
        columns = {name: table[name].cast(kind).to_pylist() for name, kind in _COLUMNS.items()}
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as an audit ({reason}); run `l2rm audit` again") from error
    for name in ("pair_id", "image", "caption", "decision"):
        if None in columns[name]:
            raise InputError(f"{path}:row {columns[name].index(None) + 1}: no {name}; run `l2rm audit` again")
    for row, verdict in enumerate(columns["decision"], start=1):
        if verdict not in VERDICTS:
            raise InputError(f"{path}:row {row}: decision {verdict!r}; run `l2rm audit` again")
    if len(set(columns["pair_id"])) != len(columns["pair_id"]):
        raise InputError(f"{path}: a pair_id stands there twice; run `l2rm audit` again")
    return columns


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}); run `l2rm audit` again") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InputError(f"{path}: not of format {FORMAT}, which this version reads; run `l2rm audit` again")
    return facts
