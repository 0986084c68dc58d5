"""Training computes what it computed when the curves were recorded: a refactor changes no loss.

Curves are recorded by `benchmarks/golden_curves.py`, on one machine. On another one, sums in another order differ in
the last digits, and that grows from step to step; over these few steps it stays far below the tolerance.
"""

import json
from pathlib import Path

import pytest

CURVES = json.loads(Path(__file__).with_name("golden_curves.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden(script):
    """The module `golden_curves.py`."""
    return script("benchmarks/golden_curves.py")


def test_what_is_recorded_is_what_is_asked(golden):
    assert set(CURVES) == set(golden.golden_configs())
    assert len(CURVES) == 8


@pytest.mark.parametrize("name", sorted(CURVES))
def test_losses_are_as_recorded(golden, name, tmp_path, monkeypatch):
    monkeypatch.setenv("L2RM_CACHE", str(tmp_path))
    found = golden.curve(golden.golden_configs()[name])
    for epoch, (now, then) in enumerate(zip(found, CURVES[name], strict=True), 1):
        assert now["losses"].keys() == then["losses"].keys()
        for loss, value in then["losses"].items():
            assert now["losses"][loss] == pytest.approx(value, abs=1e-4, rel=1e-4), f"{loss} of epoch {epoch}"
        assert now["matched"] == then["matched"], f"epoch {epoch}"


def test_the_curves_are_told_apart():
    """Else they would guard nothing: no two settings of one similarity come to the same losses."""
    for similarity in ("cosine", "sgr"):
        ends = [tuple(CURVES[name][-1]["losses"].values()) for name in CURVES if name.startswith(similarity)]
        assert len({tuple(round(value, 3) for value in end) for end in ends}) == 4
