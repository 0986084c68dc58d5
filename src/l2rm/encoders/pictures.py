"""Pictures that are decoded when a batch asks for them: for models that learn from pixels, not from features."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.encoders.filling import Embed, Read
from l2rm.encoders.image import encode_files
from l2rm.encoders.pixels import UndecodableImageError, opened
from l2rm.encoders.pretrained import Reading
from l2rm.encoders.store import FeatureStore
from l2rm.errors import InputError
from l2rm.files import cache_folder

THREADS = 8
"""Pictures that are decoded at the same time, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures(Features):
    """Files in the place of features (N, 3, H·W): colour planes, as a model's own preprocessing makes them.

    None are kept: a batch is decoded, by a few threads, whenever it is asked for, so memory is that of a batch.

    Attributes:
        paths: a file an entry.
        reading: the preprocessing.
    """

    paths: tuple[Path, ...]
    reading: Reading

    @classmethod
    def of(cls, paths: tuple[Path, ...], reading: Reading) -> "Pictures":
        """The pictures in these files."""
        planes, height, width = reading.shape
        nothing = np.broadcast_to(np.float32(0), (len(paths), planes, height * width))  # tells the shape, takes no room
        return cls(array=nothing, paths=paths, reading=reading)

    def batch(self, index: NDArray[np.int64]) -> torch.Tensor:
        """(len(index), 3, H·W) float32 on the CPU; a picture that is asked for twice is decoded once.

        Raises:
            InputError: a file is gone, or has changed and does not decode any more.
        """
        wanted, place = np.unique(self._rows(index), return_inverse=True)
        decoded = np.empty((len(wanted), *self.array.shape[1:]), dtype=np.float32)

        def work(number: int) -> None:
            path = self.paths[wanted[number]]
            try:
                decoded[number] = self.reading.pixels(path).reshape(decoded.shape[1:])
            except UndecodableImageError as error:
                raise InputError(f"{path}: does not decode any more ({error}); put the file back as it was") from error

        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), thread_name_prefix="l2rm-pictures") as pool:
            for _ in pool.map(work, range(len(wanted))):
                pass
        found = torch.from_numpy(decoded)
        return found if np.array_equal(place, np.arange(len(found))) else found[torch.from_numpy(place)]

    def check(self) -> None:
        """Nothing to look for: `pictured` has tried to decode every file."""

    def digest(self) -> str:
        """Tells these files from others of the same names, by their sizes."""
        rows = self._rows(np.arange(len(self)))
        sizes = np.array([self.paths[row].stat().st_size for row in rows], dtype=np.int64)
        return hashlib.sha256(f"{self.shape}".encode() + sizes.tobytes()).hexdigest()[:16]

    def _rows(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        return index if self.index is None else self.index[index]


def pictured(pairs: Pairs, reading: Reading, *, skip_bad: bool = False, progress: bool = True) -> Pairs:
    """Give pairs whose images are files their `Pictures`.

    Every file is decoded once beforehand, so that a training does not come upon a broken one hours later; what did
    decode is remembered in `cache_folder()/features/`, by path, size and time.

    Args:
        pairs: every image needs a file (`image_path`). Features that it has already are replaced.
        reading: the model's preprocessing.
        skip_bad: leave out rows whose image does not decode, and name them in warnings (logger "l2rm").
        progress: tell on standard error how far it has come.

    Raises:
        InputError: pairs without files; an image that does not decode (its row and path are named); with `skip_bad`, no
            image left.
    """
    root = "" if pairs.image_root is None else pairs.image_root.absolute()
    key = hashlib.sha256(str(root).encode()).hexdigest()[:16]
    seen = FeatureStore(cache_folder() / "features" / f"decodes-{key}.npy", (1,))

    def network() -> tuple[Read, Embed]:
        return _tried, torch.from_numpy

    pairs = encode_files(pairs, seen, network, skip_bad=skip_bad, progress=progress, what="looking at images")
    paths = tuple(pairs.image_path(image) or Path() for image in range(pairs.n_images))
    return replace(pairs, features=Pictures.of(paths, reading))


def _tried(path: Path) -> NDArray[Any]:
    opened(path, 1)
    return np.ones(1, dtype=np.float32)
