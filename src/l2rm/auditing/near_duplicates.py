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
    edges = _same_files(pairs) if has_files else []
    score = np.ones(n)
    if n <= MOST and features is not None:
        vectors = _of_features(features)
        nearest = _nearest(vectors, n, progress)
        typical = float(np.median(nearest))
        alike = np.flatnonzero(nearest <= (ALIKE if has_files else NEAR) * typical)
        close = _edges(vectors, alike, (ALIKE if has_files else NEAR) * typical)
        edges += _of_same_pixels(pairs, close, progress) if has_files else close
        score = nearest / (nearest + typical) if typical > 0 else (nearest > 0).astype(np.float64)
    elif n <= MOST:
        vectors = _thumbnails(pairs, np.arange(n), progress)
        nearest = _nearest(vectors, n, progress)
        edges += _edges(vectors, np.flatnonzero(nearest <= PIXELS**2 / 2), PIXELS**2 / 2)
        score = np.clip(np.sqrt(2 * nearest), 0, 1)
    ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
    graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(n, n))
    group = connected_components(graph, directed=False)[1].astype(np.int64)
    is_issue = np.bincount(group)[group] > 1
    return NearDuplicates(group=group, is_issue=is_issue, score=np.where(is_issue, np.minimum(score, 0.1), score))


Vectors = Callable[[NDArray[np.int64]], Tensor]


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


def _of_same_pixels(pairs: Pairs, close: list[tuple[int, int]], progress: bool) -> list[tuple[int, int]]:
    """Those of some pairs of pictures whose thumbnails are the same."""
    if not close:
        return []
    ends = np.array(close)
    vectors = _thumbnails(pairs, np.unique(ends), progress)
    same = []
    for start in range(0, len(ends), BLOCK):
        some = ends[start : start + BLOCK]
        difference = (vectors(some[:, 0]) - vectors(some[:, 1])).square().sum(1)
        same += [(int(a), int(b)) for a, b in some[(difference <= PIXELS**2).numpy()]]
    return same


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


def _edges(vectors: Vectors, images: NDArray[np.int64], limit: float) -> list[tuple[int, int]]:
    """Pairs of the given pictures that are no further apart than `limit`."""
    found: list[tuple[int, int]] = []
    for start in range(0, len(images), BLOCK):
        rows = images[start : start + BLOCK]
        here = vectors(rows)
        for begin in range(start, len(images), BLOCK):
            columns = images[begin : begin + BLOCK]
            near = (_distance(here, vectors(columns)) <= limit).nonzero().numpy()
            found += [(int(rows[a]), int(columns[b])) for a, b in near if rows[a] < columns[b]]
    return found


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Half the squared distance of all rows; infinite for those of NaN."""
    squares = 0.5 * (one.square().sum(1)[:, None] + other.square().sum(1)[None, :])
    return torch.nan_to_num(squares - one @ other.T, nan=torch.inf)


def _same_files(pairs: Pairs) -> list[tuple[int, int]]:
    """Pictures whose files have the same content, each with the first of its kind; only files of one size are read."""
    paths = [pairs.image_path(image) for image in range(pairs.n_images)]
    by_size: dict[int, list[int]] = {}
    for image, path in enumerate(paths):
        with contextlib.suppress(OSError):
            assert path is not None
            by_size.setdefault(file_state(path).st_size, []).append(image)
    first: dict[bytes, int] = {}
    edges = []
    for images in by_size.values():
        for image in images if len(images) > 1 else ():
            owner = first.setdefault(_digest(paths[image]), image)
            if owner != image:
                edges.append((owner, image))
    return edges


def _digest(path: Path | None) -> bytes:
    assert path is not None
    with open_file(path) as file:
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
        return digest.digest()
