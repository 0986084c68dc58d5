"""Recalls: what fraction of images and captions find their partner among the first 1, 5 and 10."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from l2rm.errors import InputError
from l2rm.evaluation.ranks import checked_image_of, exact_ranks
from l2rm.evaluation.scores import Scores

Protocol = Literal["full", "folds5"]
FOLDS = 5
COCO_IMAGES = 5000
"""Images of the MS-COCO test split, of which papers report 1K (five folds) beside 5K (all)."""


@dataclass(frozen=True, kw_only=True)
class Recalls:
    """One direction of retrieval.

    Attributes:
        r1, r5, r10: R@1, R@5, R@10 in percent.
        medr: median rank, `floor(median(rank)) + 1`, ranks counted from 0; the best is 1.
        meanr: mean rank, `mean(rank) + 1`.
    """

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float

    @classmethod
    def of(cls, ranks: np.ndarray) -> "Recalls":
        """Recalls of ranks counted from 0.

        Example:
            >>> Recalls.of(np.array([0, 0, 3, 20]))
            Recalls(r1=50.0, r5=75.0, r10=75.0, medr=2.0, meanr=6.75)
        """
        r1, r5, r10 = (100.0 * float(np.mean(ranks < k)) for k in (1, 5, 10))
        medr = float(math.floor(float(np.median(ranks))) + 1)
        return cls(r1=r1, r5=r5, r10=r10, medr=medr, meanr=float(np.mean(ranks)) + 1.0)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Both directions of retrieval on one data set.

    Attributes:
        i2t: an image looks for its captions; its rank is that of its best caption.
        t2i: a caption looks for its image.
        rsum: the six R@K summed, 0 to 600.
        protocol: `full` or `folds5`.
        images: how many were ranked (one without caption is a candidate, and counted here).
        captions: how many were ranked.
    """

    i2t: Recalls
    t2i: Recalls
    rsum: float
    protocol: str
    images: int
    captions: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, under the names of the fields."""
        return asdict(self)


def usual_protocols(images: int) -> tuple[Protocol, ...]:
    """What papers report of a data set of so many images: `full`, and of MS-COCO's 5,000 also `folds5`.

    Example:
        >>> usual_protocols(1000), usual_protocols(5000)
        (('full',), ('full', 'folds5'))
    """
    return ("full", "folds5") if images == COCO_IMAGES else ("full",)


def evaluate_scores(
    scores: Scores,
    image_of: np.ndarray,
    *,
    protocol: Protocol = "full",
    progress: bool = False,
    block_images: int = 256,
    block_captions: int = 1280,
) -> Metrics:
    """Retrieval metrics of scores, exactly, streamed in blocks.

    Args:
        scores: similarities, images × captions; `MatrixScores(matrix)` for a matrix.
        image_of: `(captions,)` the image of each caption.
        protocol: `full` ranks among everything (COCO 5K). `folds5` cuts the images into five consecutive folds of
            equal size, ranks within each, and averages every metric over the folds (COCO 1K: 5 × 1,000 images).
        progress: tell on standard error how far it is.
        block_images: images a block; the result does not depend on it.
        block_captions: captions a block, likewise.

    Raises:
        InputError: an unknown protocol, images that do not make five folds, captions that do not fit the scores, NaN.

    Example:
        >>> from l2rm.evaluation.scores import MatrixScores
        >>> metrics = evaluate_scores(MatrixScores(np.eye(4)), np.arange(4))
        >>> metrics.rsum, metrics.t2i.medr
        (600.0, 1.0)
    """
    if protocol not in get_args(Protocol):
        raise InputError(f"protocol: {protocol!r} is unknown; use one of {', '.join(get_args(Protocol))}")
    image_of = checked_image_of(scores, image_of)
    n_images = scores.n_images
    folds: list[np.ndarray | None] = [None]
    if protocol == "folds5":
        if n_images == 0 or n_images % FOLDS:
            raise InputError(f"protocol folds5: {n_images} images do not make {FOLDS} equal folds; use protocol full")
        folds = list(np.arange(n_images).reshape(FOLDS, -1))
        empty = set(range(FOLDS)) - set((image_of // (n_images // FOLDS)).tolist())
        if empty:
            raise InputError(f"protocol folds5: no caption in fold {min(empty) + 1} of {FOLDS}; use protocol full")
    directions: list[tuple[Recalls, Recalls]] = []
    for images in folds:
        ranks = exact_ranks(
            scores,
            image_of,
            images=images,
            block_images=block_images,
            block_captions=block_captions,
            progress=progress,
        )
        directions.append((Recalls.of(ranks.i2t[ranks.i2t >= 0]), Recalls.of(ranks.t2i)))
    i2t = _mean([both[0] for both in directions])
    t2i = _mean([both[1] for both in directions])
    rsum = sum(recalls.r1 + recalls.r5 + recalls.r10 for recalls in (i2t, t2i))
    return Metrics(i2t=i2t, t2i=t2i, rsum=rsum, protocol=protocol, images=n_images, captions=len(image_of))


def _mean(recalls: list[Recalls]) -> Recalls:
    names = ("r1", "r5", "r10", "medr", "meanr")
    return Recalls(**{name: sum(getattr(one, name) for one in recalls) / len(recalls) for name in names})
