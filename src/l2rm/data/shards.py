"""Data in many files: WebDataset shards (.tar), and Parquet shards of embeddings."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from l2rm.data.features import Features
from l2rm.data.packed import TAR, Archive, PackedArray
from l2rm.data.pairs import LeftOut
from l2rm.data.parquet import PARQUET, ParquetRows, as_text, has_embeddings, unpack_embeddings
from l2rm.data.tables import BadRows, is_broken
from l2rm.errors import InputError
from l2rm.files import cache_folder, written_whole

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
IMAGE_ARRAYS, CAPTION_ARRAY = ("image.npy", "npy"), "caption.npy"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TRUTH = ("split", "is_mismatched", "true_image", "pair_id")


def is_sharded(source: str | Path) -> bool:
    """Whether DATA are shards: a folder of .tar or .parquet files, a pattern, one .tar, one Parquet of embeddings.

    Example:
        >>> is_sharded("shards/{00000..00099}.tar"), is_sharded("shards/*.parquet"), is_sharded("pairs.csv")
        (True, True, False)
    """
    path = Path(source)
    if path.is_dir():
        return not any(path.glob("*_ims.npy")) and any(_in_folder(path))
    if path.suffix == TAR or (_is_pattern(str(source)) and path.suffix in (TAR, PARQUET)):
        return True
    return path.suffix == PARQUET and path.is_file() and has_embeddings(path)


def find_shards(source: str | Path) -> tuple[Path, ...]:
    """The files that DATA are made of, in the order of their names.

    Args:
        source: a folder; a pattern with `*` and `?`, or with `{00000..00099}`, which names them all; or one file.

    Raises:
        InputError: there is none, one of a range is missing, or there are .tar and .parquet files side by side.
    """
    path, text = Path(source), str(source)
    if path.is_dir():
        found = sorted(_in_folder(path))
    elif match := _RANGE.search(text):
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        found = [Path(text[: match.start()] + f"{one:0{len(first)}d}" + text[match.end() :]) for one in numbers]
    else:
        found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(text))]
    if not found:
        raise InputError(f"{source}: no shards there; name a folder of .tar or .parquet files, or a pattern in quotes")
    for one in found:
        if not one.is_file():
            raise InputError(f"{one}: no such shard; check the range {source}")
    if len({one.suffix for one in found}) > 1 or found[0].suffix not in (TAR, PARQUET):
        raise InputError(f"{source}: holds files of several kinds; name those meant, as 'FOLDER/*.tar'")
    return tuple(found)


def _in_folder(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix in (TAR, PARQUET) and not path.name.startswith("."))


def _is_pattern(text: str) -> bool:
    return bool(_RANGE.search(text)) or any(character in text for character in "*?")


def sample_of(image: str) -> tuple[str, str]:
    """The shard that an image's name leads into, "" if none, and the key that the WebDataset library gives its sample.

    Example:
        >>> sample_of("00000.tar/a/000012.rgb.jpg"), sample_of("000012.jpg")
        (('00000.tar', 'a/000012'), ('', '000012'))
    """
    before, inside, member = image.partition(f"{TAR}/")
    folder, slash, last = (member if inside else image).rpartition("/")
    return before + TAR if inside else "", folder + slash + (last.split(".")[0] or last)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The rows of one or several shards.

    Attributes:
        columns: texts by name: `image` and `caption`, and those of `pair_id, split, is_mismatched, true_image` that are
            there. `image` is a path from the folder of the shards into one of them, or a name.
        images: an entry a row, where the shards hold arrays and not pictures.
        captions: an embedding a row, where captions are arrays.
        left_out: what was left out as it could not be used (`skip_bad`).
        named: the shards name the images; if not, `image` only counts them.
    """

    columns: dict[str, list[str]]
    images: Features | None
    captions: Features | None
    left_out: tuple[LeftOut, ...] = ()
    named: bool = True

    def __len__(self) -> int:
        return len(self.columns["image"])


def read_samples(shards: Sequence[Path], *, skip_bad: bool = False) -> Samples:
    """The rows of shards of one kind, in order; arrays stay where they lie.

    Samples of a tar file have one key each (their name up to the first dot): `KEY.jpg` (or png, webp, …) and `KEY.txt`,
    or `KEY.json` with a "caption"; or `KEY.image.npy` (also `KEY.npy`) beside one of them or beside `KEY.caption.npy`.
    What else the JSON tells of pair_id, split, is_mismatched and true_image (a key) is taken. Parquet has the columns
    image_embedding and caption_embedding, lists of floats of one length, and any of the texts. They are copied once to
    the cache, as an array that can be mapped.

    Raises:
        InputError: whatever cannot be read; names the shard and the sample or row.
    """
    if shards[0].suffix == PARQUET:
        return _read_parquet(shards, skip_bad=skip_bad)
    parts = [_Tar.read(shard, skip_bad=skip_bad) for shard in shards]
    kinds = {part.kind for part in parts}
    if len(kinds) > 1:
        raise InputError(f"{shards[0].parent}: some shards hold pictures or words, others arrays; keep them apart")
    for part in parts:
        if set(part.columns) != set(parts[0].columns):
            name = min(set(part.columns) ^ set(parts[0].columns))
            raise InputError(f"{part.path}: tells {name} where {shards[0].name} does not, or the reverse")
    columns = {name: [cell for part in parts for cell in part.columns[name]] for name in parts[0].columns}
    return Samples(
        columns=columns,
        images=_packed([place for part in parts for place in part.images]),
        captions=_packed([place for part in parts for place in part.captions]),
        left_out=tuple(one for part in parts for one in part.left_out),
    )


Place = tuple[Archive, str]


