"""Verdicts, decisions, the table, and files that appear both or not at all."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.auditing import report
from l2rm.auditing.audit import audit_scores
from l2rm.data.pairs import LeftOut
from l2rm.errors import InputError
from l2rm.evaluation.scores import MatrixScores

COLUMNS = [
    "pair_id",
    "image",
    "caption",
    "match_probability",
    "is_mismatched",
    "rematch_image",
    "rematch_caption",
    "rematch_confidence",
    "decision",
    "is_duplicate_caption_issue",
    "duplicate_caption_score",
    "is_uninformative_caption_issue",
    "uninformative_caption_score",
]


def test_mismatched_pairs_are_found_and_rematched(case) -> None:  # type: ignore[no-untyped-def]
    audit = case.audit
    assert audit.detection.auroc > 0.97
    assert audit.detection.f1 > 0.75
    assert audit.rematch_hits.hit1 > 0.8
    assert audit.rematch_hits.captions == int(case.pairs.is_mismatched.sum()) == 36
    right = audit.candidates[:, 0] == case.pairs.true_image_of
    wrong = case.pairs.is_mismatched & ~right
    confidence = audit.rematch_confidence
    assert confidence[case.pairs.is_mismatched & right].mean() > confidence[wrong].mean()


def test_confidence_is_the_probability_of_the_suggested_pair(case) -> None:  # type: ignore[no-untyped-def]
    audit, pairs = case.audit, case.pairs
    S = case.scores.block(np.arange(pairs.n_images), np.arange(len(pairs))).numpy().astype(np.float64)
    for row in (0, 7, 50):
        image = int(audit.candidates[row, 0])
        away = ~np.isin(pairs.image_of, [image, pairs.image_of[row]])
        others = np.arange(pairs.n_images) != image
        own = S[image, row]
        loss = np.maximum(0, 0.2 + S[image, away] - own).mean() + np.maximum(0, 0.2 + S[others, row] - own).mean()
        expected = float(audit.mixture.match_probability(torch.tensor([loss]))[0])
        assert audit.rematch_confidence[row] == pytest.approx(expected, abs=1e-4)


def test_table_has_the_contract_columns_and_rules(case) -> None:  # type: ignore[no-untyped-def]
    table, pairs = case.audit.table, case.pairs
    assert table.column_names == COLUMNS
    assert table.num_rows == len(pairs)
    for row in table.to_pylist():
        index = int(row["pair_id"])
        assert (row["image"], row["caption"]) == (pairs.images[pairs.image_of[index]], pairs.captions[index])
        assert row["is_mismatched"] == (row["match_probability"] < 0.5)
        expected = (
            "keep" if row["match_probability"] >= 0.5 else "rematch" if row["rematch_confidence"] >= 0.5 else "drop"
        )
        assert row["decision"] == expected
        assert row["rematch_image"] != row["image"]
        assert row["rematch_caption"] not in {
            pairs.captions[j] for j in np.flatnonzero(pairs.image_of == pairs.image_of[index])
        }


def test_truth_changes_nothing_but_the_measures(fitted) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    blind = audit_scores(fitted.scores, replace(fitted.pairs, true_image_of=None), progress=False)
    assert blind.table.equals(fitted.audit.table)
    assert blind.detection is None
    assert blind.rematch_hits is None


def test_thresholds_decide(fitted) -> None:  # type: ignore[no-untyped-def]
    strict = audit_scores(fitted.scores, fitted.pairs, keep_threshold=1.0, rematch_threshold=1.0, progress=False)
    lenient = audit_scores(fitted.scores, fitted.pairs, keep_threshold=0.0, progress=False)
    assert set(strict.decision) <= {"drop", "keep", "rematch"}
    assert (strict.decision == "drop").sum() > (fitted.audit.decision == "drop").sum()
    assert set(lenient.decision) == {"keep"}


def test_given_probabilities_replace_those_of_the_mixture(fitted) -> None:  # type: ignore[no-untyped-def]
    averaged = np.where(np.arange(len(fitted.pairs)) % 3 == 0, 0.1, 0.9)
    audit = audit_scores(fitted.scores, fitted.pairs, match_probability=averaged, progress=False)
    np.testing.assert_array_equal(audit.match_probability, averaged)
    np.testing.assert_array_equal(audit.rematch_confidence, fitted.audit.rematch_confidence)
    assert (audit.is_mismatched == (averaged < 0.5)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"match_probability": np.full(120, np.nan)}, "row 1 is nan"),
        ({"match_probability": np.full(119, 0.5)}, "for 120 pairs"),
        ({"match_probability": np.full(120, 1.5)}, "between 0 and 1"),
        ({"keep_threshold": 1.2}, "keep_threshold=1.2"),
        ({"rematch_threshold": float("nan")}, "rematch_threshold=nan"),
        ({"scores": MatrixScores(np.zeros((3, 5)))}, "3 images × 5 captions for pictures.csv"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(case, settings, message: str) -> None:  # type: ignore[no-untyped-def]
    scores = settings.pop("scores", case.scores)
    with pytest.raises(InputError, match=message) as raised:
        audit_scores(scores, case.pairs, progress=False, **settings)
    assert "\n" not in str(raised.value)


def test_both_files_are_written_and_others_stay(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "notes.txt").write_text("mine")
    case.audit.write(tmp_path)
    case.audit.write(tmp_path)  # over the old ones
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "audit.json",
        "audit.parquet",
        "notes.txt",
        "report.html",
    ]
    assert pq.read_table(tmp_path / "audit.parquet").equals(case.audit.table)


def test_neither_file_is_left_when_the_report_fails(
    case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(report, "render_report", fail)
    with pytest.raises(OSError, match="no space"):
        case.audit.write(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file"):
        case.audit.write(tmp_path / "out")


def test_equal_scores_keep_everything() -> None:
    from l2rm.data.pairs import Pairs

    pairs = Pairs(images=("a", "b", "c"), image_of=np.array([0, 1, 2]), captions=("x", "y", "z"))
    audit = audit_scores(MatrixScores(np.zeros((3, 3))), pairs, progress=False)
    assert audit.mixture.degenerate == "constant"
    assert set(audit.decision) == {"keep"}


def test_rows_left_out_are_listed(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    lost = (LeftOut(row="row 7", image="<b>.png", reason="does not decode (truncated)"),)
    audit = replace(case.audit, pairs=replace(case.pairs, left_out=lost))
    audit.write(tmp_path)
    with (tmp_path / "left_out.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"row": "row 7", "image": "<b>.png", "reason": "does not decode (truncated)"}
        ]
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;.png" in page
    assert "does not decode (truncated)" in page
    case.audit.write(tmp_path)  # without any, an old list goes
    assert not (tmp_path / "left_out.csv").exists()
