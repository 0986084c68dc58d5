"""The suspects of a data set: partners for all of them at once, and what is learned with them and from the rest."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from l2rm.data.pairs import Pairs
from l2rm.evaluation.scores import Scores
from l2rm.rematching.partners import Partners, find_partners
from l2rm.training.lesson import Lesson
from l2rm.training.settings import TrainConfig
from l2rm.training.wording import WordedScores, unit_words


def partners_of_suspects(
    scores: Scores,
    pairs: Pairs,
    probability: NDArray[np.floating],
    config: TrainConfig,
    evidence: str,
    words: csr_array | None = None,
) -> Partners:
    """What the plan of a run gives every suspect: `find_partners`, all of their weight moved.

    Args:
        scores: of the pairs, by the model so far.
        pairs: those among which partners are looked for.
        probability: (rows,) match probabilities.
        config: of the run.
        evidence: "image" where captions that are given one image are rematched together; else each by itself.
        words: (rows, words) of the captions, as of `unit_words`, where they are at hand.
    """
    settings = config.rematching
    if settings.wording and evidence != "image":
        words = unit_words(pairs.captions) if words is None else words
        scores = WordedScores(scores, words, pairs.image_of, probability, strength=settings.wording)
    return find_partners(
        scores,
        pairs.image_of,
        probability,
        below=settings.matched_above,
        level="image" if evidence == "image" else "caption",
        share=1.0,
        cost=settings.cost,
        tau=settings.tau,
        seed=config.seed,
    )


def with_partners(
    rows: NDArray[np.int64],
    given: NDArray[np.int64],
    trust: NDArray[np.float32],
    partner: NDArray[np.int64],
    weight: NDArray[np.float32],
) -> Lesson:
    """Captions with their given images as far as those are trusted, and with their partners as far as those count.

    Args:
        rows: (n,) captions.
        given: (n,) the image each is given.
        trust: (n,) how far it is taken as matched; 0 leaves it out.
        partner: (n,) the image it is rematched to, −1 for none.
        weight: (n,) how much that counts.

    Example:
        >>> lesson = with_partners(
        ...     np.array([3, 5]), np.array([0, 1]), np.float32([1, 0]), np.array([-1, 7]), np.float32([0, 0.5]))
        >>> lesson.rows.tolist(), lesson.images.tolist(), lesson.weights.tolist()
        ([3, 5], [0, 7], [1.0, 0.5])
    """
    kept, moved = trust > 0, partner >= 0
    return Lesson(
        rows=np.concatenate([rows[kept], rows[moved]]),
        images=np.concatenate([given[kept], partner[moved]]),
        weights=np.concatenate([trust[kept], weight[moved]]).astype(np.float32),
    )
