"""kill -9 at any moment of a command: what it leaves is whole, and the same command goes on to the same result."""

import io
import json
import os
import random
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from killing import dies_at_rename, killed, started
from l2rm.cli import main
from l2rm.encoders.store import FeatureStore

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
SMALL = [
    "--batch-size=16", "--warmup-epochs=2", "--rematching-epochs=3", "--decay-every=1", "--lr=0.01", "--save-seconds=0",
    "--model.similarity=cosine", "--model.embed-dim=16", "--model.word-dim=8", "--model.min-word-count=1",
    "--model.dropout=0.3",
]  # fmt: skip
METHODS = {
    "by losses": ["--rematching.queue-size=24"],
    "by folds": ["--rematching.folds=3", "--rematching.take=weight", "--rematching.targets=mass"],
    "plain": ["--method=plain"],
    "oracle": ["--method=oracle"],
}


def training(precomp: Path, index: Path, method: str, out: Path) -> list[str]:
    """The arguments of a training; the same ones resume it."""
    return ["train", str(precomp), "--mismatch", str(index), "--out", str(out), "--resume", *SMALL, *METHODS[method]]


def results(run: Path) -> dict[str, object]:
    """What a run must come to, whatever happened on the way."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
        if line["division"]:
            del line["division"]["seconds"]
    files = {name: (run / name).read_bytes() for name in ("model.safetensors", "pairs.parquet", "vocabulary.json")}
    return {**files, "metrics": lines}


def is_clean(run: Path) -> bool:
    """No lock, and nothing half written."""
    return not [path for path in run.rglob("*") if path.name.startswith(".") or path.name == "lock"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["by folds"])
def test_training_that_is_killed_twice(method: str, precomp: Path, index: Path, tmp_path: Path) -> None:
    assert main(training(precomp, index, method, tmp_path / "whole")) == 0
    run = tmp_path / "run"
    for mark, delay in ((run / "last" / "state.pt", 0.013), (run / "metrics.jsonl", 0.031)):
        process = started(training(precomp, index, method, run))
        deadline = time.monotonic() + 60
        while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        assert killed(process), process.stderr
    assert main(training(precomp, index, method, run)) == 0
    assert results(run) == results(tmp_path / "whole")
    assert is_clean(run)


@pytest.mark.slow
def test_training_on_tar_files_that_is_killed(tmp_path: Path) -> None:
    """Weights of the same arrays in two files, never stopped."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(400, 8)).astype(np.float32)
    captions = (images + 0.3 * generator.normal(size=images.shape)).astype(np.float32)
    for name, array in (("images", images), ("captions", captions)):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        with tarfile.open(tmp_path / "shards" / f"{shard}.tar", "w") as tar:
            for row in range(100 * shard, 100 * shard + 100):
                for kind, array in (("image", images), ("caption", captions)):
                    file = io.BytesIO()
                    np.save(file, array[row])
                    info = tarfile.TarInfo(f"{row:05d}.{kind}.npy")
                    info.size = file.tell()
                    file.seek(0)
                    tar.addfile(info, file)
    options = ["--resume", *SMALL, "--ratio=0.3", "--level=image"]
    arrays = f"{tmp_path / 'images.npy'},{tmp_path / 'captions.npy'}"
    assert main(["train", arrays, "--out", str(tmp_path / "whole"), *options]) == 0
    arguments = ["train", str(tmp_path / "shards"), "--out", str(tmp_path / "run"), *options]
    process, deadline = started(arguments), time.monotonic() + 120
    while not (tmp_path / "run" / "last" / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert killed(process)
    assert main(arguments) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kills"), [("by losses", 6), ("by folds", 6), ("plain", 4), ("oracle", 4)])
def test_training_that_is_killed_at_twenty_random_moments_in_all(
    method: str, kills: int, precomp: Path, index: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    whole = started(training(precomp, index, method, tmp_path / "whole"))
    assert whole.wait(timeout=300) == 0, whole.communicate()
    longest = time.monotonic() - began
    chance, run, left = random.Random(f"{method}, seed 0"), tmp_path / "run 0", kills
    while left:
        process = started(training(precomp, index, method, run))
        try:
            process.wait(timeout=chance.uniform(0.3 * longest, longest))
        except subprocess.TimeoutExpired:
            left -= killed(process)
        else:
            assert process.returncode == 0, process.communicate()
        if (run / "config.json").exists() and json.loads((run / "config.json").read_text())["finished"]:
            assert results(run) == results(tmp_path / "whole")
            run = tmp_path / f"run {left}, begun again"
    assert main(training(precomp, index, method, run)) == 0
    assert results(run) == results(tmp_path / "whole")
    assert is_clean(run)


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_training_that_is_killed_at_every_rename(before: bool, precomp: Path, index: Path, tmp_path: Path) -> None:
    short = ["--warmup-epochs=1", "--rematching-epochs=1", "--save-seconds=1000"]
    whole = [*training(precomp, index, "by losses", tmp_path / "whole"), *short]
    assert main(whole) == 0
    number = 0
    while True:
        number += 1
        run = tmp_path / f"run {number}"
        arguments = [*training(precomp, index, "by losses", run), *short]
        came_to_it = dies_at_rename(arguments, number, before=before)
        assert main(arguments) == 0
        assert results(run) == results(tmp_path / "whole"), f"killed at rename {number}"
        assert is_clean(run)
        if not came_to_it:
            break
    assert number > 8  # config.json, vocabulary.json, weights twice, metrics.jsonl and last/ twice, pairs.parquet …


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("existed", [pytest.param(True, marks=pytest.mark.slow), False])
def test_an_audit_that_is_killed_at_every_rename(
    before: bool, existed: bool, precomp: Path, trained: Path, tmp_path: Path
) -> None:
    written, number, came_to_it = {"audit.json", "audit.parquet", "report.html"}, 0, True
    while came_to_it:
        number += 1
        out = tmp_path / f"audit {number}"
        if existed:
            out.mkdir()
            (out / "mine.txt").write_text("stays")
        arguments = ["audit", str(precomp), "--model", str(trained), "--out", str(out), "--quiet"]
        came_to_it = dies_at_rename(arguments, number, before=before)
        if not existed and out.exists():  # all, or none
            assert {path.name for path in out.iterdir()} == written
        assert main(arguments) == 0
        wanted = written | ({"mine.txt"} if existed else set())
        assert {path.name for path in out.iterdir()} == wanted
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert number > 1


def test_a_cache_of_features_whose_writer_is_killed(tmp_path: Path) -> None:
    path, chance = tmp_path / "features.npy", random.Random(0)
    stamps = [number.to_bytes(16, "big") for number in range(2000)]
    entries = np.random.default_rng(0).normal(size=(2000, 2, 8)).astype(np.float16)
    for _ in range(8):
        child = os.fork()
        if child == 0:
            store = FeatureStore(path, (2, 8))
            with store.writing():
                for start in range(len(store), len(stamps), 7):
                    store.append(stamps[start : start + 7], entries[start : start + 7])
            os._exit(0)
        time.sleep(chance.uniform(0.002, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        store = FeatureStore(path, (2, 8))
        known = [stamp for stamp in stamps if stamp in store]
        assert len(store) == len(known)
        if known:
            stored = store.features(known).batch(np.arange(len(known))).numpy()
            assert np.array_equal(stored, entries[: len(known)].astype(np.float32))


# --------------------------------------------------------------------------------------------------- SIGINT and SIGTERM


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["audit", "evaluate", "encode"])
def test_a_command_that_is_asked_to_stop(
    command: str,
    number: signal.Signals,
    status: int,
    precomp: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = stop_when_asked(command, number, monkeypatch)
    arguments = {
        "audit": ["audit", str(precomp), "--model", str(trained), "--out", str(tmp_path / "out")],
        "evaluate": ["evaluate", str(trained), "--data", str(precomp), "--json", str(tmp_path / "out.json")],
        "encode": ["train", str(drawn(tmp_path)), "--out", str(tmp_path / "out"), *SMALL],
    }[command]
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main(arguments) == status
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "Traceback" in line] == []
    assert asked() == 1  # not one block, not one batch more
    assert sorted(tmp_path.rglob("*")) == before


def stop_when_asked(command: str, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the signal arrive as the first block is scored, or the first batch encoded; how many there were."""
    from l2rm.encoders import image
    from l2rm.similarity.scoring import ModelScores

    done = 0

    class Encoder:
        name, version, size, dim, max_grid = "efficientnet-lite0", 1, 32, 5, 7

        def __init__(self, **_: object) -> None:
            pass

        def __call__(self, pixels: np.ndarray) -> object:
            import torch

            return torch.zeros(len(pixels), 36, 5)

    def signalled(original: Callable[..., object]) -> Callable[..., object]:
        def inner(*arguments: object, **options: object) -> object:
            nonlocal done
            done += 1
            os.kill(os.getpid(), number)
            return original(*arguments, **options)

        return inner

    if command == "encode":
        monkeypatch.setitem(image.ENCODERS, "efficientnet-lite0", Encoder)
        monkeypatch.setattr(FeatureStore, "append", signalled(FeatureStore.append))
    else:
        monkeypatch.setattr(ModelScores, "block", signalled(ModelScores.block))
    return lambda: done


def drawn(folder: Path) -> Path:
    """A table of pictures in one colour each."""
    from PIL import Image

    rows = ["image,caption,split"]
    for number in range(200):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,picture {number},{'train' if number < 160 else 'dev'}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return folder / "pairs.csv"
