"""Exact ranks of the own captions and images, from blocks of scores, in the memory of one block.

Images are taken in groups, and every group brings all captions of its images. A group's own block then holds every own
score that its images and captions need, and no other block holds any. So the own blocks come first and set the score
to beat, all other blocks are merely counted against it, and every cell is asked for exactly once. After the own blocks
one group of captions passes all images before the next group's turn: where scores must encode what they are asked for,
images are encoded over and over, which is cheap, and captions, which are not, twice.
"""

from dataclasses import dataclass

import numpy as np
import torch

from l2rm.errors import InputError
from l2rm.evaluation.scores import Scores, checked_block
from l2rm.progress import track


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranks:
    """Ranks counted from 0 (0 = found first).

    Attributes:
        i2t: `(images,)` int64, the rank of an image's best caption among all captions; −1 for an image without caption.
        t2i: `(captions,)` int64, the rank of a caption's image among all images.
    """

    i2t: np.ndarray
    t2i: np.ndarray


@dataclass(frozen=True, eq=False)
class _Group:
    images: np.ndarray  # positions among the ranked images
    captions: np.ndarray  # positions among the ranked captions: all those of these images
    own: np.ndarray  # for each of these captions, the row of its image within the group


def exact_ranks(
    scores: Scores,
    image_of: np.ndarray,
    *,
    images: np.ndarray | None = None,
    block_images: int = 256,
    block_captions: int = 1280,
    progress: bool = False,
) -> Ranks:
    """Rank every caption for its image and every image for its captions, ties broken against the model.

    A caption's rank counts the other images that score at least as high as its own; an image's rank counts the
    captions of other images that score at least as high as the best of its own. A model that gives one score to
    everything therefore comes last, not first.

    Args:
        scores: similarities, images × captions.
        image_of: `(captions,)` integers, the image of each caption; any number of captions an image, none included.
        images: rank only among these images and their captions (indices into the scores); all by default.
        block_images, block_captions: the most images and (unless one image alone has more) captions a block holds.
        progress: tell on standard error how far it is.

    Returns:
        `Ranks`, in the order of `images` and, for the captions, in the order of their rows.

    Raises:
        InputError: `image_of` does not fit the scores, no caption is left to rank, or a score is NaN.

    Example:
        >>> from l2rm.evaluation.scores import MatrixScores
        >>> ranks = exact_ranks(MatrixScores(np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]])), np.array([0, 1, 0]))
        >>> ranks.i2t.tolist(), ranks.t2i.tolist()
        ([0, 0], [0, 0, 1])
    """
    image_of = checked_image_of(scores, image_of)
    chosen = np.arange(scores.n_images) if images is None else np.asarray(images, dtype=np.int64)
    position = np.full(scores.n_images, -1, dtype=np.int64)
    position[chosen] = np.arange(len(chosen))
    captions = np.flatnonzero(position[image_of] >= 0)
    if not len(captions):
        raise InputError(f"scores: none of the {len(chosen)} images to rank has a caption; give at least one pair")
    groups = _groups(position[image_of[captions]], len(chosen), block_images, block_captions)
    own_blocks = [(index, index) for index in range(len(groups))]
    tiles = own_blocks + [(row, column) for column, row in np.ndindex(len(groups), len(groups)) if row != column]
    i2t = np.full(len(chosen), -1, dtype=np.int64)
    t2i = np.zeros(len(captions), dtype=np.int64)
    to_beat: list[tuple[torch.Tensor, torch.Tensor]] = []
    for row, column in track(tiles, total=len(tiles), what="ranking", enabled=progress):
        rows, columns = groups[row], groups[column]
        block = checked_block(scores, chosen[rows.images], captions[columns.captions])
        if row == column:
            own, best, ahead_of_image, ahead_of_caption = _own_block(block, rows.own)
            to_beat.append((own, best))
            ranked = np.unique(rows.images[rows.own])
            i2t[ranked] = ahead_of_image[ranked - rows.images[0]]
            t2i[rows.captions] = ahead_of_caption
        else:
            ranked = i2t[rows.images] >= 0
            ahead_of_image = (block >= to_beat[row][1][:, None]).sum(dim=1).cpu().numpy()
            i2t[rows.images] += np.where(ranked, ahead_of_image, 0)
            t2i[columns.captions] += (block >= to_beat[column][0]).sum(dim=0).cpu().numpy()
    return Ranks(i2t=i2t, t2i=t2i)


def checked_image_of(scores: Scores, image_of: np.ndarray) -> np.ndarray:
    """`image_of` as int64, after a look at its length and range.

    Raises:
        InputError: it is not one image index a caption.
    """
    image_of = np.asarray(image_of)
    if image_of.shape != (scores.n_captions,) or image_of.dtype.kind not in "iu":
        raise InputError(
            f"scores: {scores.n_images} images × {scores.n_captions} captions, but the images of the captions are "
            f"{image_of.dtype} of shape {image_of.shape}; give one image index a caption"
        )
    outside = (image_of < 0) | (image_of >= scores.n_images)
    if outside.any():
        caption = int(np.flatnonzero(outside)[0])
        raise InputError(
            f"scores: caption {caption} belongs to image {int(image_of[caption])}, but there are images 0 to "
            f"{scores.n_images - 1}; leave out captions whose image is not there"
        )
    return image_of.astype(np.int64)


def _groups(image_of: np.ndarray, n_images: int, block_images: int, block_captions: int) -> list[_Group]:
    """Consecutive images, as many as fit a block, each group with all captions of its images."""
    order = np.argsort(image_of, kind="stable")
    ends = np.cumsum(np.bincount(image_of, minlength=n_images))
    groups = []
    first = 0
    while first < n_images:
        start = int(ends[first - 1]) if first else 0
        fits = int(np.searchsorted(ends, start + block_captions, side="right"))
        last = min(max(fits, first + 1), first + max(block_images, 1), n_images)
        captions = order[start : int(ends[last - 1])]
        groups.append(_Group(np.arange(first, last), captions, image_of[captions] - first))
        first = last
    return groups


def _own_block(block: torch.Tensor, own: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    """Own score a caption, best own score an image, and how many are ahead of each image and caption in this block."""
    n_images, n_captions = block.shape
    row = torch.as_tensor(own, device=block.device)
    is_own = torch.arange(n_images, device=block.device)[:, None] == row[None, :]
    score = block[row, torch.arange(n_captions, device=block.device)]
    best = torch.zeros(n_images, dtype=block.dtype, device=block.device)
    best = best.scatter_reduce(0, row, score, reduce="amax", include_self=False)
    ahead_of_image = ((block >= best[:, None]) & ~is_own).sum(dim=1).cpu().numpy()
    ahead_of_caption = ((block >= score[None, :]) & ~is_own).sum(dim=0).cpu().numpy()
    return score, best, ahead_of_image, ahead_of_caption
