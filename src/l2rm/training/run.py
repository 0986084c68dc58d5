"""The RUN folder: what a training run leaves behind, and how it is read again."""

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import socket
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from l2rm.data.pairs import Pairs
from l2rm.data.tables import read_text
from l2rm.data.vocabulary import Vocabulary
from l2rm.encoders.pretrained import weights_checksum
from l2rm.errors import InputError
from l2rm.files import written_whole
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.settings import DataShape
from l2rm.training.settings import TrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1
MODEL = "model.safetensors"
COPY = "last/best.safetensors"
"""The same weights once more, in case that the disk spoils the first."""
log = logging.getLogger("l2rm")
Config = TypeVar("Config", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished (or converted) run: its folder, its configuration and its best model."""

    folder: Path
    config: TrainConfig
    model: RetrievalModel
    record: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, one an epoch."""
        return read_lines(self.folder / "metrics.jsonl")

    @property
    def evidence(self) -> Literal["pair", "image"]:
        """How its pairs were divided: "image" where captions given one image were judged together, else "pair"."""
        settings = self.config.rematching
        found = settings.evidence if settings.folds or settings.scope == "dataset" else "pair"
        divisions = [line["division"] for line in self.metrics if line.get("division")]
        told = divisions[-1].get("evidence", found) if divisions else found
        return "image" if told == "image" else "pair"

    def match_probability(self, pairs: Pairs) -> NDArray[np.float64] | None:
        """(rows,) what the training found out about pairs that it learned, NaN for others; None if it learned none.

        A model knows pairs that it has learned by heart; the training may have asked others that do not.

        Raises:
            InputError: the run's `pairs.parquet` is damaged.
        """
        path = self.folder / "pairs.parquet"
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path, columns=["image", "caption", "match_probability"])
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path}: cannot be read ({reason}); delete it, and pairs are judged by the model alone"
            ) from error
        places = places_of(pairs, table["image"].to_pylist(), table["caption"].to_pylist())
        if (places < 0).all():
            return None
        learned = table["match_probability"].to_numpy().astype(np.float64)
        probability: NDArray[np.float64] = np.where(places < 0, np.nan, learned[places])
        return probability


def places_of(pairs: Pairs, images: Sequence[str], captions: Sequence[str]) -> NDArray[np.int64]:
    """(rows,) where each pair stands among these, −1 where it does not; equal pairs in their order."""
    waiting: defaultdict[tuple[str, str], deque[int]] = defaultdict(deque)
    for place, pair in enumerate(zip(images, captions, strict=True)):
        waiting[pair].append(place)
    given = ((pairs.images[image], caption) for image, caption in zip(pairs.image_of, pairs.captions, strict=True))
    found = (waiting.get(pair) for pair in given)
    return np.array([left.popleft() if left else -1 for left in found], dtype=np.int64)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; none where there is no file.

    Raises:
        InputError: a line is no JSON object; names it.
    """
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(read_text(path).splitlines() if path.exists() else [], 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise InputError(f"{path}:line {number}: no JSON object; the file is damaged, restore it or train again")
        lines.append(line)
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a .jsonl file, whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_record(
    folder: Path, config: TrainConfig, shape: DataShape, *, write: bool = True, **facts: Any
) -> dict[str, Any]:
    """Write `config.json`: the configuration, what the data decided, and further facts about the run.

    Without `write` it is only told what would be written.
    """
    record = {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "shape": dataclasses.asdict(shape),
        **facts,
    }
    if write:
        write_json(folder / "config.json", record)
    return record


def write_model(folder: Path, model: RetrievalModel, *, copy: bool = False) -> None:
    """Write `model.safetensors`, with a checksum of its weights; with `copy`, once more in `last/`."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    for name in (MODEL, COPY) if copy else (MODEL,):
        with written_whole(folder / name) as beside:
            save_file(weights, beside, metadata={"sha256": weights_checksum(weights)})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU; a checksum, if it has one, must be right.

    Raises:
        InputError: it is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            checksum = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: is damaged ({reason}); train again") from error
    if checksum is not None and checksum != weights_checksum(weights):
        raise InputError(f"{path}: is damaged (its checksum is wrong); train again")
    return weights


