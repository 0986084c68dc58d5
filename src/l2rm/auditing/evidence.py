"""One pass over all scores of a data set: what an audit needs to know, in the memory of a block and a sample.

The loss of a pair (image i, caption c) with score s and margin m is the mean hinge against images and captions that are
not its own, both directions summed:

    mean_j [m + S(i, j) − s]₊  +  mean_k [m + S(k, c) − s]₊

where j runs over sampled captions that are not given to image i, and k over sampled images other than i. It is the
method's per-pair loss, but against one fixed sample instead of the batch a pair happens to fall into.

A suggested pair (image i', caption c) is judged by the same loss; j then leaves out the captions given to i' and those
given to the same image as c. Where whole images were mixed up these are c's siblings, which belong to i' too, and the
right suggestion must not suffer for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from l2rm.errors import InputError
from l2rm.evaluation.ranks import checked_image_of
from l2rm.evaluation.scores import Scores, checked_block
from l2rm.progress import track

SAMPLE = 1024
BLOCK_IMAGES = 256
BLOCK_CAPTIONS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Losses and best partners of all pairs; a row is one (image, caption) pair.

    Attributes:
        losses: `(rows,)` float64, the loss of each given pair, in `[0, ∞)`.
        suggestion_losses: `(rows,)` the loss that the pair (best other image, caption) would have.
        candidates: `(rows, k)` the best-scoring images for each caption, best first, the given image left out.
        best_caption: `(rows,)` the row whose caption scores best for the pair's image, among captions not given to that
            image; −1 where there is none.
        own_is_best: `(rows,)` bool, whether no other image scores above the given one.
    """

    losses: np.ndarray
    suggestion_losses: np.ndarray
    candidates: np.ndarray
    best_caption: np.ndarray
    own_is_best: np.ndarray


def gather_evidence(
    scores: Scores,
    image_of: np.ndarray,
    *,
    margin: float = 0.2,
    candidates: int = 10,
    seed: int = 0,
    sample: int = SAMPLE,
    block_images: int = BLOCK_IMAGES,
    block_captions: int = BLOCK_CAPTIONS,
    progress: bool = False,
) -> Evidence:
    """Stream every block of the scores once; memory holds one block and `sample` scores an image.

    Args:
        scores: similarities, images × captions.
        image_of: `(rows,)` the image that each caption is given.
        margin: m above.
        candidates: how many images to keep for each caption (at most images − 1).
        seed: which images and captions are drawn as negatives.
        sample: how many negatives of each kind; all of them where the data set has no more.
        block_images, block_captions: size of a block; the result does not depend on it.
        progress: tell on standard error how far it is.

    Equal scores are taken in the order of the data set.

    Raises:
        InputError: `image_of` does not fit the scores, fewer than two images, nothing to keep, or a score is NaN.
    """
    image_of = checked_image_of(scores, image_of)
    if scores.n_images < 2 or not len(image_of):
        raise InputError(f"audit: {len(image_of)} pairs of {scores.n_images} images; it takes two images to compare")
    if candidates < 1:
        raise InputError(f"audit: candidates={candidates}; keep at least 1 suggestion a caption")
    images, captions = draw_negatives(seed, scores.n_images, scores.n_captions, sample)
    stream = _Stream(scores, image_of, images, captions, margin, min(candidates, scores.n_images - 1))
    image_blocks = _blocks(scores.n_images, block_images)
    caption_blocks = _blocks(scores.n_captions, block_captions)
    total = len(image_blocks) * len(caption_blocks)
    steps = (step for columns in caption_blocks for step in stream.columns(columns, image_blocks))
    for _ in track(steps, total=total, what="auditing", enabled=progress):
        pass
    return stream.evidence()


class _Stream:
    """Caption by caption block: all images pass, so that a block's best images and own scores are known at its end.

    What an image's captions say (best caption, scores of the sampled captions) is only complete when all blocks passed.
    """

    def __init__(
        self,
        scores: Scores,
        image_of: np.ndarray,
        sampled_images: np.ndarray,
        sampled_captions: np.ndarray,
        margin: float,
        candidates: int,
    ) -> None:
        self.scores, self.image_of, self.margin = scores, image_of, margin
        self.images, self.captions = sampled_images, sampled_captions
        rows = len(image_of)
        self.own = torch.empty(rows)
        self.first = torch.empty(rows)  # score of the first candidate
        self.candidates = np.empty((rows, candidates), dtype=np.int64)
        self.against_images = np.empty((2, rows))  # mean hinge against sampled images: given pair, suggested pair
        self.caption_scores = torch.empty(scores.n_images, len(sampled_captions))
        self.best_score = torch.full((scores.n_images,), -torch.inf)
        self.best_caption = np.full(scores.n_images, -1, dtype=np.int64)

    def columns(self, columns: np.ndarray, image_blocks: list[np.ndarray]) -> Iterator[None]:
        """Take one block of captions past all images; yields once a block of scores."""
        given = torch.from_numpy(self.image_of[columns])
        own = torch.empty(len(columns))
        sampled = torch.empty(len(self.images), len(columns))
        top = torch.empty(0, len(columns)), torch.empty(0, len(columns), dtype=torch.int64)
        for rows in image_blocks:
            block = checked_block(self.scores, rows, columns).to(device="cpu", dtype=torch.float32)
            is_given = torch.from_numpy(rows)[:, None] == given[None, :]
            here = is_given.any(dim=0)
            own[here] = block.T[is_given.T]
            in_sample, places = _members(self.images, rows)
            sampled[places] = block[in_sample]
            in_sample, places = _members(self.captions, columns)
            self.caption_scores[rows[0] : rows[-1] + 1, places] = block[:, in_sample]
            others = block.masked_fill(is_given, -torch.inf)
            self._keep_best_caption(others, rows, columns)
            top = _merge_top(top, others, rows, self.candidates.shape[1])
            yield
        self.own[columns] = own
        self.first[columns] = top[0][0]
        self.candidates[columns] = top[1].T.numpy()
        for index, (score, image) in enumerate(((own, given), (top[0][0], top[1][0]))):
            self.against_images[index, columns] = against_images(sampled, score, image, self.images, self.margin)

    def _keep_best_caption(self, others: Tensor, rows: np.ndarray, columns: np.ndarray) -> None:
        score, caption = others.max(dim=1)
        better = score > self.best_score[rows]
        self.best_score[rows[better.numpy()]] = score[better]
        self.best_caption[rows[better.numpy()]] = columns[caption[better].numpy()]

    def evidence(self) -> Evidence:
        """What was found, once every block of captions has passed."""
        given = self._against_captions(self.own, self.image_of)
        suggested = self._against_captions(self.first, self.candidates[:, 0])
        return Evidence(
            losses=self.against_images[0] + given,
            suggestion_losses=self.against_images[1] + suggested,
            candidates=self.candidates,
            best_caption=self.best_caption[self.image_of],
            own_is_best=(self.own >= self.first).numpy(),
        )

    def _against_captions(self, score: Tensor, image: np.ndarray) -> np.ndarray:
        """Mean hinge of the pairs (image, caption of the row) against the sampled captions that are not the image's."""
        found = np.empty(len(image))
        for rows in _blocks(len(image), BLOCK_CAPTIONS):
            found[rows] = against_captions(
                self.caption_scores[image[rows]],
                score[rows],
                image[rows],
                self.image_of[rows],
                self.image_of[self.captions],
                self.margin,
            )
        return found


