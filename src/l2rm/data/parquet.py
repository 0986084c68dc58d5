"""Parquet shards of embeddings: their texts, and their embeddings some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from l2rm.data.pairs import LeftOut
from l2rm.data.tables import BadRows
from l2rm.errors import InputError

PARQUET = ".parquet"
IMAGE_EMBEDDING, CAPTION_EMBEDDING = "image_embedding", "caption_embedding"
TEXTS = ("pair_id", "image", "caption", "split", "is_mismatched", "true_image")
BATCH = 8192


def has_embeddings(path: Path) -> bool:
    """Whether a Parquet file is a shard of embeddings."""
    try:
        return {IMAGE_EMBEDDING, CAPTION_EMBEDDING} <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError, ValueError):
        return False  # whoever reads it as a table says what is wrong with it


def as_text(value: Any) -> str:
    """A cell as a table tells it: true and false in small letters."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parquet_rows(shard: Path) -> int:
    """Rows of a Parquet shard.

    Raises:
        InputError: it cannot be read, or lacks a column of embeddings.
    """
    with _parquet(shard) as file:
        return int(file.metadata.num_rows)


def parquet_embeddings(shard: Path, bad: BadRows, *, size: int = BATCH) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Embeddings of images and of captions, some rows at a time; rows that are bad, or turn out to be, are left out.

    Raises:
        InputError: as `parquet_rows`, and embeddings of several lengths or that are not finite; names the row.
    """
    with _parquet(shard) as file:
        row = 0
        try:
            for batch in file.iter_batches(batch_size=size, columns=[IMAGE_EMBEDDING, CAPTION_EMBEDDING]):
                numbers = np.arange(row, row + len(batch))
                row += len(batch)
                for name in (IMAGE_EMBEDDING, CAPTION_EMBEDDING):
                    _check_lengths(shard, name, batch.column(name), numbers, bad)
                good = ~np.isin(numbers, list(bad.reasons))
                if not good.any():
                    continue
                batch, numbers = batch.filter(pa.array(good)), numbers[good]
                images, captions = (_matrix(batch.column(name)) for name in (IMAGE_EMBEDDING, CAPTION_EMBEDDING))
                for name, array in ((IMAGE_EMBEDDING, images), (CAPTION_EMBEDDING, captions)):
                    for number in numbers[~np.isfinite(array).all(axis=1)].tolist():
                        bad.add(number, f"{name} has empty entries, a NaN or an infinite value", "mend it")
                good = ~np.isin(numbers, list(bad.reasons))
                if good.any():
                    yield images[good], captions[good]
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(shard, error) from error


def parquet_texts(shard: Path, bad: BadRows) -> dict[str, list[str]]:
    """The columns of texts that we know, those that are there, bad rows included.

    Raises:
        InputError: a cell that is no text; names the row.
    """
    with _parquet(shard) as file:
        try:
            table = file.read(columns=[name for name in TEXTS if name in file.schema_arrow.names])
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(shard, error) from error
    return {name: _texts(name, table[name], bad) for name in table.column_names}


@dataclass(frozen=True, kw_only=True)
class ParquetRows:
    """The rows of a Parquet shard that are read.

    Attributes:
        shard: the file.
        bad: the others.
        texts: columns of texts, by name.
        left_out: the others once more, to be told.
        rows: how many are read.
    """

    shard: Path
    bad: BadRows
    texts: dict[str, list[str]]
    left_out: tuple[LeftOut, ...]
    rows: int

    def __len__(self) -> int:
        return self.rows

    @classmethod
    def find(cls, shard: Path, *, skip_bad: bool) -> ParquetRows:
        """Read the texts and, to leave rows out, the embeddings too: where all are good, that is found out later.

        Raises:
            InputError: as `parquet_texts` and `parquet_embeddings`, or no row is left.
        """
        bad = BadRows(shard, skip=skip_bad)
        texts = parquet_texts(shard, bad)
        if skip_bad:
            for _ in parquet_embeddings(shard, bad):
                pass
        rows = parquet_rows(shard)
        names = texts.get("image", [""] * rows)
        left_out = (
            LeftOut(row=f"{shard.name}:row {row + 1}", image=names[row], reason=bad.reasons[row])
            for row in sorted(bad.reasons)
        )
        good = bad.rest(rows) if bad.reasons else np.arange(rows)
        return cls(
            shard=shard,
            bad=bad,
            texts={name: [cells[row] for row in good] for name, cells in texts.items()},
            left_out=tuple(left_out),
            rows=len(good),
        )


def _parquet(shard: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(shard)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(shard, error) from error
    for name in (IMAGE_EMBEDDING, CAPTION_EMBEDDING):
        if name not in file.schema_arrow.names:
            present = ", ".join(file.schema_arrow.names) or "none"
            raise InputError(
                f"{shard}: no column {name!r} among its columns ({present}); shards of Parquet hold embeddings, and a "
                "table of image files is given by itself"
            )
    return file


def _unreadable(shard: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{shard}: cannot be read as Parquet ({reason}); write it again")


def _check_lengths(shard: Path, name: str, column: pa.Array, numbers: NDArray[np.int64], bad: BadRows) -> None:
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)) or (
        kind.value_type not in (pa.float16(), pa.float32(), pa.float64())
    ):
        raise InputError(f"{shard}: {name} is {kind}; write lists of floats, all of one length")
    lengths = np.asarray(pc.list_value_length(column).fill_null(0))
    usual = np.bincount(lengths, minlength=2)[1:].argmax() + 1
    for number in numbers[lengths != usual].tolist():
        bad.add(number, f"{name} has another length than most", "make all of one length")


def _matrix(column: pa.Array) -> NDArray[Any]:
    """The rows of a column of lists of one length; NaN where an entry is empty."""
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _texts(name: str, column: pa.ChunkedArray, bad: BadRows) -> list[str]:
    cells = column.to_pylist()
    for row, cell in enumerate(cells):
        if not isinstance(cell, str | int | float):
            bad.add(row, f"{name} is {type(cell).__name__}, not a text", "write one")
    return ["" if cell is None else as_text(cell) for cell in cells]


def unpack_embeddings(parts: Sequence[ParquetRows], images: Path, captions: Path) -> None:
    """Write the embeddings of Parquet shards as two .npy files.

    Raises:
        InputError: as `parquet_embeddings`, other dimensions from shard to shard, or no row at all.
    """
    arrays: list[NDArray[Any]] = []
    rows, row = sum(map(len, parts)), 0
    for part in parts:
        for found in parquet_embeddings(part.shard, part.bad):
            if not arrays:
                arrays = [
                    open_memmap(path, mode="w+", dtype=one.dtype, shape=(rows, one.shape[1]))  # type: ignore[no-untyped-call]
                    for path, one in zip((images, captions), found, strict=True)
                ]
            for array, one in zip(arrays, found, strict=True):
                if one.shape[1] != array.shape[1]:
                    raise InputError(f"{part.shard}: {one.shape[1]} dimensions after {array.shape[1]}; make all alike")
                array[row : row + len(one)] = one
            row += len(found[0])
    if not arrays:
        raise InputError(f"{parts[0].shard}: no rows; leave it out")
