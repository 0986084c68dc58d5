"""Encoded pairs as a folder of features that any command reads as DATA."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l2rm.data.features import Features
from l2rm.data.formats import files_of
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.files import folder_written_whole, replaceable

CHUNK = 1024
TABLE = "pairs.csv"
MARK = "features.json"
"""Lists what was written into a folder of features: nothing but that is ever replaced."""
ALL = "all"
"""The split's name where there are no splits."""


def refuse_folder(out: Path, data: str = "") -> None:
    """Features go to a folder that is new or empty, or that holds what `write_features` left there and nothing else.

    Args:
        out: the folder.
        data: DATA that are being encoded.

    Raises:
        InputError: a file has that name, something else is in the folder, or it is, or holds, DATA.
    """
    folder = replaceable(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the features")
    for source in (Path(part).resolve() for part in files_of(data)) if data else ():
        if folder == source or folder in source.parents:
            raise InputError(f"{out}: is the folder of the data itself; name another one for the features")
    there = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if there and MARK not in there:
        raise InputError(
            f"{out}: has no {MARK}, in which encode tells that it made a folder; name a new one, or delete this one"
        )
    strange = sorted({*there} - {MARK, *_written(out)}) if there else []
    if strange:
        raise InputError(
            f"{out}: holds {strange[0]}, which is no features; name a new folder, for this one is replaced"
        )


def refuse_splits(pairs: Pairs) -> None:
    """The names of splits become names of files.

    Raises:
        InputError: one cannot.
    """
    for name in dict.fromkeys(pairs.splits or ()):
        if name in ("", ".", "..") or not {"/", "\\", "\0"}.isdisjoint(name):
            raise InputError(f"{pairs.source}: split {name!r} cannot be the name of a file; give it another one")


def write_features(pairs: Pairs, out: str | Path) -> str:
    """Write the features of some pairs, and of embedded captions theirs.

    Captions as words: a precomp folder, `SPLIT_ims.npy` and `SPLIT_caps.txt` ("all" where there are no splits).
    Embedded captions: `images.npy` and `captions.npy`. Both forms want those of an image together, equally many an
    image; where images have different numbers of captions, each caption gets an entry of its image. Beside them
    `pairs.csv` says which row is which, in the order of the captions, and `features.json` lists the files. The folder
    appears whole.

    Args:
        pairs: with features.
        out: the folder; features that it holds are replaced.

    Returns:
        What to give as DATA.

    Raises:
        InputError: the pairs have no features, the folder holds something else, or a split's name cannot be a file's.
    """
    out = Path(out)
    refuse_folder(out)
    if pairs.features is None:
        raise InputError(f"{pairs.source}: no features to write; encode the pairs first")
    if pairs.caption_features is None:
        refuse_splits(pairs)
    pairs = pairs.take(np.argsort(pairs.image_of, kind="stable"))
    assert pairs.features is not None
    with folder_written_whole(out) as folder:
        if pairs.caption_features is not None:
            _write(folder / "images.npy", pairs.features, _entries(pairs))
            _write(folder / "captions.npy", pairs.caption_features, np.arange(len(pairs)))
        else:
            names = pairs.splits or (ALL,) * len(pairs)
            pairs = replace(pairs, splits=names)
            for name in dict.fromkeys(names):
                part = pairs.take([split == name for split in names])
                assert part.features is not None
                _write(folder / f"{name}_ims.npy", part.features, _entries(part))
                lines = [" ".join(caption.split()) for caption in part.captions]
                (folder / f"{name}_caps.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        pairs.write(folder / TABLE)
        content = {"made by": "l2rm encode", "files": sorted(path.name for path in folder.iterdir())}
        (folder / MARK).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"{out / 'images.npy'},{out / 'captions.npy'}" if pairs.caption_features is not None else str(out)


def _written(out: Path) -> list[str]:
    """The files that the mark of a folder lists."""
    try:
        content = json.loads((out / MARK).read_text(encoding="utf-8"))
        return [str(name) for name in content["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out / MARK}: not what encode wrote; name a new folder, or delete this one") from error


def _entries(pairs: Pairs) -> NDArray[np.int64]:
    """Which image each entry is: one an image, where all have equally many captions, else one a caption."""
    counts = np.bincount(pairs.image_of, minlength=pairs.n_images)
    return np.arange(pairs.n_images) if (counts == counts[0]).all() else pairs.image_of


def _write(path: Path, features: Features, entries: NDArray[np.int64] | Sequence[int]) -> None:
    """Entries as float16, a chunk at a time."""
    index = np.asarray(entries)
    shape = (len(index), *features.shape[1:])
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, len(index), CHUNK):
        array[start : start + CHUNK] = features.batch(index[start : start + CHUNK]).numpy()
    array.flush()
