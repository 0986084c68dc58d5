"""An audit read again from its folder, and what is exported of its review by the command."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2rm.auditing.audit import Audit
from l2rm.auditing.decisions import Choice
from l2rm.auditing.folder import AuditFolder
from l2rm.auditing.queue import ReviewQueue
from l2rm.cli import main
from l2rm.data.decided import read_decisions
from l2rm.data.mismatch import read_index
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError


@pytest.fixture
def audit(pictured) -> Audit:  # type: ignore[no-untyped-def]
    return pictured.audit


@pytest.fixture
def folder(audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("l2rm.auditing.report.render_report", lambda *_, **__: "")
    return audit.write(tmp_path / "audit")


def test_an_audit_is_read_as_it_was_written(audit: Audit, folder: Path) -> None:
    read = AuditFolder.open(folder)
    assert tuple(read.images[image] for image in read.image_of) == tuple(audit.table["image"].to_pylist())
    assert read.images == list(audit.pairs.images)  # in the order of the data, whatever the rows are given
    np.testing.assert_array_equal(read.image_of, audit.pairs.image_of)
    np.testing.assert_array_equal(read.match_probability, audit.match_probability)
    assert (np.diff(read.match_probability[read.order]) >= 0).all()
    assert read.image_path(3) == audit.pairs.image_path(3)
    facts = json.loads((folder / "audit.json").read_text())
    assert facts["counts"] | {"pairs": 120, "images": 60} == facts["counts"]
    assert facts["counts"]["mismatched"] == facts["counts"]["rematch"] + facts["counts"]["drop"]
    assert facts["mixture"]["weight"] == audit.mixture.weight.tolist()


def test_images_are_listed_only_where_rows_do_not_show_their_order(audit: Audit, folder: Path) -> None:
    assert json.loads((folder / "audit.json").read_text())["images"] == list(audit.pairs.images)
    plain = replace(audit, pairs=replace(audit.pairs, image_of=audit.pairs.true_image_of))
    plain.write(folder)
    assert json.loads((folder / "audit.json").read_text())["images"] is None
    assert AuditFolder.open(folder).images == list(audit.pairs.images)


def test_what_is_no_audit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        AuditFolder.open(tmp_path / "nowhere")
    whole = pq.read_table(folder / "audit.parquet")
    twice = pa.concat_tables([whole, whole])
    odd = whole.set_column(whole.column_names.index("decision"), "decision", pa.array(["perhaps"] * len(whole)))
    for table, message in (
        (whole.drop(["rematch_caption"]), "no column 'rematch_caption'"),
        (twice, "stands there twice"),
        (odd, "row 1: decision 'perhaps'"),
    ):
        pq.write_table(table, folder / "audit.parquet")
        with pytest.raises(InputError, match=message):
            AuditFolder.open(folder)
    (folder / "audit.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(InputError, match="cannot be read as an audit"):
        AuditFolder.open(folder)
    pq.write_table(whole, folder / "audit.parquet")
    for text, message in (("{", "no JSON"), ('{"format": 99}', "not of format 1"), ("[]", "not of format 1")):
        (folder / "audit.json").write_text(text)
        with pytest.raises(InputError, match=message):
            AuditFolder.open(folder)


def test_an_exported_index_is_what_mismatch_reads(
    audit: Audit, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = ReviewQueue(AuditFolder.open(folder))
    row = int(queue.folder.order[0])
    chosen = queue.folder.images[int(queue.folder.rematch_image_of[row])]
    queue.decide(row, Choice(verdict="rematch", new_image=chosen), seen=0, tab="t", request="r")
    assert main(["decisions", str(folder), "--out", str(tmp_path / "index.npy"), "--undecided", "keep"]) == 0
    assert "1 of 120 pairs decided: keep 0, rematch 1, drop 0" in capsys.readouterr().out
    truth = audit.pairs.true_image_of
    assert truth is not None
    data = replace(audit.pairs, image_of=truth, true_image_of=None)  # DATA, before they were mismatched
    given = read_index(tmp_path / "index.npy", data).pairs
    expected = audit.pairs.image_of.copy()
    expected[row] = audit.pairs.images.index(chosen)
    np.testing.assert_array_equal(given.image_of, expected)


def test_the_command_writes_tables_and_lists(
    reviewed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = reviewed.write_audit(tmp_path / "audit", pixels=False)
    before = sorted(folder.iterdir())
    assert main(["decisions", str(folder)]) == 0
    assert "0 of 120 pairs decided" in capsys.readouterr().out
    assert sorted(folder.iterdir()) == before  # who only asks leaves no store behind
    queue = ReviewQueue(AuditFolder.open(folder))
    for number, verdict in enumerate(("keep", "drop")):
        row = queue.row_of[f"pair/{number}"]
        queue.decide(row, Choice(verdict=verdict), seen=0, tab="t", request=verdict)  # type: ignore[arg-type]
    assert main(["decisions", str(folder)]) == 0
    assert "2 of 120 pairs decided" in capsys.readouterr().out
    assert main(["decisions", str(folder), "--out", str(tmp_path / "decisions.csv")]) == 0
    assert set(read_decisions(tmp_path / "decisions.csv")) == set(read_decisions(folder))
    repaired = tmp_path / "repaired.csv"
    assert main(["decisions", str(folder), "--what", "pairs", "--undecided", "keep", "--out", str(repaired)]) == 0
    for image in range(60):
        (tmp_path / f"picture {image}.png").touch()
    pairs = Pairs.read(repaired)
    assert len(pairs) == 119
    assert "pair/1" not in pairs.pair_ids
    assert main(["decisions", str(folder), "--undecided", "drop", "--out", str(tmp_path / "keep.txt")]) == 0
    assert (tmp_path / "keep.txt").read_text() == "pair/0\n"


def test_the_command_says_what_is_wrong(
    reviewed: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = reviewed.write_audit(tmp_path / "audit", pixels=False, facts=False)
    for arguments, message in (
        ([str(tmp_path)], "give the --out of `l2rm audit`"),
        ([str(folder), "--out", "decisions.xls"], "use .csv, .tsv, .jsonl, .parquet"),
        ([str(folder), "--out", str(tmp_path / "index.npy")], "no audit.json"),
    ):
        assert main(["decisions", *arguments]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
