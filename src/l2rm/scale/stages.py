"""The stages after embedding. Each is a picklable piece of work: a number in, one file out, written whole.

What an in-process audit computes in one pass over all scores is here computed in two: losses first, which need a sample
only; then partners, of the pairs that look mismatched alone. The formulas are those of `l2rm.auditing.evidence`, and
the search that of `l2rm.rematching.candidates`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.auditing.evidence import against_captions, against_images
from l2rm.data.formats import made_up
from l2rm.files import written_whole
from l2rm.rematching.candidates import nearest_images
from l2rm.rematching.division import BetaMixture
from l2rm.scale.vectors import Whole, file_of

GROUP = 8192
"""Suspects that look for partners together, as all others stream past: how often everything is read."""
CHUNK = 4096
BLOCK_IMAGES = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """The images and captions that all pairs are compared with.

    Attributes:
        images, captions: which, in order.
        image_of: the image that each of these captions is given.
        image_vectors, caption_vectors: unit vectors.
    """

    images: NDArray[np.int64]
    captions: NDArray[np.int64]
    image_of: NDArray[np.int64]
    image_vectors: Tensor
    caption_vectors: Tensor

    @classmethod
    def of(cls, whole: Whole, images: NDArray[np.int64], captions: NDArray[np.int64]) -> "Sample":
        """Read their vectors."""
        return cls(
            images=images,
            captions=captions,
            image_of=whole.image_of(captions),
            image_vectors=whole.images(images),
            caption_vectors=whole.captions(captions),
        )

    def losses(
        self,
        image_vectors: Tensor,
        caption_vectors: Tensor,
        image: NDArray[np.int64],
        given: NDArray[np.int64],
        margin: float,
    ) -> NDArray[np.float64]:
        """Losses of the pairs of these vectors, `image` being theirs and `given` what their captions are given."""
        score = (image_vectors * caption_vectors).sum(1)
        to_images = against_images(
            self.image_vectors @ caption_vectors.T, score, torch.from_numpy(image), self.images, margin
        )
        to_captions = against_captions(
            image_vectors @ self.caption_vectors.T, score, image, given, self.image_of, margin
        )
        total: NDArray[np.float64] = to_images + to_captions
        return total


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The loss of every pair of a shard."""

    whole: Whole
    sample: Sample
    margin: float
    folder: Path

    def record(self, number: int) -> Path:
        """The file of a shard."""
        return file_of(self.folder, number, ".npy")

    def __call__(self, number: int) -> None:
        """Do one shard."""
        rows = self.whole.rows_of(number)
        losses = np.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            given = self.whole.image_of(some)
            losses[start : start + CHUNK] = self.sample.losses(
                self.whole.images(given), self.whole.captions(some), given, given, self.margin
            )
        with written_whole(self.record(number)) as beside:
            np.save(beside, losses)


class _Against:
    """Cosines of everything of one kind, streamed, with some vectors that are held."""

    def __init__(self, stream: Any, n_images: int, held: Tensor) -> None:
        self._stream, self._held = stream, held
        self.n_images, self.n_captions = n_images, len(held)

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Cosines (len(images), len(captions))."""
        held = self._held if len(captions) == len(self._held) else self._held[torch.from_numpy(captions)]
        found: Tensor = (held @ self._stream(images).T).T
        return found


@dataclass(frozen=True, kw_only=True)
class Suggest:
    """For a group of suspects: the best other image of each caption, its loss, and the best other caption of the image.

    Attributes:
        suspects: file of the rows that look mismatched, in order.
        most: captions that an image is given, at most.
    """

    whole: Whole
    sample: Sample
    margin: float
    suspects: Path
    most: int
    folder: Path

    def record(self, number: int) -> Path:
        """The file of a group."""
        return file_of(self.folder, number, ".npz")

    def __call__(self, number: int) -> None:
        """Do one group."""
        rows = np.load(self.suspects, mmap_mode="r")[number * GROUP : (number + 1) * GROUP]
        rows, whole = np.array(rows), self.whole
        given, captions = whole.image_of(rows), whole.captions(rows)
        found = nearest_images(
            _Against(whole.images, whole.n_images, captions),
            candidates=1,
            forbidden=given,
            block_images=BLOCK_IMAGES,
            block_captions=GROUP,
        )
        image = found.images[:, 0].astype(np.int64)
        loss = np.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            some = slice(start, start + CHUNK)
            loss[some] = self.sample.losses(
                whole.images(image[some]), captions[some], image[some], given[some], self.margin
            )
        with written_whole(self.record(number)) as beside:
            np.savez(beside, image=image, loss=loss, caption=self._best_captions(given))

    def _best_captions(self, given: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row whose caption fits each image best, of those that are not given to it; −1 for none."""
        found = nearest_images(
            _Against(self.whole.captions, len(self.whole), self.whole.images(given)),
            candidates=1 + self.most,
            block_images=BLOCK_IMAGES,
            block_captions=GROUP,
        ).images.astype(np.int64)
        others = (found >= 0) & (self.whole.image_of(found.clip(0).ravel()).reshape(found.shape) != given[:, None])
        first = others.argmax(1)
        best: NDArray[np.int64] = np.where(others.any(1), found[np.arange(len(found)), first], -1)
        return best


