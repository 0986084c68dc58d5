"""The pictures of a report: thumbnails as data URIs, and the losses as an SVG in the page's colours."""

import base64
import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from l2rm.data.packed import open_file
from l2rm.encoders.pixels import UndecodableImageError, on_white, told_if_broken

THUMBNAIL = 160
# Written into the SVG by Matplotlib, then replaced by the variables of the page's style sheet, so that one picture
# serves light, dark and print.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--quiet)",
    "#030303": "var(--line)",
    "#040404": "var(--matched)",
    "#050505": "var(--mismatched)",
    "#060606": "var(--bar)",
}
INK, QUIET, LINE, MATCHED, MISMATCHED, BAR = _COLOURS

Density = Callable[[np.ndarray], np.ndarray]


def thumbnail(path: Path | None) -> str | None:
    """A picture of at most 160 px a side as a `data:` URI, a few KB; None where there are no pixels to read."""
    if path is None:
        return None
    try:
        with told_if_broken(), warnings.catch_warnings(), open_file(path) as file, Image.open(file) as picture:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
            small = ImageOps.exif_transpose(picture)
            small = small.convert("RGBA") if small.has_transparency_data else on_white(small)
            small.thumbnail((THUMBNAIL, THUMBNAIL))
    except UndecodableImageError:
        return None
    encoded = io.BytesIO()
    small.save(encoded, format="WEBP", quality=80, method=4)
    return "data:image/webp;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")


def histogram(
    values: np.ndarray,
    *,
    label: str,
    truth: np.ndarray | None,
    density: Density | None,
    size: tuple[float, float],
    limits: tuple[float, float] | None = None,
    mark: float | None = None,
    powers: bool = False,
) -> str:
    """An `<svg>` of a histogram with the weighted densities of the matched and mismatched component.

    Args:
        values: `(rows,)` losses, ranks or probabilities.
        label: what they are.
        truth: `(rows,)` bool, truly mismatched; colours the bars where it is known.
        density: `(n,)` values -> `(2, n)` densities of the matched and the mismatched component, each times its weight;
            None leaves the curves out.
        size: inches (72 SVG units each).
        limits: ends of the axis; those of the values by default.
        mark: where to draw an upright line.
        powers: the values are powers of ten, to be read as percentages.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    low, high = limits or (float(values.min()), float(values.max()))
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, int(np.clip(1.5 * np.sqrt(len(values)), 8, 60)) + 1)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": str(size), "font.family": "sans-serif", "font.size": 11.0}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        counts = _bars(axes, values, truth, edges)
        if density is not None:
            grid = np.linspace(low, high, 241)[1:-1]
            matched, mismatched = density(grid) * len(values) * (edges[1] - edges[0])
            axes.plot(grid, matched, color=MATCHED, linewidth=2.4, label="fit: matched")
            axes.plot(
                grid, mismatched, color=MISMATCHED, linewidth=2.4, linestyle=(0, (5, 2.5)), label="fit: mismatched"
            )
        axes.set_ylim(0, 1.12 * max(float(counts.max()), 1.0))  # a Beta density may go to infinity at its ends
        axes.set_xlim(low, high)
        if mark is not None:
            axes.axvline(mark, color=QUIET, linewidth=1.4, linestyle=(0, (2, 3)))
        if powers:
            ticks = range(int(np.ceil(low)), int(np.floor(high)) + 1)
            axes.set_xticks(list(ticks), [f"{100 * 10.0**tick:g} %" for tick in ticks])
        _dress(axes, label)
        file = io.StringIO()
        FigureCanvasSVG(figure).print_svg(file, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))  # type: ignore[no-untyped-call]
    drawn = file.getvalue()
    # Two of these stand on one page: no id twice, and no style of one for everything.
    svg = re.sub(r'<g id="[^"]*"', "<g", drawn[drawn.index("<svg") :]).replace("*{", ".plot *{")
    for written, variable in _COLOURS.items():
        svg = svg.replace(written, variable)
    return svg


def _bars(axes: Any, values: np.ndarray, truth: np.ndarray | None, edges: np.ndarray) -> np.ndarray:
    everything = np.histogram(values, edges)[0]
    kinds = [(everything, BAR, 1.0, "pairs")]
    if truth is not None:
        wrong = np.histogram(values[truth], edges)[0]
        kinds = [(everything - wrong, MATCHED, 0.35, "truly matched"), (wrong, MISMATCHED, 0.45, "truly mismatched")]
    floor = np.zeros(len(everything))
    for counts, colour, alpha, label in kinds:
        axes.bar(
            edges[:-1], counts, width=np.diff(edges), bottom=floor, align="edge", color=colour, alpha=alpha, label=label
        )
        floor = floor + counts
    return everything


def _dress(axes: Any, label: str) -> None:
    axes.set_xlabel(label, color=QUIET)
    axes.set_ylabel("pairs", color=QUIET)
    axes.tick_params(colors=QUIET, length=0)
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(LINE)
    axes.figure.legend(
        *axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, labelcolor=INK
    )
