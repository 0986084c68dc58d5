"""What every later stage reads: a shard's embeddings as arrays that can be mapped, and its texts beside them."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.pairs import LeftOut
from l2rm.data.parquet import PARQUET, ParquetRows, unpack_embeddings
from l2rm.data.shards import read_samples
from l2rm.data.tables import BadRows
from l2rm.encoders.pixels import UndecodableImageError
from l2rm.encoders.towers import l2_normalise
from l2rm.errors import InputError
from l2rm.files import written_whole

IMAGES, CAPTIONS = "images", "captions"
KEYS = {"image": "-keys.npy", "pair_id": "-ids.npy"}
CHUNK = 8192
PICTURES = 16
"""Pictures that are decoded and encoded at a time."""
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def file_of(folder: Path, number: int, ending: str) -> Path:
    """The file of a shard in the folder of a stage."""
    return folder / f"{number:06d}{ending}"


@dataclass(frozen=True, kw_only=True)
class Embed:
    """The first stage: a shard's embeddings, copied from it or made of its pictures and captions.

    Attributes:
        shards: all of them.
        folder: for `N-images.npy`, `N-captions.npy`, `N.arrow` (texts), `N-keys.npy` and `N-ids.npy` (a number for each
            picture's name and for each pair id) and, once they are whole, `N.json`.
        encoder: a model of transformers, for pictures; None for embeddings.
        skip_bad: leave samples out that cannot be used.
        device: where the encoder runs.
    """

    shards: tuple[Path, ...]
    folder: Path
    encoder: str | None = None
    skip_bad: bool = False
    device: str = "cpu"

    def record(self, number: int) -> Path:
        """The file that says that a shard is done."""
        return file_of(self.folder, number, ".json")

    def __call__(self, number: int) -> None:
        """Do one shard.

        Raises:
            InputError: what cannot be read, embeddings that are not finite, pictures without an encoder.
        """
        shard = self.shards[number]
        images = file_of(self.folder, number, "-images.npy")
        captions = file_of(self.folder, number, "-captions.npy")
        with written_whole(images) as one, written_whole(captions) as two:
            if shard.suffix == PARQUET:
                part = ParquetRows.find(shard, skip_bad=self.skip_bad)
                texts, left_out = part.texts, part.left_out
                unpack_embeddings([part], one, two)
            else:
                texts, left_out = self._packed(shard, one, two)
            rows, dim = _checked(shard, one, two)
        known: dict[str, list[Any]] = {name: texts[name] for name in texts if name not in ("is_mismatched", "split")}
        if (truth := _truth(shard, texts)) is not None:
            known["is_mismatched"] = truth
        with written_whole(file_of(self.folder, number, ".arrow")) as beside:
            table = pa.table(known) if known else pa.table({"_": pa.nulls(rows)})
            with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=CHUNK)
        for column, ending in KEYS.items():
            if column in texts:
                with written_whole(file_of(self.folder, number, ending)) as beside:
                    np.save(beside, np.array([_key(name) for name in texts[column]], dtype=np.uint64))
        with written_whole(self.record(number)) as beside:
            told = {"rows": rows, "dim": dim, "left_out": [asdict(one) for one in left_out], "columns": list(known)}
            beside.write_text(json.dumps(told))

    def _packed(self, shard: Path, images: Path, captions: Path) -> tuple[dict[str, list[str]], tuple[LeftOut, ...]]:
        """Write the arrays of a tar file; its texts, and the samples that were left out."""
        samples = read_samples([shard], skip_bad=self.skip_bad)
        bad = BadRows(shard, skip=self.skip_bad, unit="sample")
        texts = samples.columns
        if samples.images is not None and samples.captions is not None:
            if samples.images.regions is not None or samples.captions.regions is not None:
                raise InputError(f"{shard}: holds regions; embeddings are one vector each")
            arrays = [samples.images.array[:], samples.captions.array[:]]
            for name, array in zip(("image", "caption"), arrays, strict=True):
                for row in np.flatnonzero(~np.isfinite(array).all(axis=1)).tolist():
                    bad.add(row, f"the embedding of its {name} has a NaN or infinite value", "mend it")
            good = bad.rest(len(samples))
            image_vectors, caption_vectors = (array[good] for array in arrays)
        elif samples.images is not None or samples.captions is not None:
            raise InputError(f"{shard}: holds embeddings of one kind only; pack KEY.image.npy and KEY.caption.npy")
        elif self.encoder is None:
            raise InputError(
                f"{shard}: holds pictures; give a model that embeds them and their captions (--encoder NAME)"
            )
        else:
            image_vectors = _encoded(shard, texts, self.encoder, self.device, bad)
            good = bad.rest(len(samples))
            towers, words = _towers(self.encoder, self.device), [texts["caption"][row] for row in good]
            parts = [towers.texts(words[start : start + 64]) for start in range(0, len(words), 64)]
            caption_vectors = torch.cat(parts).numpy().astype(np.float16)
        np.save(images, image_vectors)
        np.save(captions, caption_vectors)
        unusable = (
            LeftOut(row=texts["pair_id"][row], image=texts["image"][row], reason=bad.reasons[row])
            for row in sorted(bad.reasons)
        )
        left_out = (*samples.left_out, *unusable)
        return {name: [cells[row] for row in good] for name, cells in texts.items()}, left_out


@lru_cache(maxsize=1)
def _towers(name: str, device: str) -> Any:
    from l2rm.encoders.hf import TwoTowers

    return TwoTowers(name, device)


def _encoded(shard: Path, texts: dict[str, list[str]], encoder: str, device: str, bad: BadRows) -> NDArray[np.float16]:
    """Embeddings of the pictures that decode, some at a time; those that do not go to `bad`."""
    towers = _towers(encoder, device)
    found: list[NDArray[np.float16]] = []
    pixels: list[NDArray[np.float32]] = []
    rows = len(texts["image"])
    for row, name in enumerate(texts["image"]):
        try:
            pixels.append(towers.pixels(shard.parent / name))
        except UndecodableImageError as error:
            bad.add(row, f"{name} does not decode ({error})", "pack another picture")
        if pixels and (len(pixels) == PICTURES or row == rows - 1):
            found.append(towers.images(np.stack(pixels)).numpy().astype(np.float16))
            pixels = []
    return np.concatenate(found) if found else np.empty((0, 0), dtype=np.float16)


def _checked(shard: Path, images: Path, captions: Path) -> tuple[int, int]:
    """Rows and dimensions of two arrays; both must be finite."""
    one, two = (np.load(path, mmap_mode="r", allow_pickle=False) for path in (images, captions))
    if one.shape != two.shape:
        raise InputError(
            f"{shard}: images are {one.shape[1]} numbers each and captions {two.shape[1]}, so they are of no one "
            "space; embed both by one model"
        )
    for name, array in (("image", one), ("caption", two)):
        for start in range(0, len(array), CHUNK):
            finite = np.isfinite(array[start : start + CHUNK]).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite)) + 1
                raise InputError(f"{shard}:row {row}: the embedding of its {name} has a NaN or infinite value; mend it")
    return one.shape[0], one.shape[1]


def _truth(shard: Path, texts: dict[str, list[str]]) -> list[bool] | None:
    if "true_image" in texts:
        return [given != true for given, true in zip(texts["image"], texts["true_image"], strict=True)]
    flags = texts.get("is_mismatched")
    for row, flag in enumerate(flags or ()):
        if flag.lower() not in _FLAGS:
            raise InputError(f"{shard}:row {row + 1}: is_mismatched is {flag!r}; write true or false")
    return None if flags is None else [_FLAGS[flag.lower()] for flag in flags]


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def keys_of(folder: Path, shards: int, column: str) -> NDArray[np.uint64]:
    """A number for the text of each row of all shards: that of its `image`, or its `pair_id`."""
    return np.concatenate([np.load(file_of(folder, number, KEYS[column])) for number in range(shards)])


# ------------------------------------------------------------------------------------------------------------ all rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Whole:
    """All shards as one data set: which row lies where, and which image each caption is given.

    Attributes:
        folder: of the first stage.
        starts: `(shards + 1,)`; the first row of each shard, and the end.
        shared: the image of each row and the first row of each image, `(rows,)` and `(images,)`, by file; None where
            every row has an image of its own.
    """

    folder: Path
    starts: NDArray[np.int64]
    shared: tuple[Path, Path] | None = None

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def n_images(self) -> int:
        """Distinct images."""
        return len(self) if self.shared is None else len(_mapped(self.shared[1]))

    def rows_of(self, number: int) -> NDArray[np.int64]:
        """The rows of a shard."""
        return np.arange(self.starts[number], self.starts[number + 1])

    def image_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The image that each of these rows is given."""
        return rows if self.shared is None else np.asarray(_mapped(self.shared[0])[rows])

    def images(self, images: NDArray[np.int64]) -> Tensor:
        """Unit vectors of images."""
        return self._take(IMAGES, self.row_of(images))

    def captions(self, rows: NDArray[np.int64]) -> Tensor:
        """Unit vectors of captions."""
        return self._take(CAPTIONS, rows)

    def row_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first row of each image."""
        return images if self.shared is None else np.asarray(_mapped(self.shared[1])[images])

    def texts(self, name: str, rows: NDArray[np.int64]) -> list[str] | None:
        """A column of texts at these rows; None where the shards have none."""
        cells: list[str] = [""] * len(rows)
        for number, places in self._by_shard(rows):
            table = _texts(file_of(self.folder, number, ".arrow"))
            if name not in table.column_names:
                return None
            found = table[name].take(pa.array(rows[places] - self.starts[number])).to_pylist()
            for place, cell in zip(places.tolist(), found, strict=True):
                cells[place] = cell
        return cells

    def twin_ids(self) -> tuple[int, int, str] | None:
        """Two rows of one pair id, and the id; None where each has its own."""
        keys = keys_of(self.folder, len(self.starts) - 1, "pair_id")
        order = np.argsort(keys, kind="stable")
        twins = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])[:1024]  # seldom, two ids have one key
        first, second = order[twins], order[twins + 1]
        ids = zip(self.texts("pair_id", first) or (), self.texts("pair_id", second) or (), strict=True)
        return next(
            ((int(first[place]), int(second[place]), one) for place, (one, two) in enumerate(ids) if one == two), None
        )

    def _take(self, kind: str, rows: NDArray[np.int64]) -> Tensor:
        parts: list[tuple[NDArray[np.int64], NDArray[Any]]] = []
        for number, places in self._by_shard(rows):
            array = _mapped(file_of(self.folder, number, f"-{kind}.npy"))
            inside = rows[places] - self.starts[number]
            first, last = int(inside[0]), int(inside[-1])
            in_order = last - first + 1 == len(inside) and bool((np.diff(inside) == 1).all())
            parts.append((places, array[first : last + 1] if in_order else array[inside]))
        found = np.empty((len(rows), parts[0][1].shape[1]), dtype=np.float32)
        for places, values in parts:
            found[places] = values
        return l2_normalise(torch.from_numpy(found))

    def _by_shard(self, rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """Shards that some rows lie in, each with the places of its rows among them."""
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        return [(int(number), np.flatnonzero(shard == number)) for number in np.unique(shard)]


@lru_cache(maxsize=256)
def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


@lru_cache(maxsize=256)
def _texts(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
