"""Raw images get features: decoded, encoded, remembered; a killed run goes on where it stopped."""

import hashlib
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.data.pairs import LeftOut, Pairs
from l2rm.encoders.efficientnet import EfficientNetLite0
from l2rm.encoders.filling import BATCH, Embed, Read, fill
from l2rm.encoders.pixels import decode
from l2rm.encoders.store import FeatureStore, stamp
from l2rm.errors import InputError
from l2rm.files import cache_folder

_log = logging.getLogger("l2rm")

_LISTED = 20


class Encoder(Protocol):
    """A frozen image encoder: pixels (B, size, size, 3) uint8 in, regions (B, grid², dim) float32 on the CPU out.

    `grid` is 1 to `max_grid`; `version` is raised when the same file would give other features.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    size: ClassVar[int]
    dim: ClassVar[int]
    max_grid: ClassVar[int]

    def __init__(self, *, grid: int, device: torch.device | str = "cpu") -> None: ...

    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor: ...


ENCODERS: dict[str, type[Encoder]] = {EfficientNetLite0.name: EfficientNetLite0}
"""The encoders that `encode` knows by name."""


def encode(
    pairs: Pairs,
    *,
    encoder: str = "efficientnet-lite0",
    grid: int = 6,
    skip_bad: bool = False,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> Pairs:
    """Give pairs whose pixels are on disk features, (N, grid², D) float16, memory-mapped.

    Features are kept in `cache_folder()/features/`, one growing file for each encoder, grid and `image_root`; an image
    is known again by its path, size and time. So only new or changed images are ever encoded, whichever split or
    subset of a data set asks, and a killed run goes on where it stopped.

    Args:
        pairs: the table; every image needs a file (`image_path`). Features that it has already are replaced.
        encoder: a name in `ENCODERS`; or a transformers model (CLIP, SigLIP) by its folder or its name on the hub,
            OWNER/MODEL, which gives captions embeddings too; see `l2rm.encoders.hf.encode_both`.
        grid: cells along each side of the image; an image becomes grid² regions, row by row from the top left.
        skip_bad: leave out rows whose image does not decode, and name them in warnings (logger "l2rm").
        progress: tell on standard error how far it has come.
        device: where the encoder runs.

    Returns:
        The same pairs with `features`; with `skip_bad`, less the rows of undecodable images.

    Raises:
        InputError: an unknown encoder or a grid out of range; pairs without pixels; an image that does not decode (its
            row and path are named); with `skip_bad`, no image left; the disk is full; the encoder's extra is missing.

    Example:
        >>> from l2rm.data import openmoji
        >>> encode(openmoji.read(), grid=3).features.shape                       # doctest: +SKIP
        (1918, 9, 1280)
    """
    if encoder not in ENCODERS and is_transformers_name(encoder):
        from l2rm.encoders.hf import encode_both

        return encode_both(pairs, encoder, skip_bad=skip_bad, progress=progress, device=device)
    kind = _kind(encoder, grid)
    store = FeatureStore(_store_path(kind, grid, pairs.image_root), (grid * grid, kind.dim))

    def network() -> tuple[Read, Embed]:
        return (lambda path: decode(path, kind.size)), kind(grid=grid, device=device)

    return encode_files(pairs, store, network, skip_bad=skip_bad, progress=progress)


def is_transformers_name(encoder: str) -> bool:
    """Whether an encoder's name is that of a model for transformers: a folder, or OWNER/MODEL on the hub."""
    return "/" in encoder or Path(encoder).is_dir()