@dataclass(frozen=True, kw_only=True)
class Search:
    """Candidates of a group of suspects for the plan, among the images that have room.

    Attributes:
        suspects, images: files of rows and of images, in order.
        candidates: how many.
    """

    whole: Whole
    suspects: Path
    images: Path
    candidates: int
    folder: Path

    def record(self, number: int) -> Path:
        """The file of a group."""
        return file_of(self.folder, number, ".npz")

    def __call__(self, number: int) -> None:
        """Do one group."""
        rows = np.array(np.load(self.suspects, mmap_mode="r")[number * GROUP : (number + 1) * GROUP])
        found = nearest_images(
            _Against(self.whole.images, self.whole.n_images, self.whole.captions(rows)),
            candidates=self.candidates,
            images=np.load(self.images),
            forbidden=self.whole.image_of(rows),
            block_images=BLOCK_IMAGES,
            block_captions=GROUP // 4,  # so many candidates each are merged that blocks are kept smaller
        )
        with written_whole(self.record(number)) as beside:
            np.savez(beside, images=found.images, scores=found.scores)


@dataclass(frozen=True, kw_only=True)
class Decide:
    """The table of a shard: the columns of `Audit.table`, with partners where a pair looks mismatched.

    Attributes:
        losses: folder of the losses.
        mixture: of all losses.
        suspects, image, caption, confidence: files, an entry a suspect.
    """

    whole: Whole
    losses: Path
    mixture: BetaMixture
    suspects: Path
    image: Path
    caption: Path
    confidence: Path
    keep_threshold: float
    rematch_threshold: float
    folder: Path

    def record(self, number: int) -> Path:
        """The table of a shard."""
        return file_of(self.folder, number, ".parquet")

    def __call__(self, number: int) -> None:
        """Do one shard."""
        whole, rows = self.whole, self.whole.rows_of(number)
        losses = torch.from_numpy(np.load(file_of(self.losses, number, ".npy")))
        probability = self.mixture.match_probability(losses).numpy()
        suspects = np.load(self.suspects, mmap_mode="r")
        first, last = np.searchsorted(suspects, (rows[0], rows[-1] + 1))
        place = np.array(suspects[first:last]) - rows[0]
        image, caption, confidence = (
            np.load(path, mmap_mode="r")[first:last] for path in (self.image, self.caption, self.confidence)
        )
        is_mismatched = probability < self.keep_threshold
        decision = np.where(is_mismatched, "drop", "keep").astype(object)
        decision[place[(confidence >= self.rematch_threshold) & (image >= 0)]] = "rematch"
        sure = np.full(len(rows), np.nan)
        sure[place] = confidence
        table = pa.table(
            {
                "pair_id": whole.texts("pair_id", rows) or list(map(str, rows.tolist())),
                "image": self._images(whole.image_of(rows)),
                "caption": self._captions(rows),
                "match_probability": probability,
                "is_mismatched": is_mismatched,
                "rematch_image": self._spread(len(rows), place, self._images(np.array(image)), image),
                "rematch_caption": self._spread(len(rows), place, self._captions(np.array(caption)), caption),
                "rematch_confidence": pa.array(sure, from_pandas=True),
                "decision": pa.array(decision.tolist(), pa.string()),
            }
        )
        with written_whole(self.record(number)) as beside:
            pq.write_table(table, beside)

    def _images(self, images: NDArray[np.int64]) -> list[str]:
        if not len(images):
            return []
        names = self.whole.texts("image", self.whole.row_of(images.clip(0)))
        return names if names is not None else [f"image {image}" for image in images.tolist()]

    def _captions(self, rows: NDArray[np.int64]) -> list[str]:
        if not len(rows):
            return []
        texts = self.whole.texts("caption", rows.clip(0))
        return texts if texts is not None else [made_up(row) for row in rows.tolist()]

    @staticmethod
    def _spread(rows: int, place: NDArray[np.int64], cells: list[str], number: NDArray[np.int64]) -> pa.Array:
        """Cells at their places, null elsewhere and where there is no number."""
        found: list[str | None] = [None] * rows
        for one, cell, there in zip(place.tolist(), cells, (np.asarray(number) >= 0).tolist(), strict=True):
            found[one] = cell if there else None
        return pa.array(found, pa.string())
