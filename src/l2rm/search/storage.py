"""The files of an index: segments that never change, what was removed since, and one manifest that says what counts.

    INDEX/
      index.json          the manifest; everything else counts only as far as it names it
      model/              the model that made the vectors, as a RUN folder; none for an index of vectors
      centres.npy         mean image and mean caption vector, for models that search by a shortlist
      segments/000001/    image_vectors.npy, image_ids.npy, images.arrow; the same for captions; regions.npy
      removed-image-3.npy, image-3.faiss    ids that are gone, the approximate index; numbered by generation

The manifest is renamed into place last, so that a reader sees the index before a change or after it.
"""

import fcntl
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from l2rm.data.features import read_array
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.files import folder_written_whole, remove_leftovers, replaceable, written_whole

FORMAT = 1
MANIFEST = "index.json"
Kind = Literal["image", "caption"]
KINDS: tuple[Kind, Kind] = ("image", "caption")
_ROWS_A_BATCH = 2**16
_FILES = (MANIFEST, "model", "segments", "centres.npy", "removed-*.npy", "*.faiss", ".lock")
"""What an index may hold."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What counts of an index's files.

    Attributes:
        dim, dtype: of the vectors.
        fingerprint: of the model that made them; None for an index of vectors.
        similarity: the model's kind; "cosine" for an index of vectors.
        encoder: {"name", "grid"} of the encoder that made the images' features; None where that is not known.
        caption_encoder: {"name", "checksum"} of the sentence encoder that captions went through before the model; None
            where it reads words.
        generation: raised by every change.
        next_id: the id that the next item of a kind gets; ids are never used twice.
        segments: folder names, oldest first.
        removed: the file of removed ids of a kind.
        approximate: file, number of lists and probes, and measured recall of a kind's approximate index.
        threshold: items of a kind above which it gets one; None for never.
    """

    dim: int
    dtype: str = "float32"
    fingerprint: str | None = None
    similarity: str = "cosine"
    encoder: dict[str, Any] | None = None
    caption_encoder: dict[str, str] | None = None
    generation: int = 0
    next_id: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    segments: tuple[str, ...] = ()
    removed: dict[str, str] = field(default_factory=dict)
    approximate: dict[str, dict[str, Any]] = field(default_factory=dict)
    threshold: int | None = None


