"""Encoded pairs as a folder of features that any command reads as DATA."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.files import folder_written_whole

CHUNK = 1024
TABLE = "pairs.csv"
ALL = "all"
"""The split's name where there are no splits."""


def refuse_folder(out: Path) -> None:
    """Features go to a folder that is new or empty, or that holds features already.

    Raises:
        InputError: a file has that name, or something else is in the folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder for the features")
    known = ("images.npy", "captions.npy", TABLE)
    strange = [
        path.name
        for path in (sorted(out.iterdir()) if out.exists() else ())
        if path.name not in known and not path.name.endswith(("_ims.npy", "_caps.txt"))
    ]
    if strange:
        raise InputError(
            f"{out}: holds {strange[0]}, which is no features; name a new folder, for this one is replaced"
        )


def write_features(pairs: Pairs, out: str | Path) -> str:
    """Write the features of some pairs, and of embedded captions theirs.

    Captions as words: a precomp folder, `SPLIT_ims.npy` and `SPLIT_caps.txt` ("all" where there are no splits).
    Embedded captions: `images.npy` and `captions.npy`. Both forms want those of an image together, equally many an
    image; where images have different numbers of captions, each caption gets an entry of its image. Beside them
    `pairs.csv` says which row is which, in the order of the captions. The folder appears whole.

    Args:
        pairs: with features.
        out: the folder; features that it holds are replaced.

    Returns:
        What to give as DATA.

    Raises:
        InputError: the pairs have no features, or the folder holds something else.
    """
    out = Path(out)
    refuse_folder(out)
    if pairs.features is None:
        raise InputError(f"{pairs.source}: no features to write; encode the pairs first")
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
    return f"{out / 'images.npy'},{out / 'captions.npy'}" if pairs.caption_features is not None else str(out)


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
