"""What an epoch teaches: captions, each with an image and a weight."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from l2rm.data.batches import Batch, Batches, cycled, shuffled


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """Pairs to learn from: `rows (n,)`, captions, each with one of `images (n,)`, and one of `weights (n,)`.

    A weight, in [0, 1], is how far a pair is taken as matched. Without `images` every caption comes with the image that
    it is given; without `weights` it counts in full. A row may come more than once, with different images.

    Example:
        >>> lesson = Lesson(rows=np.array([3, 5]), images=np.array([0, 2]), weights=np.ones(2, np.float32))
        >>> lesson.take(np.array([1])).images.tolist()
        [2]
    """

    rows: NDArray[np.int64]
    images: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for name, column in (("images", self.images), ("weights", self.weights)):
            if column is not None and len(column) != len(self.rows):
                raise ValueError(f"{len(column)} {name} for {len(self.rows)} rows")

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: NDArray[np.int64]) -> "Lesson":
        """The pairs at these places."""
        return Lesson(
            rows=self.rows[places],
            images=None if self.images is None else self.images[places],
            weights=None if self.weights is None else self.weights[places],
        )

    def batches(self, size: int, *, seed: tuple[int, ...]) -> "list[Lesson]":
        """One pass in an order that `seed` decides, a smaller last batch left out: `l2rm.data.batches.shuffled`."""
        return [self.take(places) for places in shuffled(np.arange(len(self)), size, seed=seed)]

    def cycled(self, size: int, *, seed: tuple[int, ...]) -> "Iterator[Lesson]":
        """Batches for ever, shuffled anew on every pass: `l2rm.data.batches.cycled`."""
        return map(self.take, cycled(np.arange(len(self)), size, seed=seed))

    def steps(self, size: int, count: int, *, seed: tuple[int, ...]) -> "list[Lesson]":
        """So many batches, cycled: as many gradient steps as another lesson would make."""
        return list(islice(self.cycled(size, seed=seed), count))

    def read(self, batches: Batches) -> Batch:
        """As tensors."""
        return batches.batch(self.rows, self.images, self.weights)
