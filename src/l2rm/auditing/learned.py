"""What a run says about pairs of which it has learned some: it knows those by heart, and the others not at all."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from l2rm.data.pairs import Pairs
from l2rm.evaluation.evaluate import model_scores
from l2rm.rematching.ranks import RankMixture
from l2rm.training.crossfit import rank_p_values
from l2rm.training.run import Run


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """A run's verdict on some pairs.

    Attributes:
        match_probability: `(rows,)` in [0, 1].
        new: rows that the run has not learned.
    """

    match_probability: NDArray[np.float64]
    new: NDArray[np.int64]


def verdict(run: Run, pairs: Pairs, *, seed: int = 0) -> Verdict | None:
    """Match probabilities of pairs of which a run has learned some, with features as it takes them.

    Of the pairs that it learned, the training's own. The others are ranked among one another, as a cross-fit ranks
    pairs that are new to its judge, and a `RankMixture` of these ranks tells. Their losses would not do: beside what
    the model knows by heart everything new looks mismatched.

    Returns:
        None where the run has learned none of them.

    Raises:
        InputError: the run's `pairs.parquet` is damaged, or features that the model cannot take.

    Example:
        >>> verdict(l2rm.load("runs/mine"), pairs).match_probability.shape  # doctest: +SKIP
        (12404,)
    """
    probability = run.match_probability(pairs)
    if probability is None:
        return None
    if len(new := np.flatnonzero(np.isnan(probability))):
        rest = pairs.take(new)
        ranks = rank_p_values(
            model_scores(run.model, rest),
            rest.image_of,
            tau=run.config.rematching.tau,
            together=run.evidence == "image",
            seed=(seed, len(rest)),
        )
        probability[new] = RankMixture.fit(ranks).match_probability(ranks).numpy()
    return Verdict(match_probability=probability, new=new)
