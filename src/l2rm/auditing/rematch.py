"""Rematch a data set: find the mismatched captions a better image among all images that have room for them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from l2rm.auditing.audit import audit_scores
from l2rm.auditing.control import Control
from l2rm.auditing.together import Units, UnitScores
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.detection import RematchHits, measure_rematch
from l2rm.evaluation.evaluate import Models, model_scores
from l2rm.evaluation.scores import Scores
from l2rm.rematching.candidates import Candidates, nearest_images
from l2rm.rematching.dataset import SparsePlan, sparse_transport, sure_mass

Level = Literal["image", "caption"]

CONTROL = 4000
"""Matched pairs (or units) that serve as a control group, at most."""
SUGGESTED = 10
_REG_WITHOUT_CONTROL = 0.05
_MOST = 0.98  # share of the mass that surely fits which is asked for at most; at the limit duals run away


@dataclass(frozen=True, kw_only=True, eq=False)
class Rematched:
    """Pairs, and an image for each mismatched caption that the data set has room for.

    Attributes:
        pairs_given: the pairs as they were.
        match_probability: `(rows,)` in [0, 1]; whether a pair is right as it is.
        suggested: `(rows, 10)`; images for each mismatched caption by the mass that the plan gives them, most first;
            −1 where there is none, and for captions that look matched.
        confidence: `(rows,)` in [0, 1]; share of the caption's weight that the first of them takes. 0 without one.
        plan: the transport of captions (or of those that go together) to images; None where nothing was to be moved.
        reg: the temperature of the plan, in the unit of the scores.
        share: how much of the mismatched captions' weight the plan was to move.
        keep_threshold, rematch_threshold: what decides; see `decision`.
    """

    pairs_given: Pairs
    match_probability: NDArray[np.float64]
    suggested: NDArray[np.int64]
    confidence: NDArray[np.float64]
    plan: SparsePlan | None
    reg: float
    share: float
    keep_threshold: float
    rematch_threshold: float

    @property
    def is_mismatched(self) -> NDArray[np.bool_]:
        """`(rows,)`: the verdict `match_probability < keep_threshold`. The truth is not looked at."""
        return self.match_probability < self.keep_threshold

    @cached_property
    def decision(self) -> NDArray[np.str_]:
        """`(rows,)` `keep` what looks matched; else `rematch` where the confidence is high enough; else `drop`."""
        found = (self.confidence >= self.rematch_threshold) & (self.suggested[:, 0] >= 0)
        return np.where(self.is_mismatched, np.where(found, "rematch", "drop"), "keep")

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs are kept, rematched and dropped."""
        return {decision: int((self.decision == decision).sum()) for decision in ("keep", "rematch", "drop")}

    @cached_property
    def image_of(self) -> NDArray[np.int64]:
        """`(rows,)`; the image that each caption is given now. Dropped ones still have the one they had."""
        return np.where(self.decision == "rematch", self.suggested[:, 0], self.pairs_given.image_of)

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
            "rematch_confidence": pa.array(self.confidence, pa.float64()),
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
        return measure_rematch(self.suggested[truth], true_image_of[truth])


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
    candidates: int = 64,
    share: float | None = None,
    reg: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Rematched:
    """Give each mismatched caption an image, all of them at once, by sparse partial optimal transport.

    A caption is taken as mismatched where its match probability p is below `keep_threshold`. It has weight 1 − p. An
    image has room for `capacity` captions, less the match probabilities of all captions that it is given: what it is
    rightly given already takes its place. Candidates are the best-scoring images with room, never the given one.

    What is not given is learned from the pairs that look matched (`l2rm.auditing.control`): `reg`, by temperature
    scaling, so that a plan's shares read as probabilities; and `share`, the mean probability that a caption's right
    image is among its candidates, beforehand 1 in 2. With fewer than 20 such pairs they are 0.05 and 0.5.

    Args:
        scores: similarities, images × captions, in the order of `pairs.images` and its rows.
        pairs: images and captions as given.
        match_probability: `(rows,)`; None for those that `audit_scores` finds.
        keep_threshold: keep a pair whose match probability is at least this.
        rematch_threshold: of the others, rematch those whose confidence is at least this and drop the rest.
        capacity: captions an image has room for; None for as many as each is given now.
        level: "image" where captions that are given one image went astray together, if they did: they are rematched
            as one, by their mean score. "caption": each by itself.
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
    _check(scores, pairs, thresholds, capacity, candidates, share, reg)
    if level not in get_args(Level):
        raise InputError(f"rematch: level {level!r} is none; choose image or caption")
    if match_probability is None:
        match_probability = audit_scores(scores, pairs, seed=seed, progress=progress).match_probability
    probability = _checked_probability(match_probability, len(pairs))
    given = pairs.image_of
    counts = np.bincount(given, minlength=pairs.n_images)
    room = np.maximum((counts if capacity is None else capacity) - np.bincount(given, probability, pairs.n_images), 0.0)
    room[room < 1e-6] = 0.0
    rows = np.flatnonzero(probability < keep_threshold)
    nothing = Rematched(
        pairs_given=pairs,
        match_probability=probability,
        suggested=np.full((len(pairs), SUGGESTED), -1),
        confidence=np.zeros(len(pairs)),
        plan=None,
        reg=reg or _REG_WITHOUT_CONTROL,
        share=share or 0.5,
        keep_threshold=keep_threshold,
        rematch_threshold=rematch_threshold,
    )
    images = np.flatnonzero(room > 0)
    if not len(rows) or not len(images):
        return nothing
    units = _units(rows, given, level)
    found = _nearest(scores, units, images, given, candidates, "finding candidates" if progress else None)
    if reg is None or share is None:
        matched = np.flatnonzero(probability >= keep_threshold)
        control = _control(scores, _units(matched, given, level), images, given, candidates, seed)
        learned = _learned(control, found) if control.is_enough else (_REG_WITHOUT_CONTROL, 0.5)
        reg, share = reg or learned[0], share or learned[1]
    return _transported(nothing, units, found, room, reg, share)


def _units(rows: NDArray[np.int64], given: NDArray[np.int64], level: Level) -> Units:
    return Units.by_image(rows, given) if level == "image" else Units.single(rows)


def _nearest(
    scores: Scores,
    units: Units,
    images: NDArray[np.int64],
    given: NDArray[np.int64],
    candidates: int,
    what: str | None,
) -> Candidates:
    return nearest_images(
        UnitScores(scores, units),
        candidates=candidates,
        images=images,
        forbidden=given[units.first],
        progress=what is not None,
        what=what or "",
    )


def _control(
    scores: Scores,
    units: Units,
    images: NDArray[np.int64],
    given: NDArray[np.int64],
    candidates: int,
    seed: int,
) -> Control:
    """Pairs that look matched, among the same images as the mismatched ones."""
    if len(units) > CONTROL:
        units = units.take(np.sort(np.random.default_rng(seed).choice(len(units), CONTROL, replace=False)))
    if not len(units):
        return Control(own=np.empty(0), others=np.empty((0, 0)))
    others = _nearest(scores, units, images, given, candidates, None).scores
    full = np.isfinite(others).all(axis=1)  # one less where the given image has room too, if images are that few
    return Control(own=UnitScores(scores, units).own(given)[full], others=others[full])


def _learned(control: Control, found: Candidates) -> tuple[float, float]:
    """Temperature, and the share of captions whose right image is among the candidates."""
    full = np.isfinite(found.scores).all(axis=1)
    share = float(control.present(found.scores[full]).mean()) if full.any() else 0.5
    return control.temperature(), share


def _transported(
    nothing: Rematched, units: Units, found: Candidates, room: NDArray[np.float64], reg: float, share: float
) -> Rematched:
    """The plan, and what it says about each row."""
    weights = units.sum(1.0 - nothing.match_probability)
    place, image, score = found.cells
    sure = sure_mass(place, image, weights=weights, capacities=room, enough=share * weights.sum() / _MOST)
    mass = min(share * float(weights.sum()), _MOST * sure)
    if mass <= 0:
        return nothing
    plan = sparse_transport(place, image, -score, weights=weights, capacities=room, mass=mass, reg=reg)
    carried = np.zeros(found.images.shape)
    carried[found.images >= 0] = plan.cell_mass
    order = np.argsort(-carried, axis=1, kind="stable")[:, :SUGGESTED]
    suggested, confidence = nothing.suggested.copy(), nothing.confidence.copy()
    suggested[units.rows, : order.shape[1]] = np.take_along_axis(found.images, order, axis=1)[units.unit_of]
    confidence[units.rows] = plan.confidence[units.unit_of]
    return replace(nothing, suggested=suggested, confidence=confidence, plan=plan, reg=reg, share=share)


def _check(
    scores: Scores,
    pairs: Pairs,
    thresholds: Mapping[str, float],
    capacity: int | None,
    candidates: int,
    share: float | None,
    reg: float | None,
) -> None:
    for name, value in thresholds.items():
        if not 0 <= value <= 1:
            raise InputError(f"rematch: {name}={value}; give a probability between 0 and 1")
    if (scores.n_images, scores.n_captions) != (pairs.n_images, len(pairs)):
        raise InputError(
            f"rematch: scores of {scores.n_images} images × {scores.n_captions} captions for {pairs.source} with "
            f"{pairs.n_images} images and {len(pairs)} captions; score exactly these pairs"
        )
    if capacity is not None and capacity < 1:
        raise InputError(f"rematch: capacity={capacity}; an image has room for at least one caption")
    if candidates < 1:
        raise InputError(f"rematch: candidates={candidates}; give at least one, such as 64")
    if share is not None and not 0 < share <= 1:
        raise InputError(f"rematch: share={share}; give a number above 0 and at most 1")
    if reg is not None and not 0 < reg < np.inf:
        raise InputError(f"rematch: reg={reg}; give a positive number, such as 0.05")


def _checked_probability(match_probability: NDArray[np.floating], rows: int) -> NDArray[np.float64]:
    probability = np.asarray(match_probability, dtype=np.float64)
    if probability.shape != (rows,):
        raise InputError(f"rematch: match probabilities of shape {probability.shape} for {rows} pairs; give one a pair")
    wrong = np.flatnonzero(~((probability >= 0) & (probability <= 1)))  # NaN fails both
    if len(wrong):
        row = int(wrong[0])
        raise InputError(f"rematch: match probability of row {row + 1} is {probability[row]}; give one between 0 and 1")
    return probability
