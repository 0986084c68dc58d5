"""Pairs judged by models that never saw them: every fold's images and captions are new to one model, which judges them.

A model that has learned from a wrong pair likes it. So images fall into folds, and for each fold a model learns from
the pairs of the others alone. It ranks the fold's pairs, all equally new to it, and a `RankMixture` over all ranks
tells matched from mismatched (`l2rm.training.crossfit`).
"""

import hashlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.auditing.kept import KeptFolds
from l2rm.data.batches import Batches
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.evaluation.scores import Scores
from l2rm.progress import track
from l2rm.rematching.ranks import RankMixture
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.similarity.settings import ModelConfig
from l2rm.training.crossfit import cross_fit
from l2rm.training.settings import TrainConfig
from l2rm.training.train import data_shape

log = logging.getLogger("l2rm")
P_VALUES = "p_values of the fold"


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossFit:
    """What models that never saw a pair make of it.

    Attributes:
        p_values: `(rows,)` in (0, 1], of the last round: the share of images unseen by the judge that fit the caption
            at least as well as the given one.
        mixture: fitted to them; its uniform part is the mismatched pairs.
        match_probability: `(rows,)` the mean over the rounds.
        scores: of all images and captions; see `CrossFittedScores`.
    """

    p_values: NDArray[np.float64]
    mixture: RankMixture
    match_probability: NDArray[np.float64]
    scores: Scores


class CrossFittedScores:
    """Similarities of which no pair's was learned: that of image i and caption c is the mean of two models' scores.

    One has seen nothing of the image's fold, the other nothing of the caption's. For a given pair both are the same
    model, to which image and caption are new; for any other, neither has learned that the two belong together.

    Args:
        models: a model's scores of all pairs, for each fold.
        image_fold: (images,) fold of each image.
        caption_fold: (captions,) fold of the image that each caption is given.
    """

    def __init__(
        self, models: Sequence[Scores], image_fold: NDArray[np.int64], caption_fold: NDArray[np.int64]
    ) -> None:
        self._models, self._image_fold, self._caption_fold = tuple(models), image_fold, caption_fold

    @property
    def n_images(self) -> int:
        """Distinct images."""
        return len(self._image_fold)

    @property
    def n_captions(self) -> int:
        """Captions."""
        return len(self._caption_fold)

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> torch.Tensor:
        """Scores (len(images), len(captions)), float32 on the CPU."""
        found = torch.zeros(len(images), len(captions))
        for fold, scores in enumerate(self._models):
            rows = np.flatnonzero(self._image_fold[images] == fold)
            columns = np.flatnonzero(self._caption_fold[captions] == fold)
            if len(rows):
                found[rows] += 0.5 * scores.block(images[rows], captions).float().cpu()
            if len(columns):
                found[:, columns] += 0.5 * scores.block(images, captions[columns]).float().cpu()
        return found


def cross_fit_config(
    pairs: Pairs,
    *,
    seed: int = 0,
    evidence: Literal["pair", "image"] = "pair",
    folds_by: Literal["image", "image+caption"] = "image",
) -> TrainConfig:
    """How the judges learn: small towers, in seconds for some thousand pairs and minutes for 50,000.

    Captions as words are read as bags of words; embeddings get a linear head. Few images are divided into more folds,
    so that each judge has more to learn from.

    Args:
        pairs: what is to be judged.
        seed: rules folds, weights and the order of batches.
        evidence: "image" ranks all captions of an image together, for data in which they came together.
        folds_by: "image+caption" keeps a caption's text from its judge too, for data that give many images one text.
    """
    few = pairs.n_images < 5000
    words = pairs.caption_features is None
    passes = max(2, min(10, round(20_000 / max(1, len(pairs)))))
    return TrainConfig(
        seed=seed,
        warmup_epochs=2 if words and len(pairs) > 5000 else passes,
        batch_size=128,
        lr=3e-3 if words else 1e-3,
        model=ModelConfig(
            similarity="cosine",
            caption_tower="bag",
            embed_dim=256,
            dropout=0.4,
            min_word_count=1 if len(pairs) < 20_000 else 2,
        ),
        rematching=RematchingConfig(
            tau=0.1 if words else 0.05, folds=8 if few else 4, fold_rounds=2, evidence=evidence, folds_by=folds_by
        ),
    )