def _packed(places: list[Place]) -> Features | None:
    return Features(array=cast(NDArray[Any], PackedArray(places))) if places else None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Tar:
    """What one tar file holds; arrays are places."""

    path: Path
    columns: dict[str, list[str]]
    images: list[Place]
    captions: list[Place]
    left_out: list[LeftOut]

    @property
    def kind(self) -> tuple[bool, bool]:
        return bool(self.images), bool(self.captions)

    @classmethod
    def read(cls, path: Path, *, skip_bad: bool) -> _Tar:
        archive = Archive.open(path)
        samples: dict[str, dict[str, str]] = {}
        for name in archive.members:
            folder, _, last = name.rpartition("/")
            key, dot, ending = last.partition(".")
            if key and dot and not key.startswith("__"):
                samples.setdefault(f"{folder}/{key}" if folder else key, {})[ending.lower()] = name
        bad = BadRows(path, skip=skip_bad, unit="sample")
        rows = [_sample(archive, key, parts, bad, row) for row, (key, parts) in enumerate(samples.items())]
        if not rows:
            raise InputError(
                f"{path}: holds no samples; pack KEY.jpg and KEY.txt, or KEY.image.npy and KEY.caption.npy"
            )
        good = [rows[row] for row in bad.rest(len(rows))]
        kinds = {(one.image_array is None, one.caption_array is None) for one in good}
        told = {frozenset(one.texts) for one in good}
        if len(kinds) > 1 or len(told) > 1:
            raise InputError(f"{path}: some samples hold what others do not; pack all alike")
        columns = {name: [one.texts[name] for one in good] for name in good[0].texts}
        if "true_image" in columns:
            member = dict(zip((one.key for one in good), columns["image"], strict=True))
            columns["true_image"] = [member.get(key, key) for key in columns["true_image"]]
        return cls(
            path=path,
            columns=columns,
            images=[(archive, one.image_array) for one in good if one.image_array is not None],
            captions=[(archive, one.caption_array) for one in good if one.caption_array is not None],
            left_out=[
                LeftOut(row=f"{path.stem}/{rows[row].key}", image=rows[row].texts["image"], reason=bad.reasons[row])
                for row in sorted(bad.reasons)
            ],
        )


@dataclass(frozen=True, kw_only=True)
class _Sample:
    key: str
    texts: dict[str, str]
    image_array: str | None
    caption_array: str | None


def _sample(archive: Archive, key: str, parts: dict[str, str], bad: BadRows, row: int) -> _Sample:
    picture = next((parts[ending] for ending in PICTURES if ending in parts), None)
    array = next((parts[ending] for ending in IMAGE_ARRAYS if ending in parts), None)
    if picture is None and array is None:
        bad.add(row, f"{key} has neither a picture nor KEY.image.npy", "pack one with it")
    about = _about(archive, key, parts.get("json"), bad, row)
    caption = about.get("caption")
    if "txt" in parts:
        try:
            caption = archive.read(parts["txt"]).decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            bad.add(row, f"{parts['txt']} is not UTF-8", "save it in that encoding")
    if CAPTION_ARRAY not in parts and not (isinstance(caption, str) and caption.strip()):
        bad.add(row, f"{key} has no caption", "write KEY.txt, or KEY.json with a caption")
    name = picture or array
    texts = {"image": f"{archive.path.name}/{name}" if name else "", "caption": str(caption or key)}
    texts |= {name: as_text(about[name]) for name in _TRUTH if about.get(name) is not None}
    if any(is_broken(text) for text in texts.values()):
        bad.add(row, f"{key} has half of a character (a lone surrogate)", "write it anew, as UTF-8")
    texts.setdefault("pair_id", f"{archive.path.stem}/{key}")
    return _Sample(key=key, texts=texts, image_array=array, caption_array=parts.get(CAPTION_ARRAY))


def _about(archive: Archive, key: str, name: str | None, bad: BadRows, row: int) -> dict[str, Any]:
    if name is None:
        return {}
    try:
        about = json.loads(archive.read(name))
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        bad.add(row, f"{name} is no JSON object", 'write {"caption": …}')
        return {}
    return about


# ------------------------------------------------------------------------------------------------------------- parquet


def _read_parquet(shards: Sequence[Path], *, skip_bad: bool) -> Samples:
    """Texts into memory, embeddings into arrays of the cache: Parquet has no way to a single row."""
    parts = [ParquetRows.find(shard, skip_bad=skip_bad) for shard in shards]
    for part in parts:
        if set(part.texts) != set(parts[0].texts):
            raise InputError(f"{part.shard}: has other columns than {shards[0].name}; write all alike")
    states = [(str(one.absolute()), one.stat().st_size, one.stat().st_mtime_ns) for one in shards]
    without = [sorted(part.bad.reasons) for part in parts if part.bad.reasons]
    key = hashlib.sha256(json.dumps([states, without] if without else states).encode()).hexdigest()[:16]
    images, captions = (cache_folder() / "shards" / f"{key}-{what}.npy" for what in ("images", "captions"))
    if not (images.exists() and captions.exists()):
        with written_whole(images) as one, written_whole(captions) as two:
            unpack_embeddings(parts, one, two)
    columns = {name: [cell for part in parts for cell in part.texts[name]] for name in parts[0].texts}
    rows = sum(map(len, parts))
    named = "image" in columns
    columns.setdefault("image", [f"image {row}" for row in range(rows)])
    columns.setdefault("caption", [f"caption {row}" for row in range(rows)])
    return Samples(
        columns=columns,
        images=Features.open(images),
        captions=Features.open(captions),
        left_out=tuple(one for part in parts for one in part.left_out),
        named=named,
    )
