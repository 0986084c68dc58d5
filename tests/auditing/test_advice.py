"""What is said where few suspects have a sure partner."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from l2rm.auditing.advice import rematch_advice
from l2rm.auditing.audit import Audit, audit_scores
from l2rm.data.pairs import Pairs
from l2rm.evaluation.scores import MatrixScores
from l2rm.summaries import audit_summary


def audited(confidences: list[float], *, calibrated: bool = False) -> Audit:
    """An audit of 40 pairs, ten of them suspects of these confidences."""
    S = np.random.default_rng(0).normal(0, 0.2, size=(40, 40))
    S[np.r_[1:10, 0, 10:40], np.arange(40)] += 1
    pairs = Pairs(images=tuple(f"{i}.jpg" for i in range(40)), image_of=np.arange(40), captions=("text",) * 40)
    found = audit_scores(MatrixScores(S), pairs, progress=False)
    assert found.is_mismatched.sum() == 10
    return replace(
        found,
        rematch_confidence=np.array(confidences + [0.99] * 30),  # of pairs that are kept: they do not count
        calibrated=calibrated,
    )


def test_nothing_where_half_of_the_suspects_have_a_partner() -> None:
    assert rematch_advice(audited([0.5] * 5 + [0.1] * 5)) is None


def test_the_highest_threshold_that_helps_is_told() -> None:
    few = [0.7, 0.35, 0.31, 0.3, 0.2, 0.2, 0.1, 0.0, 0.0, 0.0]
    told = "1 of 10 suspects have a partner of confidence 0.5 or more; --rematch-threshold 0.3 rematches 4"
    assert rematch_advice(audited(few)) == told  # 0.4 would rematch no more than 0.5 does
    assert rematch_advice(audited(few, calibrated=True)) == f"{told}, of which about 42 % rightly"  # (0.7 + … ) / 4


def test_no_threshold_helps() -> None:
    advice = rematch_advice(audited([0.05] * 10))
    assert advice is not None
    assert "0 of 10 suspects" in advice
    assert "no threshold of 0.1 or more helps many" in advice


def test_summary_and_report_tell_it(tmp_path: Path) -> None:
    few = audited([0.3] * 10)
    advice = rematch_advice(few)
    assert advice is not None
    assert advice in audit_summary(few)
    assert advice in few.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    many = audited([0.9] * 10)
    assert "suspects have a partner" not in audit_summary(many) + many.to_html(tmp_path / "report.html").read_text()
