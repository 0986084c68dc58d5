"""How sure a suggested partner is: how often the best of all images is right for captions whose image is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from l2rm.auditing.evidence import Evidence, against_captions, against_images, draw_negatives
from l2rm.data.pairs import Pairs
from l2rm.evaluation.evaluate import Models, mean_scores, member_scores
from l2rm.evaluation.scores import Scores, checked_block
from l2rm.rematching.candidates import nearest_images
from l2rm.rematching.together import Units, UnitScores
from l2rm.similarity.scoring import JoinedScores, ModelScores

TRIED = 4000
"""Captions that are tried, at most."""
CHUNK = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Unseen:
    """Captions whose image is known and that the judge has not learned: of what it knows by heart it is far too sure.

    Attributes:
        scores: images × captions, those to be audited first; others may follow.
        image_of: `(captions,)`; the image of each caption, by its place in `scores`.
        rows: which captions are new to the judge.
    """

    scores: Scores
    image_of: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def beside(cls, pairs: Pairs, judges: Sequence[ModelScores], other: Pairs, models: Models) -> Unseen:
        """Other pairs, by the same models.

        Args:
            pairs, judges: to be audited, and each model's scores of them.
            other: pairs that the models have not learned.
            models: the judges.
        """
        of_other = member_scores(models, other)
        joined = mean_scores([JoinedScores(*both) for both in zip(judges, of_other, strict=True)])
        image_of = np.append(pairs.image_of, other.image_of + pairs.n_images)
        return cls(scores=joined, image_of=image_of, rows=np.arange(len(pairs), len(image_of)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Trials:
    """Captions whose image is known, tried as if it were not: each is given the best of all images, its own included.

    Attributes:
        losses: `(n,)`; of the caption with that image, as in `l2rm.auditing.evidence`.
        is_right: `(n,)` bool; whether that image is its own.
        weights: `(n,)`; what each counts for.
    """

    losses: NDArray[np.float64]
    is_right: NDArray[np.bool_]
    weights: NDArray[np.float64]

    @classmethod
    def of_given(cls, evidence: Evidence, match_probability: NDArray[np.float64]) -> Trials:
        """The audited pairs themselves, by a judge that has not learned them, each as far as it looks matched."""
        return cls(
            losses=np.where(evidence.own_is_best, evidence.losses, evidence.suggestion_losses),
            is_right=evidence.own_is_best,
            weights=match_probability + 1e-9,
        )

    @classmethod
    def of_unseen(cls, unseen: Unseen, *, images: int, rows: int, margin: float, seed: int) -> Trials:
        """Pairs that the judge has not learned, among the images to be audited: for a model that knows those by heart.

        Args:
            unseen: those pairs.
            images, rows: how many images and captions of them are to be audited.
            margin, seed: of the audit, so that losses compare.
        """
        sampled_images, sampled_captions = draw_negatives(seed, images, rows)
        image_of, scores = unseen.image_of, unseen.scores
        tried = unseen.rows
        if len(tried) > TRIED:
            tried = np.sort(np.random.default_rng(seed).choice(tried, TRIED, replace=False))
        own = UnitScores(scores, Units.single(tried)).own(image_of)
        best = nearest_images(scores, candidates=1, captions=tried, images=np.arange(images))
        # a score is the same in every block up to rounding only
        is_right = (own >= best.scores[:, 0]) | (best.images[:, 0] == image_of[tried])
        image = np.where(is_right, image_of[tried], best.images[:, 0])
        score = torch.from_numpy(np.maximum(own, best.scores[:, 0]))
        losses = np.empty(len(tried))
        for start in range(0, len(tried), CHUNK):
            part = slice(start, start + CHUNK)
            sampled = _block(scores, sampled_images, tried[part])
            chosen, place = np.unique(image[part], return_inverse=True)
            of_two_sets = np.split(chosen, [(chosen < images).sum()])  # the audited ones, and those behind them
            pieces = [_block(scores, some, sampled_captions) for some in of_two_sets if len(some)]
            of_images = torch.cat(pieces)[torch.from_numpy(place)]
            losses[part] = against_images(
                sampled, score[part], torch.from_numpy(image[part]), sampled_images, margin
            ) + against_captions(
                of_images, score[part], image[part], image_of[tried[part]], image_of[sampled_captions], margin
            )
        return cls(losses=losses, is_right=is_right, weights=np.ones(len(tried)))

    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """`(rows,)` in [0, 1]; how often an image that fits with such a loss was right.

        A function that never rises with the loss (isotonic regression), drawn between the trials.
        """
        tried, place = np.unique(self.losses, return_inverse=True)
        weights = np.bincount(place, self.weights)
        share = np.bincount(place, self.weights * self.is_right) / weights
        falling = isotonic_regression(share, weights=weights, increasing=False).x
        found: NDArray[np.float64] = np.interp(losses, tried, falling)
        return found.clip(0, 1)


def _block(scores: Scores, images: NDArray[np.int64], captions: NDArray[np.int64]) -> torch.Tensor:
    return checked_block(scores, images, captions).to(device="cpu", dtype=torch.float32)
