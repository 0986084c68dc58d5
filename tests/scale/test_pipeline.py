"""An audit of shards is the audit of all their pairs; what stops it costs the shard that was in work."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2rm.auditing.audit import audit_scores
from l2rm.auditing.folder import AuditFolder
from l2rm.auditing.rematch import rematch_scores
from l2rm.cli import main
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.scale.engine import Engine, OnRay, opened_engine
from l2rm.scale.folder import ShardsConfig
from l2rm.scale.pipeline import audit_shards
from l2rm.scale.stages import Judge
from l2rm.similarity.scoring import FeatureScores

pytestmark = pytest.mark.usefixtures("one_thread")
LISTED = ("pair_id", "image", "caption", "is_mismatched", "decision")
PARTNERS = ("rematch_image", "rematch_caption")


def tables(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((out / "audit").iterdir())])


def assert_equal(found: pa.Table, audit: pa.Table, *, partners: Sequence[str] = PARTNERS) -> None:
    """The same verdicts and, where pairs look mismatched, the same partners; for the others there are none."""
    for name in LISTED:
        assert found[name].to_pylist() == audit[name].to_pylist(), name
    bad = np.asarray(audit["is_mismatched"])
    np.testing.assert_allclose(found["match_probability"], audit["match_probability"], atol=1e-5)
    for name in partners:
        assert found[name].filter(pa.array(bad)).to_pylist() == audit[name].filter(pa.array(bad)).to_pylist(), name
        assert found[name].filter(pa.array(~bad)).null_count == (~bad).sum()
    np.testing.assert_allclose(
        np.asarray(found["rematch_confidence"])[bad], np.asarray(audit["rematch_confidence"])[bad], atol=1e-4
    )


@pytest.mark.parametrize("captions", [1, 5])
def test_it_is_the_audit_in_process(
    captions: int, make_shards: Callable[..., Path], here: Engine, tmp_path: Path
) -> None:
    folder = make_shards(tmp_path / "shards", captions=captions)
    pairs = Pairs.read(folder)
    assert pairs.n_images == 2500 // captions
    audit = audit_scores(FeatureScores(pairs), pairs, progress=False, flags=False)
    assert 100 < audit.is_mismatched.sum() < 1000
    result = audit_shards(folder, tmp_path / "audit", ShardsConfig(), here)
    assert_equal(tables(tmp_path / "audit"), audit.table)
    assert audit.detection is not None
    assert result.detection is not None
    assert result.detection.auroc == pytest.approx(audit.detection.auroc, abs=1e-9)
    assert result.counts["keep"] == (audit.decision == "keep").sum()
    assert result.counts["rematch"] == (audit.decision == "rematch").sum()
    review = AuditFolder.open(tmp_path / "audit")
    assert len(review) == 2500
    assert review.images[: pairs.n_images] == list(pairs.images)


def test_the_plan_is_that_of_a_rematch(shards: Path, here: Engine, tmp_path: Path) -> None:
    pairs = Pairs.read(shards)
    rematched = rematch_scores(FeatureScores(pairs), pairs, progress=False)
    assert (rematched.decision == "rematch").sum() > 100
    audit_shards(shards, tmp_path / "audit", ShardsConfig(plan=True), here)
    found = tables(tmp_path / "audit")
    assert found["decision"].to_pylist() == rematched.decision.tolist()
    bad = np.flatnonzero(rematched.is_mismatched)
    suggested = [pairs.images[image] for image in rematched.partners.suggested[bad, 0]]
    assert found["rematch_image"].take(pa.array(bad)).to_pylist() == suggested
    confidence = np.asarray(found["rematch_confidence"])[bad]
    np.testing.assert_allclose(confidence, rematched.partners.confidence[bad], atol=1e-4)


@pytest.mark.long
def test_ray_finds_what_one_process_finds_and_tells_what_is_wrong(
    shards: Path, here: Engine, on_ray: OnRay, tmp_path: Path
) -> None:
    """Ray's shared memory is bounded, and no shard passes through it. One test, since Ray takes long to start."""
    import ray

    for name, engine in (("here", here), ("ray", on_ray)):
        audit_shards(shards, tmp_path / name, ShardsConfig(), engine)
    assert tables(tmp_path / "ray").equals(tables(tmp_path / "here"))
    assert ray.cluster_resources()["object_store_memory"] <= 129 * 2**20
    assert not (tmp_path / "ray" / "work").exists()
    (tmp_path / "shards").mkdir()
    for path in shards.iterdir():
        (tmp_path / "shards" / path.name).write_bytes(path.read_bytes()[: -1 if path.name == "001.parquet" else None])
    with pytest.raises(InputError, match=r"001\.parquet: cannot be read as Parquet"):
        audit_shards(tmp_path / "shards", tmp_path / "audit", ShardsConfig(), on_ray)


