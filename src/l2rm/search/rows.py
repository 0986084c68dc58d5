"""What segments are written from besides a model's encodings: vectors as they are, and items that are kept."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.search.items import Items
from l2rm.search.storage import Kind, roots_of

BLOCK = 8192
BLOCK_WITH_REGIONS = 256


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Each vector (N, D) at length 1; a zero stays zero."""
    length = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
    scaled: NDArray[np.float32] = (vectors / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
    return scaled


class VectorRows:
    """Pairs whose features and caption features are vectors of one space; they are taken at length 1.

    Raises:
        InputError: one of the two is missing, has regions, a value that is not finite, or another dimension than the
            other.
    """

    def __init__(self, pairs: Pairs) -> None:
        images, captions = pairs.features, pairs.caption_features
        if images is None or captions is None:
            raise InputError(
                f"{pairs.source}: without a model, images and captions must both be vectors; give "
                "images.npy,captions.npy, or a --model"
            )
        if images.regions is not None or images.dim != captions.dim or captions.regions is not None:
            raise InputError(
                f"{pairs.source}: image vectors {images.shape[1:]} and caption vectors {captions.shape[1:]} are not of "
                "one space; give a --model that was trained on them"
            )
        images.check()
        captions.check()
        self.names, self.captions, self.pair_ids = pairs.images, pairs.captions, pairs.pair_ids
        self.image_of, self.roots = pairs.image_of, roots_of(pairs)
        self.dim = images.dim
        self._images, self._captions = images, captions

    def image_vectors(self) -> Iterable[tuple[NDArray[np.float32], None]]:
        return ((block, None) for block in _blocks(self._images))

    def caption_vectors(self) -> Iterable[NDArray[np.float32]]:
        return _blocks(self._captions)


def counted_on(names: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
    """Names that end in a number each, after the same beginning; counted on from those taken if one of them is.

    Example:
        >>> counted_on(["image 0", "image 1"], ["image 0", "image 4"]), counted_on(["dev/0"], ["train/0"])
        (('image 5', 'image 6'), ('dev/0',))
    """
    if set(taken).isdisjoint(names):
        return tuple(names)
    start = names[0].rstrip("0123456789")
    ends = [name.removeprefix(start) for name in taken if name.startswith(start)]
    offset = 1 + max(int(end) for end in ends if end.isascii() and end.isdecimal())
    return tuple(f"{start}{offset + int(name.removeprefix(start))}" for name in names)


def _blocks(features: Features) -> Iterable[NDArray[np.float32]]:
    rows = np.arange(len(features)) if features.index is None else features.index
    for start in range(0, len(rows), BLOCK):
        block = np.asarray(features.array[rows[start : start + BLOCK]], dtype=np.float32)
        yield unit(block if features.scale is None else block * features.scale)


class KeptRows:
    """The items of an index that are still there, in the order of their ids."""

    def __init__(self, images: Items, captions: Items) -> None:
        kept = {"image": np.isin(images.all_ids, images.ids), "caption": np.isin(captions.all_ids, captions.ids)}
        self.ids: dict[Kind, NDArray[np.int64]] = {"image": images.ids, "caption": captions.ids}
        self.names = images.column("name")[kept["image"]].tolist()
        self.roots = images.column("root")[kept["image"]].tolist()
        self.captions = captions.column("caption")[kept["caption"]].tolist()
        self.pair_ids = captions.column("pair_id")[kept["caption"]].tolist()
        self.image_of = np.searchsorted(self.ids["image"], captions.column("image")[kept["caption"]])
        self._items = images, captions

    def image_vectors(self) -> Iterable[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
        images, _ = self._items
        block = BLOCK_WITH_REGIONS if images.has_regions else BLOCK
        for start in range(0, len(self.names), block):
            ids = self.ids["image"][start : start + block]
            yield images.vectors(ids), images.regions(ids) if images.has_regions else None

    def caption_vectors(self) -> Iterable[NDArray[np.float32]]:
        _, captions = self._items
        for start in range(0, len(self.captions), BLOCK):
            yield captions.vectors(self.ids["caption"][start : start + BLOCK])
