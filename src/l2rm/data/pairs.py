"""The table of (image, caption) rows that everything else works on."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l2rm.errors import InputError

if TYPE_CHECKING:
    from l2rm.data.features import Features


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A row that could not be used: its number or pair id, its image as far as it is known, and why."""

    row: str
    image: str
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Rows of (image, caption); an image is listed once, however many captions it has.

    Attributes:
        images: Name of each distinct image: its path relative to `image_root`, or an id.
        image_of: (rows,) int64, the image that each caption is *given*.
        captions: (rows,) texts.
        pair_ids: (rows,) unique names of the rows; "0", "1", … when left out.
        splits: (rows,) "train", "dev", "test" or other names, where the source has them.
        true_image_of: (rows,) int64, the image that each caption belongs to, -1 where that is none of `images`. This is
            the truth: only the oracle and the metrics read it.
        image_root: Folder that the image names start from.
        features: One entry an image, in the order of `images`.
        caption_features: One embedding a row.
        trusted: (rows,) which rows a person decided to be matched (`l2rm.data.decided`); None where nobody did.
        source: What messages call this table.
        left_out: Rows that it does not hold, as they could not be used (`skip_bad`).
        named: Whether the source names its images; if not, `images` only count them ("image 0"), and the same name in
            another source is another image.

    Raises:
        InputError: Columns of different lengths, an image number out of range, a pair id used twice.

    Example:
        >>> pairs = Pairs(images=("a.jpg", "b.jpg"), image_of=np.array([0, 0, 1]), captions=("a dog", "dogs", "a cat"))
        >>> len(pairs), pairs.n_images, pairs.pair_ids
        (3, 2, ('0', '1', '2'))
        >>> pairs.take([2]).images
        ('b.jpg',)
    """

    images: tuple[str, ...]
    image_of: NDArray[np.int64]
    captions: tuple[str, ...]
    pair_ids: tuple[str, ...] = ()
    splits: tuple[str, ...] | None = None
    true_image_of: NDArray[np.int64] | None = None
    image_root: Path | None = None
    features: Features | None = None
    caption_features: Features | None = None
    trusted: NDArray[np.bool_] | None = None
    source: str = "pairs"
    left_out: tuple[LeftOut, ...] = ()
    named: bool = True

    def __post_init__(self) -> None:
        if not self.pair_ids:
            object.__setattr__(self, "pair_ids", tuple(map(str, range(len(self.captions)))))
        columns: dict[str, Sized | None] = {
            "image_of": self.image_of,
            "pair_ids": self.pair_ids,
            "splits": self.splits,
            "true_image_of": self.true_image_of,
            "caption_features": self.caption_features,
            "trusted": self.trusted,
        }
        for name, column in columns.items():
            if column is not None and len(column) != len(self):
                self._refuse(f"{len(column)} entries in {name} for {len(self)} captions; give one a caption")
        if self.features is not None and len(self.features) != self.n_images:
            self._refuse(f"{len(self.features)} features for {self.n_images} images; give one an image")
        self._check_range("image_of", self.image_of, lowest=0)
        if self.true_image_of is not None:
            self._check_range("true_image_of", self.true_image_of, lowest=-1)
        if len(set(self.pair_ids)) != len(self):
            self._refuse("a pair id is used twice; give every row its own")

    @classmethod
    def read(
        cls,
        source: str | Path,
        *,
        image_root: str | Path | None = None,
        split: str | None = None,
        skip_bad: bool = False,
    ) -> Pairs:
        """Read a precomp folder, a table, two embedding arrays or a built-in set: `l2rm.data.formats.read_pairs`."""
        from l2rm.data.formats import read_pairs

        return read_pairs(source, image_root=image_root, split=split, skip_bad=skip_bad)

    def write(self, path: str | Path) -> None:
        """Write a table, in the form that the suffix names: .csv, .tsv, .jsonl or .parquet.

        Columns: `pair_id, image, caption`, then `split` where there are splits, and `is_mismatched, true_image` where
        the truth is known (`true_image` is empty where it is none of `images`). Image names stay relative to
        `image_root`, so a table written elsewhere is read with that `image_root`. Features are not written.
        """
        from l2rm.data.tables import write_table

        columns: dict[str, list[str] | list[bool]] = {
            "pair_id": list(self.pair_ids),
            "image": [self.images[image] for image in self.image_of],
            "caption": list(self.captions),
        }
        if self.splits is not None:
            columns["split"] = list(self.splits)
        if self.is_mismatched is not None and self.true_image_of is not None:
            columns["is_mismatched"] = self.is_mismatched.tolist()
            columns["true_image"] = [self.images[image] if image >= 0 else "" for image in self.true_image_of]
        write_table(path, columns)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def n_images(self) -> int:
        """Number of distinct images."""
        return len(self.images)

    @property
    def is_mismatched(self) -> NDArray[np.bool_] | None:
        """(rows,) whether a caption is given another image than its own; None where the truth is not known."""
        return None if self.true_image_of is None else self.image_of != self.true_image_of

    def take(self, rows: Any) -> Pairs:
        """The given rows (numbers, a boolean mask or a slice) in the given order, with the images that they use.

        Images keep their order and features follow as a view. A true image that no row uses any more becomes -1.
        """
        rows = np.arange(len(self))[rows]
        used = np.unique(self.image_of[rows])
        position = np.full(self.n_images + 1, -1)  # one more, so that position[-1] is -1 too
        position[used] = np.arange(len(used))
        return replace(
            self,
            images=tuple(self.images[image] for image in used),
            image_of=position[self.image_of[rows]],
            captions=tuple(self.captions[row] for row in rows),
            pair_ids=tuple(self.pair_ids[row] for row in rows),
            splits=None if self.splits is None else tuple(self.splits[row] for row in rows),
            true_image_of=None if self.true_image_of is None else position[self.true_image_of[rows]],
            features=None if self.features is None else self.features.take(used),
            caption_features=None if self.caption_features is None else self.caption_features.take(rows),
            trusted=None if self.trusted is None else self.trusted[rows],
        )

    def split(self, *, dev: int | float, test: int | float, seed: int) -> tuple[Pairs, Pairs, Pairs]:
        """Split at random into (train, dev, test), by images: all rows that are given one image stay together.

        Args:
            dev: Number of images (int), or share of the images (float below 1; at least one image unless it is 0).
            test: The same.
            seed: The same seed gives the same split.

        Raises:
            InputError: A negative size, a share of 1 or more, or no image left to train on.
        """
        sizes = [self._split_size(name, size) for name, size in (("dev", dev), ("test", test))]
        if sum(sizes) >= self.n_images:
            self._refuse(f"dev and test take {sum(sizes)} of {self.n_images} images and leave none; make them smaller")
        part_of = np.zeros(self.n_images, dtype=np.int64)
        part_of[: sum(sizes)] = np.repeat([1, 2], sizes)
        part_of = np.random.default_rng(seed).permutation(part_of)
        train_part, dev_part, test_part = (self.take(part_of[self.image_of] == part) for part in range(3))
        return train_part, dev_part, test_part

    def image_path(self, image: int) -> Path | None:
        """Absolute path where the pixels of an image are; None where only features are known."""
        return None if self.image_root is None else (self.image_root / self.images[image]).absolute()

    def _split_size(self, name: str, size: int | float) -> int:
        if size < 0 or (isinstance(size, float) and size >= 1):
            self._refuse(f"{name}={size} is no split; give a number of images, or a share between 0 and 1")
        if isinstance(size, float):
            return max(1, round(size * self.n_images)) if size > 0 else 0
        return size

    def _check_range(self, name: str, image_of: NDArray[np.int64], *, lowest: int) -> None:
        wrong = np.flatnonzero((image_of < lowest) | (image_of >= self.n_images))
        if len(wrong):
            self._refuse(f"{name} of row {wrong[0] + 1} is {image_of[wrong[0]]}, but there are {self.n_images} images")

    def _refuse(self, message: str) -> None:
        raise InputError(f"{self.source}: {message}")