def mend_model(folder: Path) -> None:
    """Put the copy of the weights in the place of a `model.safetensors` that is damaged, and say so."""
    weights, copy = folder / MODEL, folder / COPY
    if not weights.is_file() or not copy.is_file():
        return
    try:
        read_weights(weights)
    except InputError as refusal:
        read_weights(copy)
        with written_whole(weights) as beside:
            shutil.copyfile(copy, beside)
        log.warning("%s; restored from its copy %s", str(refusal).removesuffix("; train again"), copy)


def read_record(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        InputError: the folder is no RUN, or one of another format.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no RUN folder (it has no config.json); give the --out of `l2rm train`")
    try:
        record: dict[str, Any] = json.loads(read_text(path))
        if record["format"] != FORMAT:
            raise InputError(f"{path}: format {record['format']}, this version reads {FORMAT}; train again or upgrade")
        _ = record["config"], record["shape"]
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not the configuration of a RUN ({error}); give the --out of `l2rm train`") from error
    return record


def config_from(kind: type[Config], values: dict[str, Any], where: Path) -> Config:
    """A configuration dataclass from its saved form, nested ones included.

    Raises:
        InputError: a key that this version does not know, one that is missing, or a value of another type.
    """
    hints = get_type_hints(kind)
    if not isinstance(values, dict):
        raise InputError(f"{where}: the keys of {kind.__name__} are no JSON object; restore the file or train again")
    unknown = values.keys() - hints.keys()
    if unknown:
        raise InputError(f"{where}: unknown key {min(unknown)!r}; it was written by another version of l2rm")
    wanted = {field.name for field in dataclasses.fields(kind) if _has_no_default(field)} - values.keys()
    if wanted:
        raise InputError(f"{where}: no key {min(wanted)!r}; it was written by another version of l2rm")
    for name, value in values.items():
        if not dataclasses.is_dataclass(hints[name]) and not _fits(value, hints[name]):
            raise InputError(f"{where}: {name} is {value!r}, which it cannot be; restore the file or train again")
    return kind(
        **{
            name: config_from(hints[name], value, where) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the type that a field has."""
    if get_origin(hint) is Literal:
        return value in get_args(hint) and isinstance(value, str)
    if options := get_args(hint):  # such as int | None
        return any(_fits(value, option) for option in options)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def load_run(folder: str | Path, device: torch.device | str = "cpu") -> Run:
    """Read a RUN folder: its configuration and its best model, in evaluation mode on `device`.

    Raises:
        InputError: no RUN folder, a run without a first epoch, or files that do not belong together; names the file.
    """
    folder = Path(folder)
    record = read_record(folder)
    where = folder / "config.json"
    config = config_from(TrainConfig, record["config"], where)
    shape = config_from(DataShape, record["shape"], where)
    weights = folder / MODEL
    if not weights.is_file():
        raise InputError(f"{weights}: no such file; the run stopped before its first epoch ended, go on with --resume")
    found = _weights_or_copy(folder)
    try:
        model = build_model(config.model, shape, networks=config.networks, folder=folder)
        model.load_state_dict(found)
    except InputError:
        raise
    except (RuntimeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{weights}: not the weights that {where} describes ({reason}); train again") from error
    if shape.vocabulary_size is not None:
        model.vocabulary = Vocabulary.read(folder / "vocabulary.json")
    return Run(folder=folder, config=config, model=model.to(device).eval(), record=record)


def _weights_or_copy(folder: Path) -> dict[str, Tensor]:
    try:
        return read_weights(folder / MODEL)
    except InputError as refusal:
        if not (folder / COPY).is_file():
            raise
        weights = read_weights(folder / COPY)
        log.warning("%s; its copy %s is taken instead", str(refusal).removesuffix("; train again"), folder / COPY)
        return weights


def load(folder: str | Path, device: torch.device | str = "cpu") -> RetrievalModel:
    """The best model of a RUN folder, in evaluation mode.

    Example:
        >>> model = l2rm.load("runs/mine")  # doctest: +SKIP
        >>> model.similarity(images, tokens, lengths)  # doctest: +SKIP
    """
    return load_run(folder, device).model


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder (made if there is none) for this process, by a lock that the system drops when the process dies.

    Raises:
        InputError: a living process trains in this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise InputError(f"{folder}: {owner} is training there; wait for it, or choose another --out") from None
            if not _is(file.fileno(), path):  # the one before took its file away after we had opened it
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