class Stopping:
    """An engine that stops at a stage after some shards."""

    def __init__(self, at: str, after: int) -> None:
        self.at, self.after, self.done = at, after, dict[str, list[int]]()

    def run(self, work: Callable[[int], None], numbers: Sequence[int], what: str) -> None:
        for number in numbers:
            if what == self.at and len(self.done.get(what, [])) == self.after:
                raise KeyboardInterrupt
            work(number)
            self.done.setdefault(what, []).append(number)


@pytest.mark.parametrize("at", ["embedding shards", "judging shards", "finding partners", "writing tables"])
def test_no_finished_shard_is_done_again(at: str, shards: Path, here: Engine, tmp_path: Path) -> None:
    audit_shards(shards, tmp_path / "whole", ShardsConfig(), here)
    after = 0 if at == "finding partners" else 2  # there is one group of suspects
    first, rest = Stopping(at, after), Stopping("nowhere", 0)
    with pytest.raises(KeyboardInterrupt):
        audit_shards(shards, tmp_path / "audit", ShardsConfig(), first)
    with pytest.raises(InputError, match="--resume"):
        audit_shards(shards, tmp_path / "audit", ShardsConfig(), rest)
    audit_shards(shards, tmp_path / "audit", ShardsConfig(), rest, resume=True)
    for stage in {*first.done, *rest.done}:
        count = 1 if stage == "finding partners" else 4
        assert sorted(first.done.get(stage, []) + rest.done.get(stage, [])) == list(range(count))
    assert tables(tmp_path / "audit").equals(tables(tmp_path / "whole"))


