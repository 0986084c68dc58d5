"""Rematch a data set: find the mismatched captions a better image among all images that have room for them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from l2rm.auditing.audit import audit_scores
from l2rm.auditing.check import check_judging, checked_probability
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.detection import RematchHits, measure_rematch
from l2rm.evaluation.evaluate import Models, model_scores
from l2rm.evaluation.scores import Scores
from l2rm.rematching.partners import Level, Partners, find_partners
from l2rm.training.wording import WordedScores, unit_words


@dataclass(frozen=True, kw_only=True, eq=False)
class Rematched:
    """Pairs, and an image for each mismatched caption that the data set has room for.

    Attributes:
        pairs_given: the pairs as they were.
        match_probability: `(rows,)` in [0, 1]; whether a pair is right as it is.
        partners: images for the mismatched captions, how sure they are, and the plan behind them.
        keep_threshold, rematch_threshold: what decides; see `decision`.
    """

    pairs_given: Pairs
    match_probability: NDArray[np.float64]
    partners: Partners
    keep_threshold: float
    rematch_threshold: float

    @property
    def is_mismatched(self) -> NDArray[np.bool_]:
        """`(rows,)`: the verdict `match_probability < keep_threshold`. The truth is not looked at."""
        return self.match_probability < self.keep_threshold

    @cached_property
    def decision(self) -> NDArray[np.str_]:
        """`(rows,)` `keep` what looks matched; else `rematch` where the confidence is high enough; else `drop`."""
        found = (self.partners.confidence >= self.rematch_threshold) & (self.partners.suggested[:, 0] >= 0)
        return np.where(self.is_mismatched, np.where(found, "rematch", "drop"), "keep")

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs are kept, rematched and dropped."""
        return {decision: int((self.decision == decision).sum()) for decision in ("keep", "rematch", "drop")}

    @cached_property
    def image_of(self) -> NDArray[np.int64]:
        """`(rows,)`; the image that each caption is given now. Dropped ones still have the one they had."""
        return np.where(self.decision == "rematch", self.partners.suggested[:, 0], self.pairs_given.image_of)

    @cached_property
    def pairs(self) -> Pairs:
        """The repaired pairs: kept and rematched rows; the images that they use; the truth, where it is known.

        Raises:
            InputError: nothing is left.
        """
        rows = np.flatnonzero(self.decision != "drop")
        if not len(rows):
            raise InputError(
                f"{self.pairs_given.source}: every pair would be dropped; lower the rematch threshold, or keep more"
            )
        return replace(self.pairs_given, image_of=self.image_of).take(rows)

    @cached_property
    def table(self) -> pa.Table:
        """One row a pair: `pair_id, image` (the repaired one), `caption, given_image, match_probability,
        rematch_confidence, decision`, then `split` and the truth (`is_mismatched`, `true_image`) where the pairs have
        them. Dropped rows are there, with the image that they had."""
        pairs = self.pairs_given
        names = np.array(pairs.images, dtype=object)
        columns: dict[str, Any] = {
            "pair_id": pa.array(pairs.pair_ids, pa.string()),
            "image": pa.array(names[self.image_of], pa.string()),
            "caption": pa.array(pairs.captions, pa.string()),
            "given_image": pa.array(names[pairs.image_of], pa.string()),
            "match_probability": pa.array(self.match_probability, pa.float64()),
            "rematch_confidence": pa.array(self.partners.confidence, pa.float64()),
            "decision": pa.array(self.decision.tolist(), pa.string()),
        }
        if pairs.splits is not None:
            columns["split"] = pa.array(pairs.splits, pa.string())
        if pairs.true_image_of is not None:
            columns["is_mismatched"] = pa.array(self.image_of != pairs.true_image_of, pa.bool_())
            true = [names[image] if image >= 0 else "" for image in pairs.true_image_of]
            columns["true_image"] = pa.array(true, pa.string())
        return pa.table(columns)

    @cached_property
    def rematch_hits(self) -> RematchHits | None:
        """How often the true image of a truly mismatched caption is suggested; None where the truth is not known.

        Captions that look matched have no suggestion and count as misses, as do those whose image is not there.
        """
        truth, true_image_of = self.pairs_given.is_mismatched, self.pairs_given.true_image_of
        if truth is None or true_image_of is None or not truth.any():
            return None
        return measure_rematch(self.partners.suggested[truth], true_image_of[truth])


