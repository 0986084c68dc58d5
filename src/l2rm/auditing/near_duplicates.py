"""Pictures that are there more than once: the same file, or nearly the same picture."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import normalize

from l2rm.data.features import Features
from l2rm.data.packed import file_state, open_file
from l2rm.data.pairs import Pairs
from l2rm.encoders.pictures import Pictures
from l2rm.encoders.pixels import UndecodableImageError, opened
from l2rm.progress import track

BLOCK = 2048
NEAR = 0.13
"""Part of the median distance between nearest neighbours below which features are those of near-duplicates."""
ALIKE = 0.6
"""The same for pictures whose pixels are then looked at."""
ROUNDING = 1e-6
"""Distance up to which features are the same, even where most pictures have a copy and the median says nothing."""
SIDE = 16
"""Pixels along each side of the thumbnails that are compared."""
PIXELS = 0.02
"""Root of the mean squared difference of two thumbnails, of values from 0 to 1, up to which pictures are the same."""
MOST = 200_000
"""Images that are compared with one another, at most: of more, only files that are the same are found."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NearDuplicates:
    """Which pictures are the same, or nearly.

    Attributes:
        group: `(images,)` pictures of one number are connected by near-duplicates.
        is_issue: `(images,)` whether there is another in the group.
        score: `(images,)` in [0, 1]: 0 for a picture that is there twice, towards 1 the further its nearest neighbour
            is.
    """

    group: NDArray[np.int64]
    is_issue: NDArray[np.bool_]
    score: NDArray[np.float64]


def find_near_duplicates(pairs: Pairs, *, progress: bool = False) -> NearDuplicates | None:
    """Compare all pictures with one another, exactly, block by block.

    Where there are files, pictures are the same if their files are (by a digest of the content), or if thumbnails of
    16 × 16 pixels differ by 0.02 at most (root of the mean square; JPEG at another quality and size differs by 0.01).
    With features only those pairs of pictures are looked at whose features are within 0.6 of the median distance
    between nearest neighbours. Of features alone, near-duplicates are those within 0.13 of that median: Cleanlab's
    rule, which needs no scale, and finds pictures of one kind too where a set has many of them.

    Args:
        pairs: with features, or files, or both.
        progress: tell on standard error how far it is.

    Returns:
        None where there are neither features nor files.
    """
    if pairs.features is None and pairs.image_root is None:
        return None
    n, has_files = pairs.n_images, pairs.image_root is not None
    features = None if isinstance(pairs.features, Pictures) else pairs.features
    group = _same_files(pairs) if has_files else np.arange(n)
    kept = group == np.arange(n)  # one of each file: what is near to it is near to its copies
    score = np.ones(n)
    if n <= MOST and features is not None:
        vectors = _of_features(features)
        nearest = _nearest(vectors, n, progress)
        typical = float(np.median(nearest))
        limit = max((ALIKE if has_files else NEAR) * typical, ROUNDING)
        alike = np.flatnonzero(kept & (nearest <= limit))
        close = _within(vectors, limit)
        group = _joined_by_pixels(group, pairs, alike, close, progress) if has_files else _joined(group, alike, close)
        score = nearest / (nearest + typical) if typical > 0 else (nearest > 0).astype(np.float64)
    elif n <= MOST:
        vectors = _thumbnails(pairs, np.arange(n), progress)
        nearest = _nearest(vectors, n, progress)
        group = _joined(group, np.flatnonzero(kept & (nearest <= PIXELS**2 / 2)), _within(vectors, PIXELS**2 / 2))
        score = np.clip(np.sqrt(2 * nearest), 0, 1)
    group = np.unique(group, return_inverse=True)[1].astype(np.int64)
    is_issue = np.bincount(group)[group] > 1
    return NearDuplicates(group=group, is_issue=is_issue, score=np.where(is_issue, np.minimum(score, 0.1), score))


