"""The pictures of a benchmark: recall over the mismatch ratio, detection, reliability, and what was rematched."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2rm.benchmark.grid import Grid, percent
from l2rm.files import written_whole

Row = dict[str, Any]
INK, QUIET, LINE = "#1f2328", "#59636e", "#d1d9e0"
COLOURS = ("#0969da", "#cf222e", "#1a7f37", "#8250df", "#bc4c00", "#6e7781", "#0a7c86", "#bf3989", "#9a6700")
MARKERS = "osD^vPX*h"
SIZE = (7.2, 4.6)
BINS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What one run found out about its training pairs, beside the truth.

    Attributes:
        method: its name.
        match_probability: `(rows,)`; None for methods that find out none.
        is_mismatched: `(rows,)` the truth.
        alike: for each way in which an image was chosen for truly mismatched captions, how alike those captions and the
            image's own are, in [0, 1]; see `l2rm.benchmark.alike`.
    """

    method: str
    match_probability: NDArray[np.float64] | None
    is_mismatched: NDArray[np.bool_]
    alike: dict[str, NDArray[np.float64]]


def plot_recall(path: Path, grid: Grid, rows: Sequence[Row], *, title: str, provenance: str) -> None:
    """Test rSum over the mismatch ratio, mean and deviation over seeds, a line a method. `rows`: of one level."""
    with _axes(path, title, provenance) as axes:
        for number, method in enumerate(grid.methods):
            points = []
            for ratio in sorted(grid.ratios):
                values = [row["test"]["rsum"] for row in rows if (row["method"], row["ratio"]) == (method, ratio)]
                if values:
                    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                    points.append((100 * ratio, statistics.fmean(values), deviation))
            if points:
                x, y, error = zip(*points, strict=True)
                dashed = "--" if method in ("plain", "oracle") else "-"
                style = {"color": _colour(number), "marker": MARKERS[number % len(MARKERS)], "linestyle": dashed}
                axes.errorbar(x, y, error, label=method, capsize=3, linewidth=1.6, markersize=5, **style)
        axes.set_xlabel("mismatched training pairs, %")
        axes.set_ylabel("test rSum (0 to 600)")
        axes.set_xticks(
            [100 * ratio for ratio in sorted(grid.ratios)], [percent(ratio) for ratio in sorted(grid.ratios)]
        )


def plot_detection(path: Path, grid: Grid, found: Sequence[Found], *, title: str, provenance: str) -> None:
    """ROC of mismatch detection: mismatched pairs found over matched pairs suspected; a line a run."""
    with _axes(path, title, provenance) as axes:
        axes.plot([0, 100], [0, 100], color=LINE, linewidth=1)
        for one, colour, label in _lines(grid, found):
            assert one.match_probability is not None
            false, true = roc(one.match_probability, one.is_mismatched)
            axes.plot(100 * false, 100 * true, color=colour, linewidth=1.6, label=label)
        axes.set_xlabel("matched pairs wrongly suspected, %")
        axes.set_ylabel("mismatched pairs found, %")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)


def plot_reliability(path: Path, grid: Grid, found: Sequence[Found], *, title: str, provenance: str) -> None:
    """Of the pairs with some match probability, how many are matched; on the diagonal, probabilities are right."""
    with _axes(path, title, provenance) as axes:
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for one, colour, label in _lines(grid, found):
            assert one.match_probability is not None
            said, true, count = reliability(one.match_probability, one.is_mismatched)
            error = calibration_error(one.match_probability, one.is_mismatched)
            axes.plot(said, true, color=colour, linewidth=1.2, label=f"{label} (ECE {error:.3f})")
            axes.scatter(said, true, s=8 + 120 * count / count.sum(), color=colour, alpha=0.7)
        axes.set_xlabel("match probability (mean of a tenth; a dot's area: how many pairs)")
        axes.set_ylabel("share truly matched")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)


def plot_rematched(path: Path, found: Sequence[Found], *, title: str, provenance: str) -> None:
    """How alike truly mismatched captions and the captions of the image chosen for them are, by who chose it."""
    with _axes(path, title, provenance, legend=False) as axes:
        names, values = [], []
        for one in found:
            for way, alike in one.alike.items():
                name = way if way in ("given", "true partner") else f"{one.method}: {way}"
                if name not in names and len(alike):
                    names.append(name)
                    values.append(alike)
        order = np.argsort([value.mean() for value in values], kind="stable")
        places = np.arange(len(names))
        means = np.array([values[index].mean() for index in order])
        axes.barh(places, means, color=COLOURS[0], height=0.6)
        for place, index in enumerate(order):
            axes.text(means[place], place, f" {means[place]:.3f} (n = {len(values[index])})", va="center", color=INK)
        axes.set_yticks(places, [names[index] for index in order])
        axes.set_xlim(0, 1.4 * means.max())
        axes.set_xlabel("mismatched captions and their image's own captions:\nmean TF-IDF cosine")


def roc(
    match_probability: NDArray[np.float64], is_mismatched: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(false, true) shares of matched and mismatched pairs below each threshold, from (0, 0) to (1, 1).

    Pairs of one probability are suspected together.

    Example:
        >>> false, true = roc(np.array([0.1, 0.9, 0.9]), np.array([True, False, True]))
        >>> false.tolist(), true.tolist()
        ([0.0, 0.0, 1.0], [0.0, 0.5, 1.0])
    """
    order = np.argsort(match_probability, kind="stable")
    ordered, wrong = match_probability[order], is_mismatched[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    true = np.cumsum(wrong)[last] / max(1, wrong.sum())
    false = np.cumsum(~wrong)[last] / max(1, (~wrong).sum())
    return np.insert(false, 0, 0.0), np.insert(true, 0, 0.0)


def reliability(
    match_probability: NDArray[np.float64], is_mismatched: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean probability, share truly matched and number of pairs of each tenth of [0, 1] that has any.

    Example:
        >>> said, true, count = reliability(np.array([0.02, 0.04, 0.95]), np.array([True, False, False]))
        >>> said.round(2).tolist(), true.tolist(), count.tolist()
        ([0.03, 0.95], [0.5, 1.0], [2, 1])
    """
    tenth = np.clip((match_probability * BINS).astype(np.int64), 0, BINS - 1)
    count = np.bincount(tenth, minlength=BINS)
    there = count > 0
    said = np.bincount(tenth, match_probability, BINS)[there] / count[there]
    true = np.bincount(tenth, ~is_mismatched, BINS)[there] / count[there]
    return said, true, count[there]


def calibration_error(match_probability: NDArray[np.float64], is_mismatched: NDArray[np.bool_]) -> float:
    """Expected calibration error: the mean over pairs of |probability − share truly matched| of their tenth."""
    said, true, count = reliability(match_probability, is_mismatched)
    return float((np.abs(said - true) * count).sum() / count.sum())


def _lines(grid: Grid, found: Sequence[Found]) -> Iterator[tuple[Found, str, str]]:
    """Runs with match probabilities, each with the colour that its method has in all plots."""
    for one in found:
        if one.match_probability is not None:
            yield one, _colour(grid.methods.index(one.method)), one.method


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


@contextmanager
def _axes(path: Path, title: str, provenance: str, *, legend: bool = True) -> Iterator[Any]:
    """Axes to draw on; written to `path` as a PNG when the block ends."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 10.0}):
        figure = Figure(figsize=SIZE, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.set_title(title, color=INK, loc="left", fontsize=11)
        yield axes
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        if legend and axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        figure.supxlabel(provenance, fontsize=7, color=QUIET)
        with written_whole(path) as beside:
            figure.savefig(beside)
