"""The model that judges a fold: fresh, and taught by pairs of the other folds alone."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import nn

from l2rm.data.batches import Batches, ahead
from l2rm.evaluation.scores import Stoppable
from l2rm.rematching.objectives import symmetric_cross_entropy
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.training.lesson import Lesson
from l2rm.training.optimiser import make_optimiser, set_learning_rate
from l2rm.training.processes import share, sum_gradients, unite
from l2rm.training.settings import TrainConfig
from l2rm.training.suspects import partners_of_suspects, with_partners


def fold_model(
    template: RetrievalModel,
    batches: Batches,
    matched: NDArray[np.int64],
    config: TrainConfig,
    *,
    seed: tuple[int, ...],
    stop: Callable[[], None] = lambda: None,
    repair: Callable[[RetrievalModel], Lesson] | None = None,
) -> RetrievalModel:
    """A fresh model after the warm-up on some pairs, in evaluation mode; torch's own generator is as before.

    With `repair` it goes on for `fold_rematching_epochs` with what that makes of it, drawn anew every epoch by its
    weights.

    Args:
        template: tells what kind of model to train, and how captions are read; it is left as it is.
        batches: all training pairs.
        matched: rows to learn from in the warm-up.
        config: of the run.
        seed: rules the weights, the order of batches and what is drawn.
        stop: called at every step; may raise.
        repair: the model so far -> pairs, with weights; see `repaired`.
    """
    settings, device = config.rematching, next(template.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**31)))
        own = build_model(template.config, template.shape).to(device)
        own.vocabulary = template.vocabulary
        unite(own)
        fresh = share(own).train()
        optimiser, taken = make_optimiser(fresh, config), 0

        def learn(lesson: Lesson, epoch: int) -> None:
            nonlocal taken
            parts = lesson.batches(config.batch_size, seed=(*seed, epoch))
            with ahead(lambda part: part.read(batches), parts) as read:
                for batch in read:
                    stop()
                    set_learning_rate(optimiser, config, epoch, taken)
                    taken += 1
                    S = fresh(batch.images, batch.captions, batch.lengths)
                    optimiser.zero_grad()
                    symmetric_cross_entropy(S, settings.tau).backward()
                    sum_gradients(own)
                    nn.utils.clip_grad_norm_(fresh.parameters(), config.clip)
                    optimiser.step()

        for epoch in range(config.warmup_epochs):
            learn(Lesson(rows=matched), epoch)
        if repair is not None:
            lesson = repair(fresh)
            for epoch in range(config.warmup_epochs, config.warmup_epochs + settings.fold_rematching_epochs):
                learn(_drawn(lesson, (*seed, epoch)), epoch)
    return fresh.eval()


def repaired(
    batches: Batches,
    rows: NDArray[np.int64],
    probability: NDArray[np.float32],
    config: TrainConfig,
    words: csr_array | None,
    stop: Callable[[], None],
    model: RetrievalModel,
) -> Lesson:
    """Some pairs by match probability p, and their suspects with partners by `rematch_weight · (1 − p)`.

    One plan finds partners among the images of these pairs; no other image, and no caption of another, is looked at.

    Args:
        batches: all training pairs.
        rows: some of them, in rising order.
        probability: (all pairs,) match probabilities.
        config: of the run; of `rematching`, `evidence` is "pair" or "image".
        words: (all pairs, words) of the captions, as of `unit_words`, if at hand.
        stop: called at every block of scores; may raise.
        model: what finds the partners.
    """
    pairs, p, given = batches.pairs.take(rows), probability[rows], batches.pairs.image_of[rows]
    scores = Stoppable(ModelScores(model, pairs), stop)
    own_words = None if words is None else words[rows]
    found = partners_of_suspects(scores, pairs, p, config, config.rematching.evidence, own_words).suggested[:, 0]
    partner = np.where(found >= 0, np.unique(given)[found], -1)  # `take` keeps the order of images
    return with_partners(rows, given, p, partner, config.rematching.rematch_weight * (1 - p))


def _drawn(lesson: Lesson, seed: tuple[int, ...]) -> Lesson:
    """Its pairs, each with the probability that its weight is, and then in full."""
    assert lesson.weights is not None
    drawn = lesson.take(np.flatnonzero(np.random.default_rng(seed).random(len(lesson)) < lesson.weights))
    return Lesson(rows=drawn.rows, images=drawn.images)