def rematch(pairs: Pairs, model: Models, *, progress: bool = True, **options: Any) -> Rematched:
    """Rematch by a trained model, or by the mean similarity of several: `rematch_scores` of their scores.

    Args:
        pairs: images and captions as given. Where they have no features, their images are encoded.
        model: one model or several.
        progress: tell on standard error how far it is.
        options: as in `rematch_scores`. For pairs that a run learned from, give `match_probability`:
            `run.match_probability(pairs)`, which knows what the model has forgotten or learned by heart.

    Raises:
        InputError: features that the model cannot take or that are not finite, and what `rematch_scores` refuses.

    Example:
        >>> repaired = rematch(noisy.pairs, run.model)  # doctest: +SKIP
        >>> repaired.pairs.write("repaired.csv")  # doctest: +SKIP
    """
    return rematch_scores(model_scores(model, pairs, progress=progress), pairs, progress=progress, **options)


def rematch_scores(
    scores: Scores,
    pairs: Pairs,
    *,
    match_probability: NDArray[np.floating] | None = None,
    keep_threshold: float = 0.5,
    rematch_threshold: float = 0.5,
    capacity: int | None = None,
    level: Level = "caption",
    wording: float = 0.0,
    candidates: int = 64,
    share: float | None = None,
    reg: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Rematched:
    """Give each mismatched caption an image, all of them at once: `l2rm.rematching.partners.find_partners`.

    Args:
        scores: similarities, images × captions, in the order of `pairs.images` and its rows.
        pairs: images and captions as given.
        match_probability: `(rows,)`; None for those that `audit_scores` finds.
        keep_threshold: keep a pair whose match probability is at least this.
        rematch_threshold: of the others, rematch those whose confidence is at least this and drop the rest.
        capacity: captions an image has room for; None for as many as each is given now.
        level: "image" where captions that are given one image went astray together, if they did: they are rematched
            as one, by their mean score. "caption": each by itself.
        wording: how much the words of an image's other captions count beside the scores, in standard deviations, where
            each caption goes by itself (`l2rm.training.wording`); 0.2 served well where images have five captions.
        candidates: images a caption (or those that go together) may choose from.
        share: how much of the mismatched captions' weight to move, in (0, 1].
        reg: temperature of the plan, in the unit of the scores.
        seed: draws the control group where it is larger than 4,000.
        progress: tell on standard error how far it is.

    Raises:
        InputError: scores that do not fit the pairs, NaN scores, a threshold, probability or share out of range.

    Example:
        >>> from l2rm.evaluation.scores import MatrixScores
        >>> S = np.random.default_rng(0).normal(0, 0.2, size=(40, 40))
        >>> S[np.r_[1:10, 0, 10:40], np.arange(40)] += 1  # the first ten captions went one image too far
        >>> pairs = Pairs(images=tuple(f"{i}.jpg" for i in range(40)), image_of=np.arange(40), captions=("text",) * 40)
        >>> repaired = rematch_scores(MatrixScores(S), pairs, progress=False)
        >>> repaired.counts, repaired.table["image"][0].as_py()
        ({'keep': 30, 'rematch': 10, 'drop': 0}, '1.jpg')
    """
    thresholds = {"keep_threshold": keep_threshold, "rematch_threshold": rematch_threshold}
    check_judging("rematch", scores, pairs, thresholds)
    _check_plan(level, wording, capacity, candidates, share, reg)
    if match_probability is None:
        match_probability = audit_scores(scores, pairs, seed=seed, progress=progress).match_probability
    probability = checked_probability("rematch", match_probability, len(pairs))
    if wording and level == "caption":
        scores = WordedScores(scores, unit_words(pairs.captions), pairs.image_of, probability, strength=wording)
    found = find_partners(
        scores,
        pairs.image_of,
        probability,
        below=keep_threshold,
        capacity=capacity,
        level=level,
        candidates=candidates,
        share=share,
        reg=reg,
        seed=seed,
        progress=progress,
    )
    return Rematched(
        pairs_given=pairs,
        match_probability=probability,
        partners=found,
        keep_threshold=keep_threshold,
        rematch_threshold=rematch_threshold,
    )


def _check_plan(
    level: str, wording: float, capacity: int | None, candidates: int, share: float | None, reg: float | None
) -> None:
    if level not in get_args(Level):
        raise InputError(f"rematch: level {level!r} is none; choose image or caption")
    if not 0 <= wording < np.inf:
        raise InputError(f"rematch: wording={wording}; give 0 for scores alone, or more, such as 0.2")
    if capacity is not None and capacity < 1:
        raise InputError(f"rematch: capacity={capacity}; an image has room for at least one caption")
    if candidates < 1:
        raise InputError(f"rematch: candidates={candidates}; give at least one, such as 64")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"rematch: share={share}; give a number above 0 and at most 1")
    if reg is not None and not 0 < reg < np.inf:
        raise InputError(f"rematch: reg={reg}; give a positive number, such as 0.05")
