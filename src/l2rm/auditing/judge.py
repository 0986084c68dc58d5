"""An audit by the data alone: no trained model is at hand, and none may have learned a pair that it judges."""

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from l2rm.auditing.audit import Audit, audit_scores
from l2rm.auditing.crossfit import cross_fit_config, cross_fit_pairs
from l2rm.auditing.near_duplicates import find_near_duplicates
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.similarity.scoring import FeatureScores

log = logging.getLogger("l2rm")
TRIED = 2000
WEAK = 0.6
"""Below this share of own pairs that score above a random one, embeddings hardly know what belongs together."""


def audit_without_model(
    pairs: Pairs,
    *,
    head: bool = False,
    evidence: Literal["pair", "image"] = "pair",
    folds_by: Literal["image", "image+caption"] = "image",
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    keep: Path | None = None,
    **options: Any,
) -> Audit:
    """Judge every pair by what is there: the cosine of its embeddings, or small models that never saw the pair.

    Embeddings of images and captions of as many dimensions are taken to be of one space, as CLIP's are: their cosine
    judges, nothing is learned. With `head`, where dimensions differ, and where captions are words, small models are
    cross-fitted (`cross_fit_pairs`): linear heads on the embeddings, or a tower for words beside one for image
    features.

    Args:
        pairs: with features of images.
        head: learn heads although the dimensions agree.
        evidence: of cross-fitting: rank each caption by itself, or all captions of an image together.
        folds_by: of cross-fitting: what is new to the model that judges a pair, its image, or its caption's text too.
        seed: rules all that is drawn.
        device: where the small models learn.
        progress: tell on standard error how far it is.
        keep: a folder for what a cross-fit has finished, so that one that was killed goes on; see `cross_fit_pairs`.
        options: as in `audit_scores`.

    Raises:
        InputError: no features, features that are not finite, a head for captions as words, too few images.

    Example:
        >>> audit_without_model(l2rm.Pairs.read("images.npy,captions.npy")).to_html("report.html")  # doctest: +SKIP
    """
    if pairs.features is None:
        raise InputError(f"{pairs.source}: images without features; encode them first (--encoder NAME)")
    words = pairs.caption_features is None
    if head and words:
        raise InputError(f"{pairs.source}: --head is for embeddings, and these captions are words; leave it out")
    for features in (pairs.features, pairs.caption_features):
        if features is not None:
            features.check()
    shared: dict[str, Any] = {"seed": seed, "progress": progress, **options}
    if pairs.caption_features is not None and not head:
        if pairs.caption_features.dim == pairs.features.dim:
            scores = FeatureScores(pairs)
            _warn_if_strangers(scores, pairs, seed)
            return audit_scores(scores, pairs, judge="the cosine of its embeddings", **shared)
        log.info(
            "%s: images have %d dimensions, captions %d, so linear heads are learned on them",
            *(pairs.source, pairs.features.dim, pairs.caption_features.dim),
        )
    copies = find_near_duplicates(pairs, progress=progress)
    ranks = cross_fit_pairs(
        pairs,
        cross_fit_config(pairs, seed=seed, evidence=evidence, folds_by=folds_by),
        groups=None if copies is None else copies.group,
        device=device,
        progress=progress,
        keep=keep,
    )
    judge = "a small model that learned from other pairs only"
    return audit_scores(ranks.scores, pairs, ranks=ranks, copies=copies, judge=judge, **shared)


def _warn_if_strangers(scores: FeatureScores, pairs: Pairs, seed: int) -> None:
    """Embeddings of two spaces may have as many dimensions; then own pairs score no higher than others."""
    generator = np.random.default_rng(seed)
    rows = np.sort(generator.permutation(len(pairs))[:TRIED])
    images, place = np.unique(pairs.image_of[rows], return_inverse=True)
    block = scores.block(images, rows).numpy()
    own = block[place, np.arange(len(rows))]
    other = block[np.roll(place, len(rows) // 2), np.arange(len(rows))]
    share = float(((own > other) + 0.5 * (own == other)).mean())
    if share < WEAK:
        log.warning(
            "%s: only %.0f %% of the pairs score above a random one; if the embeddings are not of one space, learn "
            "heads on them (--head)",
            *(pairs.source, 100 * share),
        )