def encode_files(
    pairs: Pairs,
    store: FeatureStore,
    network: Callable[[], tuple[Read, Embed]],
    *,
    skip_bad: bool,
    progress: bool,
    batch: int = BATCH,
    what: str = "encoding images",
) -> Pairs:
    """Give pairs features out of a store, after whatever is missing there has been encoded.

    Args:
        pairs, skip_bad, progress: as in `encode`.
        store: where entries are, and go to.
        network: makes, where there is anything to encode, what reads a file and what encodes a batch.
        batch: files at a time.
        what: what is told to be going on.

    Raises:
        InputError: as `encode`.
    """
    paths = _paths(pairs)
    stamps, bad = _stamps(paths)
    if bad and not skip_bad:
        raise _refusal(pairs, paths, bad)
    if any(stamp not in store for stamp in stamps.values()):
        with store.writing(), warnings.catch_warnings():
            # Pillow's warnings about files that decode all the same would end up between the lines of the progress bar.
            warnings.simplefilter("ignore")
            files = {stamp: paths[image] for image, stamp in stamps.items() if stamp not in store}
            failed = fill(store, files, *network(), stop_at_bad=not skip_bad, progress=progress, batch=batch, what=what)
            bad |= {image: failed[stamp] for image, stamp in stamps.items() if stamp in failed}
        if bad and not skip_bad:
            raise _refusal(pairs, paths, bad)
    if bad:
        _warn(pairs, paths, bad)
        pairs = _without(pairs, bad)
        stamps, _ = _stamps(_paths(pairs))
    return replace(pairs, features=store.features(list(stamps.values())))


def _without(pairs: Pairs, bad: dict[int, str]) -> Pairs:
    """The rows of the other images; those of the bad ones are told in `left_out`."""
    is_bad = np.isin(pairs.image_of, list(bad))
    told = tuple(
        LeftOut(
            row=pairs.pair_ids[row],
            image=pairs.images[pairs.image_of[row]],
            reason=f"does not decode ({bad[int(pairs.image_of[row])]})",
        )
        for row in np.flatnonzero(is_bad)
    )
    rest = replace(pairs, features=None, left_out=(*pairs.left_out, *told)).take(~is_bad)
    if not len(rest):
        raise InputError(f"{pairs.source}: no image decodes; check the images and their folder")
    return rest


def _kind(encoder: str, grid: int) -> type[Encoder]:
    if encoder not in ENCODERS:
        raise InputError(f"encoder: there is no {encoder!r}; choose from {', '.join(ENCODERS)}")
    kind = ENCODERS[encoder]
    if not 1 <= grid <= kind.max_grid:
        raise InputError(f"grid: {grid} is out of range; choose 1 to {kind.max_grid} cells a side")
    return kind


def _store_path(kind: type[Encoder], grid: int, image_root: Path | None) -> Path:
    root = "" if image_root is None else image_root.absolute()
    key = hashlib.sha256(f"{kind.version}\0{root}".encode()).hexdigest()[:16]
    return cache_folder() / "features" / f"{kind.name}-{grid}x{grid}-{key}.npy"


def _paths(pairs: Pairs) -> list[Path]:
    paths: list[Path] = []
    for image, name in enumerate(pairs.images):
        path = pairs.image_path(image)
        if path is None:
            raise InputError(f"{pairs.source}: image {name} has no file to encode; give the folder of the images")
        paths.append(path)
    return paths


def _stamps(paths: Sequence[Path]) -> tuple[dict[int, bytes], dict[int, str]]:
    """The stamp of each image, in order, and why the others have none."""
    stamps: dict[int, bytes] = {}
    bad: dict[int, str] = {}
    for image, path in enumerate(paths):
        try:
            stamps[image] = stamp(path)
        except OSError as error:
            bad[image] = error.strerror or "no such file"
    return stamps, bad


def _refusal(pairs: Pairs, paths: Sequence[Path], bad: dict[int, str]) -> InputError:
    image = min(bad)
    return InputError(f"{_told(pairs, paths, image, bad[image])}; fix it, or pass --skip-bad to leave out its rows")


def _warn(pairs: Pairs, paths: Sequence[Path], bad: dict[int, str]) -> None:
    for image in sorted(bad)[:_LISTED]:
        _log.warning("%s; left out", _told(pairs, paths, image, bad[image]))
    if len(bad) > _LISTED:
        _log.warning("%s: %d more images do not decode; left out", pairs.source, len(bad) - _LISTED)


def _told(pairs: Pairs, paths: Sequence[Path], image: int, reason: str) -> str:
    rows = np.flatnonzero(pairs.image_of == image)
    where = f"row {rows[0] + 1} (pair {pairs.pair_ids[rows[0]]})" if len(rows) else "an image of no row"
    return f"{pairs.source}: {where}: {paths[image]} does not decode ({reason})"
