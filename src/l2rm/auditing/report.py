"""The audit as one HTML page: no script, no network, every text escaped, every picture inside."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from scipy.interpolate import PchipInterpolator

from l2rm.auditing.advice import rematch_advice
from l2rm.auditing.flagged import flag_sections
from l2rm.auditing.pictures import Density, histogram, thumbnail
from l2rm.evaluation.metrics import Metrics
from l2rm.rematching.ranks import RankMixture

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit, MetricsByMethod

CARDS = 24
LONGEST_CAPTION = 280
WIDE, NARROW = (9.6, 3.5), (4.7, 3.6)  # inches: the histogram for a screen and for a phone


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as the report shows it: its name, and pixels where there are any."""

    name: str
    uri: str | None
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Card:
    """One suspicious pair and its suggested partner."""

    caption: str
    pair_id: str
    probability: float
    given: Picture
    suggested: Picture
    better_caption: str | None
    confidence: float
    decision: str
    truth: str | None  # "right", "wrong", "matched" (a false alarm), or None where it is not known
    true_name: str


def render_report(
    audit: "Audit", *, metrics: "MetricsByMethod | None" = None, credits: str = "", folder: str = "audit"
) -> str:
    """The whole page as text; see `Audit.to_html`. `folder` is where the audit is, for the commands that come next."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    template = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        shown="ranks" if audit.p_values is not None else "losses" if audit.by_losses else "probabilities",
        judge=audit.judge,
        ratio=audit.mismatch_ratio,
        flags=flag_sections(audit),
        left_out=audit.pairs.left_out,
        folder=shlex.quote(folder),
        data=shlex.quote(audit.pairs.source),
        source=audit.pairs.source,
        counts=_counts(audit),
        histograms=_histograms(audit),
        calibrated=audit.calibrated,
        degenerate=audit.mixture.degenerate,
        truth_known=audit.pairs.true_image_of is not None,
        cards=worst_pairs(audit),
        metrics=_metrics_rows(metrics or {}),
        detection=audit.detection,
        hits=audit.rematch_hits,
        credits=credits,
        keep_threshold=audit.keep_threshold,
        rematch_threshold=audit.rematch_threshold,
        advice=rematch_advice(audit),
    )


def percent(share: float) -> str:
    """A share as a percentage that never rounds something to nothing, or part to all.

    Example:
        >>> percent(0.0004), percent(0.28), percent(0.9996), percent(1.0)
        ('< 1 %', '28 %', '> 99 %', '100 %')
    """
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"


def worst_pairs(audit: "Audit", limit: int = CARDS) -> list[Card]:
    """The pairs least likely to match, at most one a given image, so that one bad image does not fill the page.

    Where pixels can be read at all, only pairs whose given image has them are shown.
    """
    order = np.lexsort((-audit.losses, audit.match_probability))
    _, first = np.unique(audit.pairs.image_of[order], return_index=True)
    rows = order[np.sort(first)]
    rows = rows[audit.is_mismatched[rows]]
    thumbnails: dict[int, str | None] = {}

    def picture_uri(image: int) -> str | None:
        if image not in thumbnails:
            thumbnails[image] = thumbnail(audit.pairs.image_path(image))
        return thumbnails[image]

    if audit.pairs.image_root is not None:
        shown: list[int] = []
        for row in rows[: 10 * limit]:  # a folder of unreadable files is not worth a long search
            if picture_uri(int(audit.pairs.image_of[row])) is not None:
                shown.append(int(row))
            if len(shown) == limit:
                break
        rows = np.array(shown, dtype=np.int64) if shown else rows
    rows = rows[:limit]
    suggestions = audit.candidates[rows, 0]
    captions = _captions_by_image(audit, set(suggestions.tolist()))
    decision = audit.decision
    return [
        _card(audit, int(row), str(decision[row]), picture_uri, captions.get(int(suggestion), ()))
        for row, suggestion in zip(rows, suggestions, strict=True)
    ]


def _card(audit: "Audit", row: int, decision: str, picture_uri: Any, captions: tuple[str, ...]) -> Card:
    pairs = audit.pairs
    given, suggested = int(pairs.image_of[row]), int(audit.candidates[row, 0])
    better = int(audit.rematch_row[row])
    truth, true_name = None, ""
    if pairs.true_image_of is not None:
        true_image = int(pairs.true_image_of[row])
        true_name = pairs.images[true_image] if true_image >= 0 else ""
        truth = "matched" if true_image == given else "right" if true_image == suggested else "wrong"
    return Card(
        caption=_shortened(pairs.captions[row]),
        pair_id=pairs.pair_ids[row],
        probability=float(audit.match_probability[row]),
        given=Picture(name=pairs.images[given], uri=picture_uri(given)),
        suggested=Picture(name=pairs.images[suggested], uri=picture_uri(suggested), captions=captions),
        better_caption=None if better < 0 else _shortened(pairs.captions[better], LONGEST_CAPTION // 2),
        confidence=float(audit.rematch_confidence[row]),
        decision=decision,
        truth=truth,
        true_name=true_name,
    )


def _captions_by_image(audit: "Audit", images: set[int], limit: int = 2) -> dict[int, tuple[str, ...]]:
    """The captions that some images are given, likeliest first."""
    found: dict[int, list[int]] = {image: [] for image in images}
    for row in np.flatnonzero(np.isin(audit.pairs.image_of, list(images))):
        found[int(audit.pairs.image_of[row])].append(int(row))
    return {
        image: tuple(
            _shortened(audit.pairs.captions[row], LONGEST_CAPTION // 2)
            for row in sorted(rows, key=lambda row: -float(audit.match_probability[row]))[:limit]
        )
        for image, rows in found.items()
    }


def _shortened(text: str, longest: int = LONGEST_CAPTION) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _counts(audit: "Audit") -> dict[str, int]:
    decision = audit.decision
    truth = audit.pairs.is_mismatched
    return {
        "pairs": len(audit.pairs),
        "images": audit.pairs.n_images,
        "mismatched": int(audit.is_mismatched.sum()),
        "rematch": int((decision == "rematch").sum()),
        "drop": int((decision == "drop").sum()),
        "truly": -1 if truth is None else int(truth.sum()),
    }


def _histograms(audit: "Audit") -> dict[str, Markup]:
    """What the verdict was read off: ranks, losses, or probabilities where losses say nothing, as of pairs learned.

    The SVG comes from Matplotlib with our own labels only, so it is safe to leave unescaped.
    """

    def density(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = audit.mixture.density(torch.from_numpy(values)).numpy()
        return found

    settings: dict[str, Any] = {"truth": audit.pairs.is_mismatched, "density": density}
    if audit.p_values is not None and audit.rank_mixture is not None:
        values, settings["density"] = _ranks_by_powers(audit.p_values, audit.rank_mixture)
        labels = "share of other images that fit the caption at least as well", "share of images that fit as well"
        settings |= {"limits": (float(values.min()), 0.0), "powers": True}
    elif audit.by_losses:
        values, labels = (
            audit.losses,
            ("loss of a pair (mean hinge against other images and captions)", "loss of a pair"),
        )
        settings |= {"density": None if audit.mixture.degenerate else density}
    else:
        values, labels = audit.match_probability, ("match probability of a pair",) * 2
        settings |= {"density": None, "limits": (0.0, 1.0), "mark": audit.keep_threshold}
    return {
        name: Markup(histogram(values, label=label, size=size, **settings))
        for (name, size), label in zip((("wide", WIDE), ("narrow", NARROW)), labels, strict=True)
    }


def _ranks_by_powers(p_values: np.ndarray, mixture: RankMixture) -> tuple[np.ndarray, Density]:
    """Logarithms of p-values, and the mixture's density of these.

    A p-value stands for a step, as images are counted; it is drawn somewhere in its step, so that no gaps show. The
    density of the matched pairs falls in steps, which would be teeth on this scale: the curve is a smooth one that
    holds as many pairs between two steps.
    """
    step = 2 * float(p_values.min())
    spread = p_values + (np.random.default_rng(0).random(len(p_values)) - 0.5) * step
    logs: np.ndarray = np.log10(spread.clip(step / 10, 1))

    matched, chance = mixture.density(torch.from_numpy(mixture.edges)).numpy()
    ends = np.append(10.0 ** logs.min(), (mixture.edges + step / 2).clip(max=1))
    ends, first = np.unique(ends, return_index=True)
    held = np.append(0.0, np.cumsum(matched * np.diff(mixture.edges, prepend=0.0)))[first]
    cumulated = PchipInterpolator(np.log10(ends), held)

    def density(values: np.ndarray) -> np.ndarray:
        return np.stack([cumulated(values, 1), chance[0] * 10.0**values * np.log(10)])

    return logs, density


def _metrics_rows(metrics: "MetricsByMethod") -> list[dict[str, Any]]:
    rows = []
    for method, found in metrics.items():
        plain: Mapping[str, Any] = found.to_dict() if isinstance(found, Metrics) else found
        cells = [float(plain[way][name]) for way in ("i2t", "t2i") for name in ("r1", "r5", "r10")]
        rows.append({"method": method, "cells": cells, "rsum": float(plain["rsum"])})
    return rows
