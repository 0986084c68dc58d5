"""How sure a suggested partner is: how often the best of all images is right for captions whose image is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from l2rm.auditing.evidence import Evidence, against_captions, against_images, draw_negatives
from l2rm.data.pairs import Pairs
from l2rm.evaluation.evaluate import Models, joined_scores
from l2rm.evaluation.scores import Scores, checked_block

TRIED = 4000
"""Captions that are tried, at most."""
_IMAGES, _CAPTIONS = 1024, 256


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
        losses, is_right = [], []
        for captions in np.array_split(tried, -(-len(tried) // _CAPTIONS)):
            given = image_of[captions]
            own_images, place = np.unique(given, return_inverse=True)
            own = _block(scores, own_images, captions)[torch.from_numpy(place), torch.arange(len(captions))]
            best, image = _best(scores, images, captions)
            right = (own >= best).numpy()
            image, score = np.where(right, given, image), torch.maximum(own, best)
            loss = against_images(
                _block(scores, sampled_images, captions), score, torch.from_numpy(image), sampled_images, margin
            )
            chosen, place = np.unique(image, return_inverse=True)
            scored = _chosen(scores, chosen, sampled_captions, images)[torch.from_numpy(place)]
            loss += against_captions(scored, score, image, given, image_of[sampled_captions], margin)
            losses.append(loss)
            is_right.append(right)
        return cls(losses=np.concatenate(losses), is_right=np.concatenate(is_right), weights=np.ones(len(tried)))

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


def find_unseen(
    models: Models, pairs: Pairs, scores: Scores, unseen: Pairs | NDArray[np.int64], *, progress: bool
) -> Unseen:
    """Pairs beside those to be audited, or rows of these, as captions that the models have not learned.

    Args:
        models: the judges.
        pairs, scores: to be audited, and the judges' scores of them.
        unseen: other pairs, or numbers of rows.
        progress: tell on standard error how far it is.
    """
    if not isinstance(unseen, Pairs):
        return Unseen(scores=scores, image_of=pairs.image_of, rows=unseen)
    image_of = np.append(pairs.image_of, unseen.image_of + pairs.n_images)
    joined = joined_scores(models, pairs, unseen, progress=progress)
    return Unseen(scores=joined, image_of=image_of, rows=np.arange(len(pairs), len(image_of)))


def _block(scores: Scores, images: NDArray[np.int64], captions: NDArray[np.int64]) -> torch.Tensor:
    return checked_block(scores, images, captions).to(device="cpu", dtype=torch.float32)


def _best(scores: Scores, images: int, captions: NDArray[np.int64]) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """The best of the first `images` images for each caption: its score and its number."""
    best, image = torch.full((len(captions),), -torch.inf), np.zeros(len(captions), dtype=np.int64)
    for start in range(0, images, _IMAGES):
        found, place = _block(scores, np.arange(start, min(start + _IMAGES, images)), captions).max(0)
        better = found > best
        best = torch.where(better, found, best)
        image = np.where(better.numpy(), start + place.numpy(), image)
    return best, image


def _chosen(scores: Scores, chosen: NDArray[np.int64], captions: NDArray[np.int64], images: int) -> torch.Tensor:
    """Scores of some images, in order, with captions: a block of audited images, and one of those behind them."""
    parts = [part for part in (chosen[chosen < images], chosen[chosen >= images]) if len(part)]
    return torch.cat([_block(scores, part, captions) for part in parts])
