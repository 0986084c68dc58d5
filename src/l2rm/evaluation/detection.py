"""How well mismatched pairs are told from matched ones, and how often the true partner is found."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import rankdata

from l2rm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Detection of mismatched pairs, which are the positive class. All in [0, 1].

    Attributes:
        auroc: how often a mismatched pair has a lower match probability than a matched one; a tie counts half.
        ap: average precision, the area under the precision–recall steps, tied pairs taken together.
        f1: F1 of the verdict "mismatched where match_probability < threshold".
    """

    auroc: float
    ap: float
    f1: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers for JSON, under the names of the fields."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RematchHits:
    """How often the true image of a mismatched caption is suggested.

    Attributes:
        hit1, hit10: share of captions whose true image comes first, or is among the first ten; in [0, 1].
        captions: how many captions were asked about.
    """

    hit1: float
    hit10: float
    captions: int

    def to_dict(self) -> dict[str, float]:
        """Plain numbers for JSON, under the names of the fields."""
        return asdict(self)


def measure_detection(match_probability: np.ndarray, is_mismatched: np.ndarray, *, threshold: float = 0.5) -> Detection:
    """Compare match probabilities with the truth.

    Args:
        match_probability: `(pairs,)`; for `auroc` and `ap` any number that is lower for a likelier mismatch.
        is_mismatched: `(pairs,)` bool, the truth.
        threshold: below it a pair is called mismatched (for `f1`).

    Raises:
        InputError: lengths differ, a probability is NaN, or all pairs are of one kind, so nothing can be told apart.

    Example:
        >>> measure_detection(np.array([0.9, 0.8, 0.3, 0.1]), np.array([False, True, False, True]))
        Detection(auroc=0.75, ap=0.8333333333333333, f1=0.5)
    """
    probability = np.asarray(match_probability, dtype=np.float64)
    positive = np.asarray(is_mismatched, dtype=bool)
    if probability.ndim != 1 or probability.shape != positive.shape:
        raise InputError(
            f"detection: {probability.shape} match probabilities for {positive.shape} pairs; give one a pair"
        )
    if np.isnan(probability).any():
        raise InputError(f"detection: match probability of pair {int(np.isnan(probability).argmax())} is NaN")
    mismatched = int(positive.sum())
    matched = len(positive) - mismatched
    if not mismatched or not matched:
        raise InputError(f"detection: {mismatched} mismatched and {matched} matched pairs; it takes both to tell apart")
    # Mann–Whitney: the rank sum of the positives, mean ranks for ties, less the least it could be.
    rank_sum = float(rankdata(-probability)[positive].sum())
    auroc = (rank_sum - mismatched * (mismatched + 1) / 2) / (mismatched * matched)

    suspected = probability < threshold
    hits = int((suspected & positive).sum())
    f1 = 2.0 * hits / (int(suspected.sum()) + mismatched)
    return Detection(auroc=auroc, ap=_average_precision(probability, positive), f1=f1)


def _average_precision(probability: np.ndarray, positive: np.ndarray) -> float:
    order = np.argsort(probability, kind="stable")
    ordered = probability[order]
    found = np.cumsum(positive[order])
    last_of_tie = np.append(ordered[1:] != ordered[:-1], True)
    found, taken = found[last_of_tie], (np.arange(len(order)) + 1)[last_of_tie]
    new = np.diff(found, prepend=0)
    return float((new * found / taken).sum() / found[-1])


def measure_rematch(suggested: np.ndarray, true_image: np.ndarray) -> RematchHits:
    """Compare ranked suggestions with the true images.

    Args:
        suggested: `(captions, k)` images for each mismatched caption, best first. With `k < 10` (few images, or a short
            list) `hit10` looks at all k.
        true_image: `(captions,)` the true images; −1 (not among the images) can never be hit and counts as a miss.

    Raises:
        InputError: lengths differ, or no caption or suggestion is there.

    Example:
        >>> measure_rematch(np.array([[4, 2], [0, 1], [3, 0]]), np.array([4, 1, 7]))
        RematchHits(hit1=0.3333333333333333, hit10=0.6666666666666666, captions=3)
    """
    suggested = np.asarray(suggested)
    true_image = np.asarray(true_image)
    if suggested.ndim != 2 or true_image.shape != suggested.shape[:1] or not suggested.size:
        raise InputError(
            f"rematch: suggestions of shape {suggested.shape} for true images of shape {true_image.shape}; "
            "give a ranked list a caption, at least one caption"
        )
    hit = (suggested == true_image[:, None]) & (true_image[:, None] >= 0)
    return RematchHits(
        hit1=float(hit[:, :1].any(axis=1).mean()),
        hit10=float(hit[:, :10].any(axis=1).mean()),
        captions=len(true_image),
    )
