"""Partners for all mismatched captions of a data set: candidates, then one sparse transport plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from l2rm.rematching.calibrated import Calibrated, learn_cost
from l2rm.rematching.candidates import Blocks, Candidates, nearest_images
from l2rm.rematching.control import Control
from l2rm.rematching.dataset import SparsePlan, sparse_transport, sure_mass
from l2rm.rematching.together import Units, UnitScores

Level = Literal["image", "caption"]
Cost = Literal["linear", "equivariant"]
Nearest = Callable[[Units, NDArray[np.int64], int], Candidates]
"""Units, the images that they may be given and how many -> their best ones, the given image left out."""

CONTROL = 4000
"""Matched pairs (or units) that serve as a control group, at most."""
SUGGESTED = 10
_REG_WITHOUT_CONTROL = 0.05
_MOST = 0.98  # share of the mass that surely fits which is asked for at most; at the limit duals run away


@dataclass(frozen=True, kw_only=True, eq=False)
class Partners:
    """An image for each mismatched caption that the data set has room for.

    Attributes:
        suggested: `(rows, 10)`; images for each mismatched caption by the mass that the plan gives them, most first;
            −1 where there is none, and for captions that look matched.
        confidence: `(rows,)` in [0, 1]; share of the caption's weight that the first of them takes. 0 without one.
        plan: the transport of captions (or of those that go together) to images; None where nothing was to be moved.
        reg: the temperature of the plan, in the unit of the scores.
        share: how much of the mismatched captions' weight the plan was to move.
    """

    suggested: NDArray[np.int64]
    confidence: NDArray[np.float64]
    plan: SparsePlan | None
    reg: float
    share: float


def find_partners(
    scores: Blocks,
    image_of: NDArray[np.int64],
    match_probability: NDArray[np.floating],
    *,
    below: float = 0.5,
    capacity: int | None = None,
    level: Level = "caption",
    candidates: int = 64,
    share: float | None = None,
    reg: float | None = None,
    cost: Cost = "linear",
    tau: float = 0.05,
    seed: int = 0,
    progress: bool = False,
    nearest: Nearest | None = None,
) -> Partners:
    """Give each mismatched caption an image, all of them at once, by sparse partial optimal transport.

    A caption is taken as mismatched where its match probability p is below `below`. It has weight 1 − p. An image has
    room for `capacity` captions, less the match probabilities of all captions that it is given: what it is rightly
    given already takes its place. Candidates are the best-scoring images with room, never the given one.

    What is not given is learned from the pairs that look matched (`l2rm.rematching.control`): `reg`, by temperature
    scaling, so that a plan's shares read as probabilities; and `share`, the mean probability that a caption's right
    image is among its candidates, beforehand 1 in 2. With fewer than 20 such pairs they are 0.05 and 0.5.

    Args:
        scores: similarities, images × captions.
        image_of: `(rows,)`; the image that each caption is given.
        match_probability: `(rows,)` in [0, 1].
        below: which captions are taken as mismatched.
        capacity: captions an image has room for; None for as many as each is given now.
        level: "image" where captions that are given one image went astray together, if they did: they are rematched
            as one, by their mean score. "caption": each by itself.
        candidates: images a caption (or those that go together) may choose from.
        share: how much of the mismatched captions' weight to move, in (0, 1].
        reg: temperature of the plan, in the unit of the scores.
        cost: "linear": what is transported costs less the higher its score. "equivariant": the higher its log-odds of
            matching, by a cost that the pairs that look matched teach (`l2rm.rematching.calibrated`); `reg` is then in
            units of log-odds. Candidates are the best-scoring images all the same.
        tau: temperature of the similarities, for the equivariant cost.
        seed: draws the control group where it is larger than 4,000, and what the equivariant cost learns from.
        progress: tell on standard error how far it is.
        nearest: finds the candidates of units (many machines may); None for `nearest_images` here.

    Raises:
        InputError: a score is NaN.

    Example:
        >>> from l2rm.rematching.candidates import EmbeddingScores
        >>> found = find_partners(EmbeddingScores(np.eye(3), np.eye(3)), np.array([1, 0, 2]), np.array([0.0, 0.0, 1.0]))
        >>> found.suggested[:, 0].tolist()
        [0, 1, -1]
    """
    probability = np.asarray(match_probability, dtype=np.float64)
    n_images = scores.n_images
    counts = np.bincount(image_of, minlength=n_images) if capacity is None else capacity
    room = np.maximum(counts - np.bincount(image_of, probability, n_images), 0.0)
    room[room < 1e-6] = 0.0
    rows = np.flatnonzero(probability < below)
    nothing = Partners(
        suggested=np.full((len(image_of), SUGGESTED), -1),
        confidence=np.zeros(len(image_of)),
        plan=None,
        reg=reg or _REG_WITHOUT_CONTROL,
        share=share or 0.5,
    )
    images = np.flatnonzero(room > 0)
    if not len(rows) or not len(images):
        return nothing
    units = _units(rows, image_of, level)
    if nearest is None:
        found = _nearest(scores, units, images, image_of, candidates, "finding candidates" if progress else None)
    else:
        found = nearest(units, images, candidates)
    if reg is None or share is None or cost == "equivariant":
        units_of_control = _control_units(np.flatnonzero(probability >= below), image_of, level, seed)
        if cost == "equivariant":
            found, control = _calibrated(
                scores, units, found, units_of_control, image_of, images, candidates, tau, seed
            )
        else:
            control = _control(scores, units_of_control, images, image_of, candidates)
        learned = _learned(control, found) if control.is_enough else (_REG_WITHOUT_CONTROL, 0.5)
        reg, share = reg or learned[0], share or learned[1]
    return _transported(replace(nothing, reg=reg, share=share), units, units.sum(1.0 - probability), found, room)


def _units(rows: NDArray[np.int64], given: NDArray[np.int64], level: Level) -> Units:
    return Units.by_image(rows, given) if level == "image" else Units.single(rows)


def _nearest(
    scores: Blocks,
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


def _control_units(matched: NDArray[np.int64], given: NDArray[np.int64], level: Level, seed: int) -> Units:
    """Pairs that look matched, or some of them."""
    units = _units(matched, given, level)
    if len(units) <= CONTROL:
        return units
    return units.take(np.sort(np.random.default_rng(seed).choice(len(units), CONTROL, replace=False)))


def _control(
    scores: Blocks, units: Units, images: NDArray[np.int64], given: NDArray[np.int64], candidates: int
) -> Control:
    """Pairs that look matched, among the same images as the mismatched ones."""
    if not len(units):
        return Control(own=np.empty(0), others=np.empty((0, 0)))
    others = _nearest(scores, units, images, given, candidates, None).scores
    full = np.isfinite(others).all(axis=1)  # one less where the given image has room too, if images are that few
    return Control(own=UnitScores(scores, units).own(given)[full], others=others[full])


def _calibrated(
    scores: Blocks,
    suspects: Units,
    found: Candidates,
    units: Units,
    given: NDArray[np.int64],
    images: NDArray[np.int64],
    candidates: int,
    tau: float,
    seed: int,
) -> tuple[Candidates, Control]:
    """Candidates of the suspects, and the control group, by log-odds of a cost that the control group teaches.

    As they are where the control group is too small to teach anything.
    """
    control = _control(scores, units, images, given, candidates)
    if not control.is_enough:
        return found, control
    of_suspects, of_control, own = UnitScores(scores, suspects), UnitScores(scores, units), given[units.first]
    cost = learn_cost(of_control, own, images, tau=tau, seed=seed)
    calibrated = Calibrated.of(cost, of_suspects, images, own, seed=seed)
    nearest = _nearest(scores, units, images, given, candidates, None)
    others = calibrated.candidates(of_control, nearest).scores
    odds = calibrated.log_odds(of_control, of_control.own(given)[:, None], own[:, None])[:, 0]
    full = np.isfinite(others).all(axis=1)
    return calibrated.candidates(of_suspects, found), Control(own=odds[full], others=others[full])


def _learned(control: Control, found: Candidates) -> tuple[float, float]:
    """Temperature, and the share of captions whose right image is among the candidates."""
    full = np.isfinite(found.scores).all(axis=1)
    share = float(control.present(found.scores[full]).mean()) if full.any() else 0.5
    return control.temperature(), share


def _transported(
    nothing: Partners, units: Units, weights: NDArray[np.float64], found: Candidates, room: NDArray[np.float64]
) -> Partners:
    """The plan, and what it says about each row."""
    place, image, score = found.cells
    sure = sure_mass(place, image, weights=weights, capacities=room, enough=nothing.share * weights.sum() / _MOST)
    mass = min(nothing.share * float(weights.sum()), _MOST * sure)
    if mass <= 0:
        return nothing
    plan = sparse_transport(place, image, -score, weights=weights, capacities=room, mass=mass, reg=nothing.reg)
    carried = np.zeros(found.images.shape)
    carried[found.images >= 0] = plan.cell_mass
    order = np.argsort(-carried, axis=1, kind="stable")[:, :SUGGESTED]
    suggested, confidence = nothing.suggested.copy(), nothing.confidence.copy()
    suggested[units.rows, : order.shape[1]] = np.take_along_axis(found.images, order, axis=1)[units.unit_of]
    confidence[units.rows] = plan.confidence[units.unit_of]
    return replace(nothing, suggested=suggested, confidence=confidence, plan=plan)
