"""What an audit and a rematch both refuse."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.scores import Scores


def check_judging(what: str, scores: Scores, pairs: Pairs, thresholds: Mapping[str, float]) -> None:
    """Refuse thresholds that are no probabilities, and scores of other pairs.

    Args:
        what: "audit" or "rematch", for the message.
        scores: similarities, images × captions.
        pairs: what they should be of.
        thresholds: by name.

    Raises:
        InputError: names the threshold, or both shapes.
    """
    for name, value in thresholds.items():
        if not 0 <= value <= 1:
            raise InputError(f"{what}: {name}={value}; give a probability between 0 and 1")
    if (scores.n_images, scores.n_captions) != (pairs.n_images, len(pairs)):
        raise InputError(
            f"{what}: scores of {scores.n_images} images × {scores.n_captions} captions for {pairs.source} with "
            f"{pairs.n_images} images and {len(pairs)} captions; score exactly these pairs"
        )


def checked_probability(what: str, match_probability: NDArray[np.floating], rows: int) -> NDArray[np.float64]:
    """Match probabilities, (rows,), as float64.

    Raises:
        InputError: another shape, or a value that is not in [0, 1]; names the row.
    """
    probability = np.asarray(match_probability, dtype=np.float64)
    if probability.shape != (rows,):
        raise InputError(f"{what}: match probabilities of shape {probability.shape} for {rows} pairs; give one a pair")
    wrong = np.flatnonzero(~((probability >= 0) & (probability <= 1)))  # NaN fails both
    if len(wrong):
        row = int(wrong[0])
        raise InputError(f"{what}: match probability of row {row + 1} is {probability[row]}; give one between 0 and 1")
    return probability