def cross_fit_pairs(
    pairs: Pairs,
    config: TrainConfig,
    *,
    groups: NDArray[np.int64] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    keep: Path | None = None,
) -> CrossFit:
    """Judge every pair by models that never saw its image, nor the captions that the image is given.

    By `l2rm.training.crossfit.cross_fit`; the models of its last round suggest partners, too.

    Args:
        pairs: with features of images; captions as words or embeddings.
        config: of the models: `warmup_epochs`, `lr`, `batch_size`, `model`, and of `rematching` `folds`, `fold_rounds`,
            `folds_by`, `evidence` and `tau`.
        groups: (images,) numbers; images of one number (copies of one picture, say) share a fold.
        device: where the models learn.
        progress: tell on standard error how far it is.
        keep: a folder for the folds that are finished. A call with the same pairs and configuration goes on from them,
            to the same result; what others left there is removed.

    Raises:
        InputError: too few images or groups for the folds, no features, what was kept is damaged.
        RuntimeError: a round takes next to no pairs of a fold as matched, so that nothing is left to learn from.
    """
    settings = config.rematching
    groups = np.arange(pairs.n_images) if groups is None else np.unique(groups, return_inverse=True)[1]
    if (n_groups := int(groups.max(initial=-1)) + 1) < 2 * settings.folds:
        raise InputError(
            f"{pairs.source}: {n_groups} different images are too few to learn on some and judge others "
            f"({settings.folds} folds of two or more); give a model (--model) or similarities (--similarity)"
        )
    batches, template = _prepared(pairs, config, device)
    kept = None if keep is None else KeptFolds(keep, _key(pairs, config, groups))
    done = [] if kept is None else list(kept)
    judges = deque((_judge(template, fold) for fold in done[-settings.folds :]), maxlen=settings.folds)
    left = settings.fold_rounds * settings.folds - len(done)
    if done:
        log.info("%s: %d folds were judged before, %d are left", pairs.source, len(done), left)
    told = _Told(
        left, round(config.warmup_epochs * len(pairs) * (1 - 1 / settings.folds) / config.batch_size), progress
    )

    def finished(p_values: Tensor) -> None:
        if kept is not None:
            kept.append({P_VALUES: p_values, **judges[-1].state_dict()})
        told.fold()

    division = cross_fit(
        template,
        batches,
        config,
        groups=groups,
        stop=told.step,
        done=[fold[P_VALUES] for fold in done],
        judged=judges.append,
        finished=finished,
    )
    models = [ModelScores(judge, pairs) for judge in judges]
    return CrossFit(
        p_values=division.losses.astype(np.float64),
        mixture=division.mixture,
        match_probability=division.match_probability.astype(np.float64),
        scores=CrossFittedScores(models, division.image_fold, division.image_fold[pairs.image_of]),
    )


class _Told:
    """Progress by steps of learning. A later round learns from fewer pairs: what is left of a fold is skipped then."""

    def __init__(self, folds: int, steps: int, enabled: bool) -> None:
        self._steps, self._done = max(1, steps), 0
        total = folds * self._steps
        self._track = iter(track(range(total + 1), total=total, what="learning to judge", enabled=enabled))
        next(self._track)

    def step(self) -> None:
        """A step was made, of learning or of ranking; the last one of a fold is told by `fold`."""
        if self._done < self._steps - 1:
            self._done += 1
            next(self._track)

    def fold(self) -> None:
        """A fold is done."""
        for _ in range(self._steps - self._done):
            next(self._track)
        self._done = 0


def _prepared(pairs: Pairs, config: TrainConfig, device: torch.device | str) -> tuple[Batches, RetrievalModel]:
    """All pairs as batches, and a model that only tells what kind the others are."""
    vocabulary = None
    if pairs.caption_features is None:
        vocabulary = Vocabulary.build(
            pairs.captions, tokeniser=config.model.tokeniser, min_count=config.model.min_word_count
        )
    with torch.random.fork_rng(devices=[]):
        template = build_model(config.model, data_shape(pairs, vocabulary)).to(device)
    template.vocabulary = vocabulary
    return Batches(pairs, vocabulary, device), template


def _judge(template: RetrievalModel, fold: Mapping[str, Tensor]) -> RetrievalModel:
    """The model of a fold that was kept."""
    device = next(template.parameters()).device
    with torch.random.fork_rng(devices=[]):
        judge = build_model(template.config, template.shape).to(device)
    judge.vocabulary = template.vocabulary
    judge.load_state_dict({name: value for name, value in fold.items() if name != P_VALUES})
    return judge.eval()


def _key(pairs: Pairs, config: TrainConfig, groups: NDArray[np.int64]) -> str:
    """Tells this cross-fit from others: all that it learns from, and how."""
    digest = hashlib.sha256(repr((config, pairs.captions)).encode())
    for features in (pairs.features, pairs.caption_features):
        digest.update(b"" if features is None else features.digest().encode())
    for array in (pairs.image_of, pairs.trusted, groups):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
