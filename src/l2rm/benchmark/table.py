"""The rows of a benchmark as tables in Markdown."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from l2rm.benchmark.grid import Grid, percent
from l2rm.files import written_whole

Row = dict[str, Any]
TWO_NETWORKS = ("ncr", "in2r")
NOTE = """Each cell: mean ± standard deviation over seeds (in brackets how many, where some are missing). rSum is the
sum of R@1, R@5, R@10 both ways, 0 to 600. Models are chosen on dev; test is ranked once."""
NETWORKS_NOTE = """{} two networks and answer by the mean of both, with twice the training time: compare
with ensembles of two seeds of another method (`l2rm evaluate RUN RUN --data DATA`)."""


def write_table(path: Path, grid: Grid, rows: Sequence[Row], facts: dict[str, str]) -> None:
    """Write `table.md`, whole or not at all; see `markdown`."""
    with written_whole(path) as beside:
        beside.write_text(markdown(grid, rows, facts), encoding="utf-8")


def markdown(grid: Grid, rows: Sequence[Row], facts: dict[str, str]) -> str:
    """Tables of test rSum, of the gap closed, of detection, ratio and rematching, for each similarity and level.

    Args:
        grid: gives the order of methods; ratios ascend, in whatever order they were trained.
        rows: of `results.jsonl`.
        facts: where the numbers come from, for the first lines.
    """
    parts = [f"# {grid.name}", "\n".join(f"- {name}: {value}" for name, value in facts.items()), NOTE]
    if of_two := [method for method in TWO_NETWORKS if any(row["method"] == method for row in rows)]:
        parts.append(NETWORKS_NOTE.format("Runs of " + " and ".join(f"`{name}`" for name in of_two) + " train"))
    for similarity in grid.similarities:
        for level in grid.levels:
            of_level = [r for r in rows if r["similarity"] == similarity and r["level"] in (level, "none")]
            if of_level:
                parts += [f"## {similarity}, {level} level", *_tables(grid, of_level)]
    return "\n\n".join(parts) + "\n"


def gap_closed(value: float, plain: float, oracle: float) -> float | None:
    """The share of what mismatches cost `plain`, against `oracle`, that is regained; None where they cost nothing.

    Example:
        >>> gap_closed(186.0, 148.0, 207.0)
        0.6440677966101694
    """
    return (value - plain) / (oracle - plain) if oracle > plain else None


def mean_rsum(rows: Sequence[Row], method: str, ratio: float) -> float | None:
    """Mean test rSum over seeds; None where there is no run."""
    values = [row["test"]["rsum"] for row in rows if (row["method"], row["ratio"]) == (method, ratio)]
    return statistics.fmean(values) if values else None


def _tables(grid: Grid, rows: Sequence[Row]) -> list[str]:
    seeds = len(grid.seeds)

    def table(title: str, value: Callable[[Row], float | None], digits: int, signed: bool = False) -> str | None:
        cells: dict[tuple[str, float], list[float]] = defaultdict(list)
        for row in rows:
            if (found := value(row)) is not None:
                cells[row["method"], row["ratio"]].append(found)
        if not cells:
            return None
        return _grid_table(grid, title, {key: _told(values, seeds, digits, signed) for key, values in cells.items()})

    found = [
        table("test rSum", lambda row: row["test"]["rsum"], 1),
        _gaps(grid, rows),
        table("dev rSum", lambda row: row["dev"]["rsum"], 1),
        table("detection, AUROC", lambda row: row["detection"] and row["detection"]["auroc"], 3),
        table("detection, F1", lambda row: row["detection"] and row["detection"]["f1"], 3),
        table("estimated ratio less the true one, points", _points, 1, signed=True),
        table("true partner first, %", lambda row: row["rematch"] and 100 * row["rematch"]["hit1"], 1),
        table("true partner in the first ten, %", lambda row: row["rematch"] and 100 * row["rematch"]["hit10"], 1),
        table("seconds", lambda row: row["seconds"], 0),
    ]
    return [one for one in found if one is not None]


def _gaps(grid: Grid, rows: Sequence[Row]) -> str | None:
    cells = {}
    for method in grid.methods:
        for ratio in sorted(grid.ratios):
            means = [mean_rsum(rows, name, ratio) for name in (method, "plain", "oracle")]
            if ratio and method not in ("plain", "oracle") and None not in means:
                gap = gap_closed(*means)  # type: ignore[arg-type]
                cells[method, ratio] = "–" if gap is None else f"{100 * gap:.0f} %"
    return _grid_table(grid, "gap from plain to oracle closed, by mean test rSum", cells) if cells else None


def _points(row: Row) -> float | None:
    estimated = row["estimated_ratio"]
    return None if estimated is None else 100 * (estimated - row["ratio"])


def _told(values: list[float], seeds: int, digits: int, signed: bool) -> str:
    sign = "+" if signed else ""
    text = f"{statistics.fmean(values):{sign}.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text if len(values) == seeds else f"{text} ({len(values)})"


def _grid_table(grid: Grid, title: str, cells: dict[tuple[str, float], str]) -> str:
    """Methods down, ratios across; methods and ratios without any cell are left out."""
    ratios = [ratio for ratio in sorted(grid.ratios) if any(key[1] == ratio for key in cells)]
    lines = [f"| {title} | " + " | ".join(f"{percent(ratio)} %" for ratio in ratios) + " |"]
    lines.append("|---|" + "---|" * len(ratios))
    for method in grid.methods:
        if any(key[0] == method for key in cells):
            told = [cells.get((method, ratio), "") for ratio in ratios]
            lines.append(f"| {method} | " + " | ".join(told) + " |")
    return "\n".join(lines)
