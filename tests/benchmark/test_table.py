"""Means, deviations and gaps as one would work them out by hand."""

import pytest

from l2rm.benchmark.grid import Grid
from l2rm.benchmark.table import gap_closed, markdown

GRID = Grid(name="mine", methods=("plain", "oracle", "ncr", "l2rm"), ratios=(0.4, 0.0), seeds=(0, 1))


def row(method, ratio, seed, rsum, **more):
    return {
        "method": method, "similarity": "cosine", "ratio": ratio, "level": "image" if ratio else "none", "seed": seed,
        "dev": {"rsum": rsum + 1}, "test": {"rsum": rsum}, "detection": None, "estimated_ratio": None,
        "rematch": None, "seconds": 60.4, "commit": "abc",
    } | more  # fmt: skip


ROWS = [
    row("plain", 0.0, 0, 240), row("plain", 0.0, 1, 244), row("plain", 0.4, 0, 150), row("plain", 0.4, 1, 154),
    row("oracle", 0.4, 0, 210), row("oracle", 0.4, 1, 214),
    row("l2rm", 0.4, 0, 190, estimated_ratio=0.45, detection={"auroc": 0.9, "f1": 0.7},
        rematch={"hit1": 0.1, "hit10": 0.25}),
    row("l2rm", 0.4, 1, 194, estimated_ratio=0.41, detection={"auroc": 0.94, "f1": 0.7}),
    row("ncr", 0.4, 0, 202),
]  # fmt: skip


def cells(text, title):
    lines = text.split(f"| {title} |")[1].split("\n\n")[0].splitlines()
    return {line.split(" | ")[0].strip("| "): [c.strip(" |") for c in line.split(" | ")[1:]] for line in lines[2:]}


def test_mean_and_deviation_over_seeds_and_what_is_missing():
    found = cells(markdown(GRID, ROWS, {"data": "small"}), "test rSum")
    assert found == {
        "plain": ["242.0 ± 2.8", "152.0 ± 2.8"],
        "oracle": ["", "212.0 ± 2.8"],
        "ncr": ["", "202.0 (1)"],
        "l2rm": ["", "192.0 ± 2.8"],
    }


def test_gaps_detection_ratio_and_rematches():
    text = markdown(GRID, ROWS, {"data": "small"})
    assert cells(text, "gap from plain to oracle closed, by mean test rSum") == {"ncr": ["83 %"], "l2rm": ["67 %"]}
    assert cells(text, "detection, AUROC") == {"l2rm": ["0.920 ± 0.028"]}
    assert cells(text, "estimated ratio less the true one, points") == {"l2rm": ["+3.0 ± 2.8"]}
    assert cells(text, "true partner in the first ten, %") == {"l2rm": ["25.0 (1)"]}
    assert "- data: small" in text
    assert "two networks" in text
    assert "two networks" not in markdown(GRID, ROWS[:-1], {})


def test_no_gap_where_mismatches_cost_nothing():
    assert gap_closed(3, 5, 5) is None
    assert gap_closed(8, 5, 10) == pytest.approx(0.6)
