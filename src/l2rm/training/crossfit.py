"""Sample division by models that never saw the pair's image, so that no mismatch can have been learned by heart."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from torch import Tensor

from l2rm.data.batches import Batches
from l2rm.data.texts import text_numbers
from l2rm.evaluation.scores import Scores, Stoppable, checked_block
from l2rm.rematching.ranks import RankMixture
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.scoring import ModelScores
from l2rm.training.divide import Division, trusting
from l2rm.training.fold_model import fold_model, repaired
from l2rm.training.settings import TrainConfig
from l2rm.training.wording import WordedScores, unit_words

log = logging.getLogger("l2rm")
RIVALS = 4096
"""Most images that the given one is held against."""
CHUNK = 1024
"""Captions scored at a time."""
TOGETHER = 0.35
"""From this correlation on, captions given to one image are taken to have gone astray together."""
SALT = 7919
"""Sets the random numbers of folds apart from those of the run itself."""


@dataclass(frozen=True, kw_only=True)
class RankDivision(Division):
    """A division by ranks: `losses` are the p-values of the last round, `mixture` is fitted to them, and `image_fold
    (images,)` tells the fold of each image then."""

    mixture: RankMixture
    image_fold: NDArray[np.int64]


def cross_fit(
    model: RetrievalModel,
    batches: Batches,
    config: TrainConfig,
    *,
    groups: NDArray[np.int64] | None = None,
    stop: Callable[[], None] = lambda: None,
    done: Sequence[Tensor] = (),
    finished: Callable[[Tensor], None] = lambda p_values: None,
    judged: Callable[[RetrievalModel], None] = lambda judge: None,
) -> RankDivision:
    """Divide the pairs by models trained on other images, `fold_rounds` times, and average the match probabilities.

    Images fall into `folds` parts at random, anew every round. For each part a fresh model (one to be fine-tuned: as it
    was pretrained) is warmed up on the pairs of the others; where a caption's given image stands among the part's
    images, all equally new to that model, is its p-value, and a `RankMixture` over all p-values divides. With
    `folds_by="image+caption"` a model learns from no pair, of any image, whose caption is word for word one that it is
    to judge: a title that stands on many images is else learned from its twins, whether it fits or not. With
    `evidence="image"` the captions given to one image are ranked as one, by their mean log-probability. From the second
    round on, the models learn from pairs drawn by the match probabilities so far, and with `fold_rematching_epochs`
    then also from the suspects among them, rematched; the first round, of models that learned the mismatches, then
    counts no more. With `wording`, where captions are ranked by themselves, the words of an image's other captions
    count beside a model's scores, as far as those are trusted so far. (Cross-fitting: Chernozhukov et al., 2018.)

    Args:
        model: tells what kind of model to train, and how captions are read; it is left as it is.
        batches: all training pairs.
        config: of the run.
        groups: (images,) numbers from 0 on; images of one number (copies of one picture, say) share a fold.
        stop: called at every step; may raise.
        done: the p-values of folds that an earlier call has finished, in the order of `finished`; they are not
            computed again, and the result is the same.
        finished: told the p-values (held-out rows,) of each fold.
        judged: given the model of each fold, unless the fold is `done`.

    Raises:
        RuntimeError: a round takes next to no pairs outside of a fold as matched; nothing is left to learn from.
    """
    pairs, settings = batches.pairs, config.rematching
    groups = np.arange(pairs.n_images) if groups is None else groups
    by_text = settings.folds_by == "image+caption"
    text_of = text_numbers(pairs.captions) if by_text else np.arange(len(pairs))
    known = iter(done)
    generator = np.random.default_rng((config.seed, SALT))
    words = unit_words(pairs.captions) if settings.wording and settings.evidence == "pair" else None
    taken, trust = np.ones(len(pairs), dtype=bool), np.ones(len(pairs), dtype=np.float32)
    rematches = settings.fold_rematching_epochs > 0
    rounds: list[NDArray[np.float32]] = []
    for turn in range(settings.fold_rounds):
        image_fold = generator.permutation(np.arange(groups.max() + 1) % settings.folds)[groups]
        fold_of = image_fold[pairs.image_of]
        p_values = torch.zeros(len(pairs))
        for fold in range(settings.folds):
            seed = (config.seed, SALT, turn, fold)
            held_out = np.flatnonzero(fold_of == fold)
            if (before := next(known, None)) is not None:
                p_values[held_out] = before
                continue
            rows = np.flatnonzero((fold_of != fold) & ~np.isin(text_of, text_of[held_out]))
            if (matched := int(taken[rows].sum())) < 2:
                raise RuntimeError(
                    f"the cross-fitted division takes {matched} pairs of fold {fold + 1} as matched, so nothing is "
                    "left to learn from; warm up longer, or look whether captions have anything to do with images"
                    + (" (folds_by image+caption leaves out what has a caption of the fold)" if by_text else "")
                )
            repair = partial(repaired, batches, rows, trust, config, words, stop) if turn and rematches else None
            fresh = fold_model(model, batches, rows[taken[rows]], config, seed=seed, stop=stop, repair=repair)
            judged(fresh)
            unseen = pairs.take(held_out)
            scores: Scores = Stoppable(ModelScores(fresh, unseen), stop)
            if words is not None:
                own = words[held_out], unseen.image_of, trust[held_out]
                scores = WordedScores(scores, *own, strength=settings.wording)
            p_values[held_out] = rank_p_values(
                scores,
                unseen.image_of,
                tau=settings.tau,
                together=settings.evidence == "image",
                seed=seed,
            )
            finished(p_values[held_out])
        mixture = RankMixture.fit(p_values)
        rounds.append(trusting(pairs, mixture.match_probability(p_values).numpy()))
        probability = np.stack(rounds[1:] if rematches and turn else rounds).mean(0)
        taken, trust = generator.random(len(pairs)) < probability, probability
        log.info(
            "cross-fitted division %d/%d: %.1f %% mismatched",
            turn + 1,
            settings.fold_rounds,
            100 * mixture.mismatch_ratio,
        )
    return RankDivision(
        losses=p_values.numpy(),
        match_probability=probability,
        facts={"mismatch_ratio": mixture.mismatch_ratio},
        mixture=mixture,
        image_fold=image_fold,
    )


def recognise_evidence(
    model: RetrievalModel, batches: Batches, config: TrainConfig, *, stop: Callable[[], None] = lambda: None
) -> tuple[Literal["pair", "image"], float]:
    """Whether captions given to one image go astray together: what `evidence="auto"` stands for, and the correlation.

    A model learns from half of the images and ranks the pairs of the others. Where whole images were mismatched, or
    none, the p-values of an image's captions are alike; where single captions were, they are not: see `together`.

    Args:
        model, batches, config, stop: as in `cross_fit`.
    """
    pairs, seed = batches.pairs, (config.seed, SALT, SALT)
    learned = (np.random.default_rng(seed).permutation(pairs.n_images) % 2 == 0)[pairs.image_of]
    fresh = fold_model(model, batches, np.flatnonzero(learned), config, seed=seed, stop=stop)
    rest = pairs.take(~learned)
    scores = Stoppable(ModelScores(fresh, rest), stop)
    p_values = rank_p_values(scores, rest.image_of, tau=config.rematching.tau, together=False, seed=seed)
    correlation = together(p_values, rest.image_of)
    return "image" if correlation >= TOGETHER else "pair", correlation


def together(p_values: Tensor, image_of: NDArray[np.int64]) -> float:
    """The correlation of the p-values of two captions that are given one image.

    It is the intraclass correlation, by analysis of variance, of p-values made normal by their ranks; 0 where no image
    is given two captions. (Shrout & Fleiss, "Intraclass correlations", 1979.)

    Args:
        p_values: (captions,) of captions ranked by themselves.
        image_of: (captions,) the image each is given.

    Example:
        >>> together(torch.tensor([0.1, 0.1, 0.9, 0.9]), np.array([0, 0, 1, 1]))
        1.0
    """
    z = norm.ppf(rankdata(p_values.numpy()) / (len(p_values) + 1))
    _, place, sizes = np.unique(image_of, return_inverse=True, return_counts=True)
    images, rows = len(sizes), len(z)
    if rows <= images or images < 2:
        return 0.0
    means = np.bincount(place, z) / sizes
    within = float(((z - means[place]) ** 2).sum() / (rows - images))
    between = float((sizes * (means - z.mean()) ** 2).sum() / (images - 1))
    size = (rows - (sizes**2).sum() / rows) / (images - 1)
    return float((between - within) / (between + (size - 1) * within)) if between + within > 0 else 0.0


def rank_p_values(
    scores: Scores, image_of: NDArray[np.int64], *, tau: float, together: bool, seed: tuple[int, ...]
) -> Tensor:
    """The share of images that a caption, or all captions given to one image, likes at least as well as its given one.

    A caption likes an image by `log softmax(S_c / tau)` over (at most `RIVALS`) images, drawn by `seed`, the rivals. So
    that an image which all captions like is no better a rival than others, what the captions given to the rivals and
    to itself like of it, `log Σ exp` of their means, is taken off. The given image counts half, so that p-values are
    above 0.

    Args:
        scores: of a model that has seen neither these images nor these captions.
        image_of: (captions,) the image each caption is given.
        tau: temperature of the softmax.
        together: rank the mean over the captions of an image, not each caption.
        seed: of the rivals.

    Raises:
        InputError: a score is NaN.
    """
    rivals = np.random.default_rng(seed).permutation(scores.n_images)[:RIVALS]
    popularity = _popularity(scores, image_of, rivals, tau)
    total = torch.zeros(scores.n_images, len(rivals))
    own = torch.zeros(scores.n_images)
    p_values = torch.zeros(len(image_of))
    for captions in _chunks(np.arange(len(image_of))):
        given = image_of[captions]
        images, column = np.unique(given, return_inverse=True)
        among, mine = _liking(scores, rivals, images, captions, tau)
        among = among - popularity[torch.from_numpy(rivals)]
        mine = mine[range(len(given)), torch.from_numpy(column)] - popularity[torch.from_numpy(given)]
        groups = torch.from_numpy(given)
        total.index_add_(0, groups, among)
        own.index_add_(0, groups, mine)
        p_values[captions] = _share_above(among, mine, rivals, given)
    if together:
        p_values = _share_above(total, own, rivals, np.arange(scores.n_images))[torch.from_numpy(image_of)]
    return p_values


def _popularity(scores: Scores, image_of: NDArray[np.int64], rivals: NDArray[np.int64], tau: float) -> Tensor:
    """(images,) `log Σ exp` over the rivals' captions and its own, each image's together, of how they like an image."""
    total = torch.zeros(scores.n_images, len(rivals))
    place = np.full(scores.n_images, -1)
    place[rivals] = np.arange(len(rivals))
    asked = np.flatnonzero(place[image_of] >= 0)
    for captions in _chunks(asked):
        _, liking = _liking(scores, rivals, np.arange(scores.n_images), captions, tau)
        total.index_add_(1, torch.from_numpy(place[image_of[captions]]), liking.T)
    counts = np.bincount(place[image_of[asked]], minlength=len(rivals))
    popularity = (total / torch.from_numpy(counts).clamp(min=1))[:, counts > 0].logsumexp(1)
    # a rival's own captions are among those asked; the others must not fare better for lack of theirs
    own = torch.zeros(scores.n_images)
    for captions in _chunks(np.flatnonzero(place[image_of] < 0)):
        given = image_of[captions]
        images, column = np.unique(given, return_inverse=True)
        _, liking = _liking(scores, rivals, images, captions, tau)
        own.index_add_(0, torch.from_numpy(given), liking[range(len(given)), torch.from_numpy(column)])
    given_to = np.bincount(image_of, minlength=scores.n_images)
    own = torch.logaddexp(popularity, own / torch.from_numpy(given_to).clamp(min=1))
    return torch.where(torch.from_numpy((place < 0) & (given_to > 0)), own, popularity)


def _liking(
    scores: Scores, rivals: NDArray[np.int64], images: NDArray[np.int64], captions: NDArray[np.int64], tau: float
) -> tuple[Tensor, Tensor]:
    """How captions like the rivals, and how they like `images`, a caption a row.

    That is `log softmax` over the rivals; over them and the image itself, where it is none of them.
    """
    S = (checked_block(scores, np.concatenate([rivals, images]), captions).float() / tau).cpu()
    among, asked = S[: len(rivals)], S[len(rivals) :]
    total = among.logsumexp(0)
    is_rival = torch.from_numpy(np.isin(images, rivals))[:, None]
    return (among - total).T, (asked - torch.where(is_rival, total, torch.logaddexp(total, asked))).T


def _chunks(captions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(captions, max(1, len(captions) // CHUNK)) if len(captions) else []


def _share_above(among: Tensor, own: Tensor, rivals: NDArray[np.int64], given: NDArray[np.int64]) -> Tensor:
    """The share of rivals, the given image aside, whose score (items, rivals) reaches the own one (items,)."""
    other = torch.from_numpy(rivals[None, :] != given[:, None])
    above = ((among >= own[:, None]) & other).sum(1)
    return (above + 0.5) / (other.sum(1) + 1)