def against_images(
    sampled: Tensor, score: Tensor, image: Tensor, sampled_images: np.ndarray, margin: float
) -> np.ndarray:
    """`(b,)` float64, the mean hinge of some pairs (image, caption) of these scores against sampled other images.

    Args:
        sampled: `(s, b)`; scores of the sampled images with the pairs' captions.
        score, image: `(b,)`; of the pairs.
        sampled_images: `(s,)`; which images are sampled.
        margin: m of the module.
    """
    negative = torch.from_numpy(sampled_images)[:, None] != image[None, :]
    return _mean_hinge(sampled - score + margin, negative, dim=0)


def against_captions(
    scored: Tensor, score: Tensor, image: np.ndarray, given: np.ndarray, image_of_sampled: np.ndarray, margin: float
) -> np.ndarray:
    """`(b,)` float64, the mean hinge of some pairs (image, caption) against sampled captions that are not the image's.

    Captions that are given the same image as the pair's caption went astray together, if they did: they are no evidence
    against each other.

    Args:
        scored: `(b, s)`; scores of the pairs' images with the sampled captions.
        score, image: `(b,)`; of the pairs.
        given: `(b,)`; the image that the pairs' captions are given.
        image_of_sampled: `(s,)`; the image that each sampled caption is given.
        margin: m of the module.
    """
    sampled = image_of_sampled[None, :]
    negative = (sampled != image[:, None]) & (sampled != given[:, None])
    return _mean_hinge(scored - score[:, None] + margin, torch.from_numpy(negative), dim=1)


def draw_negatives(seed: int, images: int, captions: int, sample: int = SAMPLE) -> tuple[np.ndarray, np.ndarray]:
    """Which images and which captions all pairs are compared with, in order."""
    generator = np.random.default_rng(seed)
    return _sample(generator, images, sample), _sample(generator, captions, sample)


def _sample(generator: np.random.Generator, total: int, size: int) -> np.ndarray:
    return np.arange(total) if total <= size else np.sort(generator.choice(total, size=size, replace=False))


def _blocks(total: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, total)) for start in range(0, total, max(size, 1))]


def _members(sample: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which columns or rows of a block of consecutive indices are in the sorted sample, and where in the sample."""
    first, last = np.searchsorted(sample, (block[0], block[-1] + 1))
    return sample[first:last] - block[0], np.arange(first, last)


def _merge_top(top: tuple[Tensor, Tensor], block: Tensor, rows: np.ndarray, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` highest scores a column and their images; among equals the image that came first.

    Once there are enough, only columns are sorted in which the block has something better.
    """
    if len(top[0]) == keep:
        better = (block.amax(0) > top[0][-1]).nonzero()[:, 0]
        if len(better) < block.shape[1]:
            if len(better):
                scores, images = _merge_all((top[0][:, better], top[1][:, better]), block[:, better], rows, keep)
                top[0][:, better], top[1][:, better] = scores, images
            return top
    return _merge_all(top, block, rows, keep)


def _merge_all(top: tuple[Tensor, Tensor], block: Tensor, rows: np.ndarray, keep: int) -> tuple[Tensor, Tensor]:
    scores = torch.cat([top[0], block])
    images = torch.cat([top[1], torch.from_numpy(rows)[:, None].expand(-1, block.shape[1])])
    scores, order = scores.sort(dim=0, descending=True, stable=True)
    return scores[:keep], images.gather(0, order[:keep])


def _mean_hinge(values: Tensor, negative: Tensor, *, dim: int) -> np.ndarray:
    total = (values.clamp(min=0) * negative).sum(dim=dim, dtype=torch.float64)
    mean: np.ndarray = (total / negative.sum(dim=dim).clamp(min=1)).numpy()
    return mean
