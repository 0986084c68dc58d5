"""Captions that went astray together are rematched together: their scores are averaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.evaluation.scores import Scores

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Units:
    """Rows in groups; each group is one thing to rematch.

    Attributes:
        rows: the rows of all units, one unit after the other.
        starts: `(units + 1,)`; where each unit starts among them, and the end.
    """

    rows: Integers
    starts: Integers

    @classmethod
    def single(cls, rows: Integers) -> Units:
        """Every row is a unit."""
        return cls(rows=rows, starts=np.arange(len(rows) + 1))

    @classmethod
    def by_image(cls, rows: Integers, image_of: Integers) -> Units:
        """The rows given one image are a unit."""
        order = rows[np.argsort(image_of[rows], kind="stable")]
        first = np.flatnonzero(np.diff(image_of[order], prepend=-1))
        return cls(rows=order, starts=np.append(first, len(order)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def unit_of(self) -> Integers:
        """The unit of each of `rows`."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @property
    def first(self) -> Integers:
        """One row of each unit."""
        return self.rows[self.starts[:-1]]

    def sum(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """The sum over each unit of a value a row."""
        return np.bincount(self.unit_of, values[self.rows], minlength=len(self)).astype(np.float64)

    def take(self, units: Integers) -> Units:
        """Some of the units, in the given order."""
        sizes = np.diff(self.starts)[units]
        starts = np.append(0, np.cumsum(sizes))
        inside = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
        return Units(rows=self.rows[np.repeat(self.starts[:-1][units], sizes) + inside], starts=starts)


class UnitScores:
    """Scores of images against units: the mean over a unit's captions."""

    def __init__(self, scores: Scores, units: Units) -> None:
        self._scores, self._units = scores, units

    @property
    def n_images(self) -> int:
        """Images."""
        return self._scores.n_images

    @property
    def n_captions(self) -> int:
        """Units."""
        return len(self._units)

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Mean scores (len(images), len(captions)) of these units."""
        some = self._units.take(captions)
        block = self._scores.block(images, some.rows)
        if len(some.rows) == len(some):
            return block
        place = torch.from_numpy(some.unit_of).to(block.device)
        total = block.new_zeros(len(images), len(some)).index_add_(1, place, block)
        return total / torch.from_numpy(np.diff(some.starts)).to(total)

    def own(self, image_of: Integers, chunk: int = 256) -> NDArray[np.float32]:
        """Score of each unit with the image that it is given, `(units,)`."""
        given = image_of[self._units.first]
        found = np.empty(len(given), dtype=np.float32)
        for start in range(0, len(given), chunk):
            units = np.arange(start, min(start + chunk, len(given)))
            images, place = np.unique(given[units], return_inverse=True)
            block = self.block(images, units).float().cpu().numpy()
            found[units] = block[place, np.arange(len(units))]
        return found