Vectors = Callable[[NDArray[np.int64]], Tensor]
Close = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""Which of some pictures (R,) are close to which of others (C,): (R, C)."""


def _of_features(features: Features) -> Vectors:
    """Unit vectors, regions averaged."""

    def vectors(index: NDArray[np.int64]) -> Tensor:
        found = features.batch(index)
        return normalize(found.mean(1) if found.dim() == 3 else found, dim=1)

    return vectors


def _thumbnails(pairs: Pairs, images: NDArray[np.int64], progress: bool) -> Vectors:
    """Thumbnails of some pictures, so scaled that half a squared distance is half the mean squared difference.

    What does not decode is infinitely far from everything.
    """
    place = np.full(pairs.n_images, -1)
    place[images] = np.arange(len(images))
    pixels = np.full((len(images), SIDE * SIDE * 3), np.nan, dtype=np.float32)
    for row, image in enumerate(track(images, total=len(images), what="comparing pixels", enabled=progress)):
        path = pairs.image_path(int(image))
        assert path is not None
        with contextlib.suppress(UndecodableImageError):
            small = opened(path, 8 * SIDE).resize((SIDE, SIDE), Image.Resampling.BOX)
            pixels[row] = np.asarray(small, dtype=np.float32).reshape(-1) / 255
    pixels /= SIDE * np.sqrt(3)
    return lambda index: torch.from_numpy(pixels[place[index]])


def _joined_by_pixels(
    group: NDArray[np.int64], pairs: Pairs, images: NDArray[np.int64], close: Close, progress: bool
) -> NDArray[np.int64]:
    """`_joined` by those that are close and whose thumbnails are the same; no others become thumbnails."""
    together = _joined(np.arange(len(group)), images, close)
    images = images[np.bincount(together, minlength=len(group))[together[images]] > 1]
    if not len(images):
        return group
    thumbnails = _thumbnails(pairs, images, progress)
    same = _within(lambda index: thumbnails(index).double(), PIXELS**2 / 2)

    def both(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = close(rows, columns)
        a, b = found.any(axis=1), found.any(axis=0)
        found[np.ix_(a, b)] &= same(rows[a], columns[b])
        return found

    return _joined(group, images, both)


def _nearest(vectors: Vectors, n: int, progress: bool) -> NDArray[np.float64]:
    """(n,) half the squared distance to the nearest other picture; of unit vectors that is the cosine distance.

    Of the symmetric matrix only one half is computed.
    """
    best = torch.full((n,), torch.inf)
    blocks = [np.arange(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]

    def distances() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Tensor]]:
        for place, rows in enumerate(blocks):
            here = vectors(rows)
            for columns in blocks[place:]:
                yield rows, columns, _distance(here, here if columns is rows else vectors(columns))

    total = len(blocks) * (len(blocks) + 1) // 2
    for rows, columns, distance in track(distances(), total=total, what="comparing pictures", enabled=progress):
        if columns is rows:
            distance.fill_diagonal_(torch.inf)
        else:
            best[columns] = torch.minimum(best[columns], distance.amin(0))
        best[rows] = torch.minimum(best[rows], distance.amin(1))
    nearest: NDArray[np.float64] = best.double().clamp(min=0).nan_to_num(1e6, posinf=1e6).numpy()
    return nearest


def _within(vectors: Vectors, limit: float) -> Close:
    """Close is what is no further apart than `limit`."""
    return lambda rows, columns: (_distance(vectors(rows), vectors(columns)) <= limit).numpy()


def _joined(group: NDArray[np.int64], images: NDArray[np.int64], close: Close) -> NDArray[np.int64]:
    """Groups, named by the first of each, when those of the given pictures that are close are joined, too.

    Of a block only pairs across groups count, so that thousands of copies of one picture are no millions of pairs.
    """
    for start in range(0, len(images), BLOCK):
        rows = images[start : start + BLOCK]
        for begin in range(start, len(images), BLOCK):
            columns = images[begin : begin + BLOCK]
            across = close(rows, columns) & (group[rows][:, None] != group[columns])
            a, b = across.nonzero()
            if not len(a):
                continue
            ends = group[rows[a]], group[columns[b]]
            graph = coo_matrix((np.ones(len(a), dtype=np.bool_), ends), shape=(len(group), len(group)))
            found = connected_components(graph, directed=False)[1]
            first = np.unique(found, return_index=True)[1]
            group = first[found[group]]
    return group


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Half the squared distance of all rows; infinite for those of NaN."""
    squares = 0.5 * (one.square().sum(1)[:, None] + other.square().sum(1)[None, :])
    return torch.nan_to_num(squares - one @ other.T, nan=torch.inf)


def _same_files(pairs: Pairs) -> NDArray[np.int64]:
    """(images,) the first picture whose file has the same content as this one's; only files of one size are read."""
    paths = [pairs.image_path(image) for image in range(pairs.n_images)]
    by_size: dict[int, list[int]] = {}
    for image, path in enumerate(paths):
        with contextlib.suppress(OSError):
            assert path is not None
            by_size.setdefault(file_state(path).st_size, []).append(image)
    first: dict[bytes, int] = {}
    owner = np.arange(pairs.n_images)
    for images in by_size.values():
        for image in images if len(images) > 1 else ():
            owner[image] = first.setdefault(_digest(paths[image]), image)
    return owner


def _digest(path: Path | None) -> bytes:
    assert path is not None
    with open_file(path) as file:
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
        return digest.digest()