def test_only_the_same_audit_is_resumed(make_shards: Callable[..., Path], here: Engine, tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards", pairs=300, per_shard=100)
    with pytest.raises(KeyboardInterrupt):
        audit_shards(folder, tmp_path / "audit", ShardsConfig(), Stopping("judging shards", 1))
    with pytest.raises(InputError, match="seed was 0 and is now 1"):
        audit_shards(folder, tmp_path / "audit", ShardsConfig(seed=1), here, resume=True)
    table = pq.read_table(folder / "001.parquet")
    pq.write_table(table.slice(1), folder / "001.parquet")
    with pytest.raises(InputError, match=r"001\.parquet"):
        audit_shards(folder, tmp_path / "audit", ShardsConfig(), here, resume=True)


def test_the_command(make_shards: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_shards(tmp_path / "shards", pairs=300, per_shard=100)
    arguments = ["audit-shards", str(folder), "--out", str(tmp_path / "audit"), "--engine", "local", "--quiet"]
    assert main(arguments) == 0
    assert "300 pairs of 300 images" in capsys.readouterr().out
    assert json.loads((tmp_path / "audit" / "audit.json").read_text())["counts"]["pairs"] == 300
    assert main([*arguments, "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert main([*arguments, "--resume", "--keep-threshold", "0.9"]) == 2
    assert "keep_threshold was 0.5 and is now 0.9" in capsys.readouterr().err
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err


def test_an_audit_of_another_kind_is_not_resumed(
    make_shards: Callable[..., Path], here: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_shards(tmp_path / "shards", pairs=60, per_shard=30)
    pairs = Pairs.read(folder)
    audit = audit_scores(FeatureScores(pairs), pairs, progress=False, flags=False)
    audit.write(tmp_path / "plain")
    audit_shards(folder, tmp_path / "shared", ShardsConfig(), here)
    audit.write(tmp_path / "shared")
    for out, told in (("plain", "holds other files"), ("shared", "is of l2rm audit")):
        command = [
            "audit-shards",
            str(folder),
            "--out",
            str(tmp_path / out),
            "--engine",
            "local",
            "--quiet",
            "--resume",
        ]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "give --out a new folder" in error


def test_a_pair_id_that_stands_twice_is_refused_before_the_work(
    make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_shards(tmp_path / "shards", pairs=300, per_shard=100)
    for number, path in enumerate(sorted(folder.iterdir())):
        ids = pa.array([f"{number} {row}" if row < 90 else str(row) for row in range(100)])
        pq.write_table(pq.read_table(path).append_column("pair_id", ids), path)
    engine = Stopping("nowhere", 0)
    with pytest.raises(
        InputError, match=r"001\.parquet: pair_id '9\d' stands in 000\.parquet already; give every pair"
    ):
        audit_shards(folder, tmp_path / "audit", ShardsConfig(), engine)
    assert list(engine.done) == ["embedding shards"]


def refused(folder: Path, columns: dict[str, object], told: str, tmp_path: Path, here: Engine) -> None:
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "0.parquet")
    with pytest.raises(InputError, match=told):
        audit_shards(folder, tmp_path / "audit", ShardsConfig(), here)


def test_bad_shards(tmp_path: Path, here: Engine) -> None:
    good = pa.array([[1.0, 2.0], [3.0, 4.0]])
    cases: dict[str, tuple[dict[str, object], str]] = {
        "lengths": ({"image_embedding": [[1.0], [1.0, 2.0]], "caption_embedding": good}, "row 2: image_embedding"),
        "null": ({"image_embedding": [[1.0, None], [1.0, 2.0]], "caption_embedding": good}, "empty entries"),
        "nan": ({"image_embedding": [[1.0, 2.0], [np.nan, 2.0]], "caption_embedding": good}, "row 2.*NaN"),
        "words": ({"image_embedding": ["a", "b"], "caption_embedding": good}, "lists of floats"),
        "spaces": ({"image_embedding": [[1.0], [1.0]], "caption_embedding": good}, "no one space"),
        "no column": ({"image": ["a", "b"], "caption": ["a", "b"]}, "no column 'image_embedding'"),
        "truth": ({"image_embedding": good, "caption_embedding": good, "is_mismatched": ["no", "x"]}, "is_mismatched"),
    }
    for name, (columns, told) in cases.items():
        refused(tmp_path / name, columns, told, tmp_path / f"out {name}", here)


def test_bad_rows_are_left_out_counted_and_listed(
    make_shards: Callable[..., Path], here: Engine, tmp_path: Path
) -> None:
    folder = make_shards(tmp_path / "shards", pairs=300, per_shard=150)
    table = pq.read_table(folder / "001.parquet")
    captions = table["caption"].to_pylist()
    captions[7] = None
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", [captions]), folder / "001.parquet")
    with pytest.raises(InputError, match=r"001\.parquet:row 8: caption is NoneType"):
        audit_shards(folder, tmp_path / "strict", ShardsConfig(), here)
    result = audit_shards(folder, tmp_path / "audit", ShardsConfig(skip_bad=True), here)
    assert (result.counts["pairs"], result.counts["left_out"]) == (299, 1)
    told = list(csv.DictReader((tmp_path / "audit" / "left_out.csv").open()))
    assert told == [{"row": "001.parquet:row 8", "image": "157.jpg", "reason": "caption is NoneType, not a text"}]
    assert captions[8] in tables(tmp_path / "audit")["caption"].to_pylist()


def test_samples_that_are_left_out_of_tar_files_are_counted(here: Engine, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row in range(20):
            vector = generator.normal(size=4).astype(np.float32)
            for ending in ("image.npy", "caption.npy", "json"):
                file = io.BytesIO()
                if ending == "json":
                    file.write(b"[]" if row == 3 else b"{}")
                else:
                    np.save(file, np.full_like(vector, np.nan) if (row, ending) == (5, "caption.npy") else vector)
                info = tarfile.TarInfo(f"{row}.{ending}")
                info.size = file.tell()
                file.seek(0)
                tar.addfile(info, file)
    result = audit_shards(tmp_path / "0.tar", tmp_path / "audit", ShardsConfig(skip_bad=True), here)
    assert (result.counts["pairs"], result.counts["left_out"]) == (18, 2)
    left_out = list(csv.DictReader((tmp_path / "audit" / "left_out.csv").open()))
    assert [row["row"] for row in left_out] == ["0/3", "0/5"]
    assert left_out[1]["reason"] == "the embedding of its caption has a NaN or infinite value"
    assert not {"0/3", "0/5"} & set(tables(tmp_path / "audit")["pair_id"].to_pylist())


def test_tar_files_of_several_folders_are_refused(here: Engine, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.tar").touch()
    with pytest.raises(InputError, match="several folders"):
        audit_shards(tmp_path / "*" / "*.tar", tmp_path / "audit", ShardsConfig(), here)


def test_an_engine_that_is_none() -> None:
    with pytest.raises(InputError, match="choose ray or local"), opened_engine("spark"):
        pass


def test_nothing_of_ray_is_imported_unless_it_is_used() -> None:
    code = "import sys, l2rm.scale.pipeline, l2rm.cli; assert not {'ray', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_work_travels_without_the_data(shards: Path, tmp_path: Path) -> None:
    """What Ray sends to a process does not grow with the shards."""
    import pickle

    sizes = []

    class Weighing:
        def run(self, work: Callable[[int], None], numbers: Sequence[int], what: str) -> None:
            if isinstance(work, Judge):
                sizes.append(len(pickle.dumps(work)))
            for number in numbers:
                work(number)

    audit_shards(shards, tmp_path / "audit", ShardsConfig(), Weighing())
    assert sizes[0] < 200_000 + 2 * 1024 * 16 * 4


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["work/vectors/000001.json", "work/losses/000002.npy"])
def test_kill_and_resume_on_ray(mark: str, make_shards: Callable[..., Path], here: Engine, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    folder, out = make_shards(tmp_path / "shards", pairs=6000, per_shard=300), tmp_path / "audit"
    audit_shards(folder, tmp_path / "whole", ShardsConfig(), here)
    arguments = [sys.executable, "-m", "l2rm", "audit-shards", str(folder), "--out", str(out), "--processes", "1"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / mark).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert not (out / "audit.json").exists()
    assert len(list((out / "work" / "vectors").glob("*.json"))) >= 2
    subprocess.run([*arguments, "--resume"], check=True, timeout=120, stdout=subprocess.DEVNULL)
    assert tables(out).equals(tables(tmp_path / "whole"))