def read_manifest(folder: Path) -> Manifest:
    """Read `index.json`.

    Raises:
        InputError: the folder is no index, or one of another format.
    """
    path = folder / MANIFEST
    if not folder.exists():
        remove_leftovers(folder.parent)  # who was killed while replacing the index has left the old one beside
    if not path.is_file():
        raise InputError(f"{folder}: no index (it has no {MANIFEST}); make one with `l2rm index`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise InputError(f"{path}: not of format {FORMAT}, which this version reads; index again")
        return Manifest(**{**content, "segments": tuple(content["segments"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not the manifest of an index ({error}); index again") from error


def refuse_folder(folder: Path) -> None:
    """An index goes to a folder that is new or empty, or that holds an index and nothing else.

    Raises:
        InputError: a file has that name, or something else is in the folder.
    """
    replaceable(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: there is something else under that name; choose another --out")
    remove_leftovers(folder)
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    strange = [name for name in there if not any(fnmatchcase(name, known) for known in _FILES)]
    if strange:
        raise InputError(f"{folder}: holds {strange[0]!r}, something else than an index; choose another --out")
    if there:
        try:
            read_manifest(folder)
        except InputError as error:
            raise InputError(
                f"{folder}: has no {MANIFEST} of an index, so it is not replaced; choose another --out, or delete it"
            ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a change count."""
    content = {"format": FORMAT, **asdict(manifest)}
    with written_whole(folder / MANIFEST) as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def roots_of(pairs: Pairs) -> list[str]:
    """The folder that each image's name starts from."""
    return ["" if pairs.image_root is None else str(pairs.image_root.absolute())] * pairs.n_images


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """The block in which an index may be changed: by one process at a time; the lock dies with its process.

    Raises:
        InputError: another process is changing it.
    """
    with (folder / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is changing this index; wait for it") from None
        yield


def tidy(folder: Path, manifest: Manifest) -> None:
    """Take away files that no longer count. Whoever has them open can go on reading."""
    for segment in (folder / "segments").iterdir():
        if segment.name not in manifest.segments:
            shutil.rmtree(segment, ignore_errors=True)
    counting = {*manifest.removed.values(), *(one["file"] for one in manifest.approximate.values())}
    for pattern in ("removed-*.npy", "*.faiss"):
        for path in folder.glob(pattern):
            if path.name not in counting:
                path.unlink(missing_ok=True)


class Rows(Protocol):
    """What a segment is written from."""

    @property
    def names(self) -> Sequence[str]:
        """(images,)"""
        ...

    @property
    def roots(self) -> Sequence[str]:
        """(images,) the folder that each name starts from; empty where there are no pixels."""
        ...

    @property
    def captions(self) -> Sequence[str]:
        """(captions,)"""
        ...

    @property
    def pair_ids(self) -> Sequence[str]:
        """(captions,)"""
        ...

    @property
    def image_of(self) -> NDArray[np.int64]:
        """(captions,) the row of each caption's image."""
        ...

    def image_vectors(self) -> Iterable[tuple[NDArray[np.floating], NDArray[np.floating] | None]]:
        """Vectors (n, D) of one block of images after the other, and their regions (n, R, D') where those are kept."""
        ...

    def caption_vectors(self) -> Iterable[NDArray[np.floating]]:
        """Vectors (n, D) of one block of captions after the other."""
        ...


def write_segment(
    folder: Path, rows: Rows, manifest: Manifest, ids: dict[Kind, NDArray[np.int64]] | None = None
) -> None:
    """Write rows as the segment `folder`, whole or not at all; new ids follow `manifest.next_id`."""
    counts = {"image": len(rows.names), "caption": len(rows.captions)}
    with folder_written_whole(folder) as beside:
        if ids is None:
            ids = {kind: manifest.next_id[kind] + np.arange(counts[kind], dtype=np.int64) for kind in KINDS}
        for kind in KINDS:
            np.save(beside / f"{kind}_ids.npy", ids[kind])
        _write_vectors(beside / "image_vectors.npy", counts["image"], manifest, rows.image_vectors(), beside)
        blocks = ((block, None) for block in rows.caption_vectors())
        _write_vectors(beside / "caption_vectors.npy", counts["caption"], manifest, blocks, None)
        _write_table(beside / "images.arrow", {"name": rows.names, "root": rows.roots})
        _write_table(
            beside / "captions.arrow",
            {"caption": rows.captions, "pair_id": rows.pair_ids, "image": ids["image"][rows.image_of]},
        )


def _write_vectors(
    path: Path,
    count: int,
    manifest: Manifest,
    blocks: Iterable[tuple[NDArray[np.floating], NDArray[np.floating] | None]],
    regions_folder: Path | None,
) -> None:
    vectors = np.lib.format.open_memmap(path, "w+", np.dtype(manifest.dtype), (count, manifest.dim))
    regions: NDArray[np.float16] | None = None
    start = 0
    for block, local in blocks:
        stop = start + len(block)
        vectors[start:stop] = block
        if local is not None and regions_folder is not None:
            if regions is None:
                shape = (count, *local.shape[1:])
                regions = np.lib.format.open_memmap(regions_folder / "regions.npy", "w+", np.dtype(np.float16), shape)
            regions[start:stop] = local
        start = stop
    if start != count:
        raise ValueError(f"{start} vectors for {count} items")
    for array in (vectors, regions):
        if isinstance(array, np.memmap):
            array.flush()


def _write_table(path: Path, columns: dict[str, Any]) -> None:
    """Arrow on the disk as in memory: a row is read without the others."""
    kinds = {"image": pa.int64()}
    table = pa.table({name: pa.array(values, kinds.get(name, pa.large_string())) for name, values in columns.items()})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_ROWS_A_BATCH)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """A segment, memory-mapped: vectors, ids and a table of each kind, and the images' regions where they are kept."""

    vectors: dict[Kind, NDArray[np.floating]]
    ids: dict[Kind, NDArray[np.int64]]
    tables: dict[Kind, pa.Table]
    regions: NDArray[np.float16] | None

    @classmethod
    def open(cls, folder: Path, manifest: Manifest) -> "Segment":
        """Map the files of a segment.

        Raises:
            InputError: one is missing or damaged, or does not fit the manifest.
        """
        vectors: dict[Kind, NDArray[np.floating]] = {}
        ids: dict[Kind, NDArray[np.int64]] = {}
        tables: dict[Kind, pa.Table] = {}
        for kind in KINDS:
            vectors[kind] = read_array(folder / f"{kind}_vectors.npy", mapped=True)
            ids[kind] = read_array(folder / f"{kind}_ids.npy")
            tables[kind] = _open_table(folder / f"{kind}s.arrow")
            wanted = (len(ids[kind]), manifest.dim)
            if vectors[kind].shape != wanted or tables[kind].num_rows != wanted[0]:
                raise InputError(f"{folder}: its files do not belong together; index again")
        path = folder / "regions.npy"
        return cls(
            vectors=vectors, ids=ids, tables=tables, regions=read_array(path, mapped=True) if path.exists() else None
        )


def _open_table(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); index again") from error


def with_removed(folder: Path, manifest: Manifest, removed: dict[Kind, NDArray[np.int64]]) -> Manifest:
    """Write the ids that are gone, and name the files in a manifest of the next generation."""
    generation = manifest.generation + 1
    files: dict[str, str] = {}
    for kind in KINDS:
        if len(removed[kind]):
            files[kind] = f"removed-{kind}-{generation}.npy"
            with written_whole(folder / files[kind]) as beside:
                np.save(beside, removed[kind])
    return replace(manifest, generation=generation, removed=files)
