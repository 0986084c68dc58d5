"""The folder of an audit of shards: what was asked for, whether that is finished, and what came out."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from l2rm.errors import InputError
from l2rm.evaluation.detection import Detection
from l2rm.files import written_whole

CONFIG, FACTS = "config.json", "audit.json"


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """How shards are audited.

    Attributes:
        encoder: a model of transformers for shards of pictures, by folder or OWNER/MODEL; None for embeddings.
        plan: rematch all mismatched captions at once by one transport plan, as `l2rm rematch` does, instead of
            suggesting to each its best image.
        candidates: images that a caption may choose from in the plan.
        keep_threshold: keep a pair whose match probability is at least this.
        rematch_threshold: of the others, rematch those whose confidence is at least this and drop the rest.
        margin: of the hinge.
        seed: draws the negatives.
        skip_bad: leave out samples whose picture does not decode, and the like.
    """

    encoder: str | None = None
    plan: bool = False
    candidates: int = 64
    keep_threshold: float = 0.5
    rematch_threshold: float = 0.5
    margin: float = 0.2
    seed: int = 0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        for name in ("keep_threshold", "rematch_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"audit: {name}={getattr(self, name)}; give a probability between 0 and 1")
        if self.candidates < 1:
            raise InputError(f"audit: candidates={self.candidates}; give at least one, such as 64")


@dataclass(frozen=True, kw_only=True)
class ShardsAudit:
    """What came out; the tables lie in `folder / "audit"`.

    Attributes:
        folder: the --out.
        counts: pairs, images, mismatched, keep, rematch, drop, left_out.
        mismatch_ratio: the weight of the mismatched component.
        detection: against the truth, where the shards know it.
    """

    folder: Path
    counts: dict[str, int]
    mismatch_ratio: float
    detection: Detection | None


def begin(folder: Path, shards: Sequence[Path], config: ShardsConfig, *, resume: bool) -> None:
    """Write what is to be done; or see that it is what was begun.

    Raises:
        InputError: a folder that is in use without `resume`; with it, other shards or another configuration.
    """
    states = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in shards]
    facts = json.loads(json.dumps({"format": 1, "config": asdict(config), "shards": states}))
    path = folder / CONFIG
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: holds other files; give --out a new folder")
        with written_whole(path) as beside:
            beside.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return
    if not resume:
        raise InputError(f"{folder}: an audit was begun there; go on with --resume, or give another --out")
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        was, then = begun["config"], begun["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); begin anew in another --out") from error
    for name, value in facts["config"].items():
        if was.get(name) != value:
            raise InputError(
                f"{folder}: {name} was {was.get(name)} and is now {value}; resume an audit as it was begun"
            )
    if then != facts["shards"]:
        changed = [now[0] for now, before in zip(facts["shards"], then, strict=False) if now != before]
        raise InputError(
            f"{folder}: the shards are not those that it was begun with ({changed[0] if changed else 'others'}); begin "
            "anew in another --out"
        )


def is_finished(folder: Path) -> bool:
    """Whether an audit of shards has come to its end there."""
    return (folder / FACTS).exists()


def finished(folder: Path) -> ShardsAudit:
    """What a finished audit told.

    Raises:
        InputError: another audit has been written over it.
    """
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if "detection" not in facts:
        raise InputError(f"{folder / FACTS}: is of l2rm audit, not of an audit of shards; give --out a new folder")
    found = facts["detection"]
    return ShardsAudit(
        folder=folder,
        counts=facts["counts"],
        mismatch_ratio=facts["mismatch_ratio"],
        detection=None if found is None else Detection(**found),
    )
