"""All items of one kind, whichever segment they lie in: found by vector, told by id."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2rm.errors import InputError
from l2rm.search.approximate import Lists
from l2rm.search.nearest import Found, merged, nothing, top_k
from l2rm.search.storage import Kind, Segment


class Items:
    """Images, or captions, of an index.

    Args:
        kind: which of the two.
        segments: oldest first.
        removed: ids that are gone, ascending.
        lists: the approximate index of the oldest items, if there is one.
        listed: how many it holds; items after them are searched exactly.
    """

    def __init__(
        self,
        kind: Kind,
        segments: Sequence[Segment],
        removed: NDArray[np.int64],
        lists: Lists | None = None,
        listed: int = 0,
    ) -> None:
        self.kind = kind
        self.removed = removed
        self._segments = segments
        self._lists = lists
        self._ids = np.concatenate([segment.ids[kind] for segment in segments])
        self._starts = np.cumsum([0, *(len(segment.ids[kind]) for segment in segments)])
        self._exact = [segment for segment, start in zip(segments, self._starts, strict=False) if start >= listed]

    def __len__(self) -> int:
        return len(self._ids) - len(self.removed)

    @property
    def ids(self) -> NDArray[np.int64]:
        """The ids of all items that are there, ascending."""
        return self._ids[~np.isin(self._ids, self.removed, assume_unique=True)]

    def __contains__(self, number: int) -> bool:
        place = int(np.searchsorted(self._ids, number))
        gone = int(np.searchsorted(self.removed, number))
        there = place < len(self._ids) and self._ids[place] == number
        return bool(there and not (gone < len(self.removed) and self.removed[gone] == number))

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool = False) -> Found:
        """The k nearest items of each query."""
        k = max(1, min(k, len(self)))
        parts = [nothing(len(queries), k)]
        if self._lists is not None and not exact:
            parts.append(self._lists.search(queries, k, self.removed))
        for segment in self._exact if not exact else self._segments:
            vectors, ids = segment.vectors[self.kind], segment.ids[self.kind]
            parts.append(top_k(vectors, ids, queries, k, removed=self.removed))
        return merged(parts, k)

    def vector(self, number: int) -> NDArray[np.float32]:
        """(D,) of one item.

        Raises:
            InputError: there is none with this id.
        """
        segment, row = self.place(number)
        return np.asarray(segment.vectors[self.kind][row], dtype=np.float32)

    def vectors(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) of items that are known to be there."""
        return self._gathered(numbers, [segment.vectors[self.kind] for segment in self._segments])

    @property
    def has_regions(self) -> bool:
        """The regions of images are kept."""
        return all(segment.regions is not None for segment in self._segments)

    def regions(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, R, D') regions of images that are known to be there."""
        return self._gathered(numbers, [segment.regions for segment in self._segments if segment.regions is not None])

    def value(self, number: int, column: str) -> Any:
        """A cell of the item's row.

        Raises:
            InputError: there is no such item.
        """
        segment, row = self.place(number)
        return segment.tables[self.kind][column][row].as_py()

    def _gathered(self, numbers: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        places = np.searchsorted(self._ids, numbers)
        which = np.searchsorted(self._starts, places, side="right") - 1
        found = np.empty((len(numbers), *arrays[0].shape[1:]), dtype=np.float32)
        for number in np.unique(which):
            there = which == number
            found[there] = arrays[number][places[there] - self._starts[number]]
        return found

    def column(self, name: str) -> NDArray[Any]:
        """A column of all rows, removed ones included, in the order of `all_ids`."""
        return np.concatenate([segment.tables[self.kind][name].to_numpy() for segment in self._segments])

    @property
    def all_ids(self) -> NDArray[np.int64]:
        """The ids of all rows, removed ones included, ascending."""
        return self._ids

    def place(self, number: int) -> tuple[Segment, int]:
        """The segment and the row of an item.

        Raises:
            InputError: there is none with this id.
        """
        if number not in self:
            raise InputError(f"{self.kind}:{number}: no such item in this index; search shows what there is")
        place = int(np.searchsorted(self._ids, number))
        which = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._segments[which], place - int(self._starts[which])


def image_file(root: str, name: str) -> Path | None:
    """Where the pixels of an image are; None where only its features were known."""
    return Path(root) / name if root else None
