"""Two processes, each with half of every batch, train what one trains."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from l2rm import cli
from l2rm.errors import InputError
from l2rm.training import processes
from l2rm.training.run import read_lines, read_weights

SCRIPT = Path(__file__).with_name("several_run.py")
pytestmark = pytest.mark.long
pytest.importorskip("accelerate", reason="extra distributed: pip install 'l2rm[distributed]'")


@pytest.fixture(scope="module")
def several(script):
    """The module `several_run.py`."""
    return script("tests/training/several_run.py")


def environment(rank, count, port):
    return os.environ | {
        "WORLD_SIZE": str(count),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def by_two(out, *names):
    """What two processes say; what they leave is in `out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out, *names],
            env=environment(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], said
    return said


QUICK, LONG = ("l2rm", "dataset"), ("plain", "warmup", "memory", "ncr", "crcl", "sgr", "saf")


@pytest.fixture(scope="module")
def quick(tmp_path_factory, precomp):
    out = tmp_path_factory.mktemp("two")
    return out, by_two(out, *QUICK, "stopped", f"command={precomp}")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return out, by_two(out, *LONG)


@pytest.fixture(scope="module")
def one(several, tmp_path_factory):
    """What one process leaves of a case."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("one")

    def run(name):
        if not (out / name).exists():
            several.run(name, out / name)
        return out / name

    return run


def terms(folder):
    """The terms of the objective at every step."""
    steps = json.loads((folder / "steps.json").read_text())
    kept = [{name: value for name, value in step.items() if not name.startswith("transport.")} for step in steps]
    return [step for step in kept if step]


def split(folder):
    return pq.read_table(folder / "pairs.parquet")["match_probability"].to_numpy()


def assert_reproduced(single, double, *, tolerance=1e-4, of_split=1e-4):
    """Every loss of every step, and the split."""
    before, now = terms(single), terms(double)
    assert len(before) == len(now) >= 33
    for step, (one, two) in enumerate(zip(before, now, strict=True)):
        assert two == pytest.approx(one, abs=tolerance), f"step {step + 1}"
    np.testing.assert_allclose(split(double), split(single), atol=of_split)
    assert (split(double) > 0.5).tolist() == (split(single) > 0.5).tolist()


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_reproduce_one(name, one, quick):
    assert_reproduced(one(name), quick[0] / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "warmup", "memory", "ncr", "crcl", "sgr"])
def test_two_processes_reproduce_one_longer(name, one, long):
    assert_reproduced(one(name), long[0] / name)


@pytest.mark.slow
def test_two_processes_reproduce_saf_but_for_running_statistics(one, long):
    """Its norm averages over the captions of a process, so what evaluation mode says differs, and what follows."""
    single, double = one("saf"), long[0] / "saf"
    for one_step, two_step in zip(terms(single)[:22], terms(double)[:22], strict=True):  # before the first division
        assert two_step == pytest.approx(one_step, abs=1e-4)
    assert_reproduced(single, double, tolerance=0.02, of_split=0.1)


def test_the_cases_rematch_and_divide(one):
    """Else they would prove little."""
    assert {"matched", "rematched", "cost"} <= set(terms(one("l2rm"))[-1])
    assert 50 < (split(one("l2rm")) > 0.5).sum() < 310
    assert 50 < (split(one("dataset")) > 0.5).sum() < 310
    tables = [pq.read_table(one(name) / "pairs.parquet")["rematch_image"] for name in ("l2rm", "dataset")]
    assert all(table.null_count < len(table) for table in tables)


def test_a_signal_at_one_process_stops_all_and_resume_comes_to_the_same(quick):
    out, said = quick
    for rank, text in enumerate(said):
        assert f"process {rank}: stopped by SIGTERM" in text
    for name in ("model.safetensors", "pairs.parquet"):
        assert (out / "stopped" / name).read_bytes() == (out / "dropout" / name).read_bytes(), name
    assert len(read_lines(out / "stopped" / "metrics.jsonl")) == 4
    assert "resumed at epoch 4, step 7" in (out / "stopped" / "log.txt").read_text()
    assert not (out / "stopped" / "lock").exists()


def test_the_command_trains_and_only_the_first_process_tells(quick):
    out, (first, other) = quick
    assert first.count("next: l2rm evaluate") == 1
    assert "epoch 2/2" in first
    assert "epoch 2/2" not in other
    assert "next:" not in other
    left = {path.name for path in (out / "command").iterdir()}
    assert {"config.json", "metrics.jsonl", "pairs.parquet", "mismatch.npy"} <= left


def test_dropout_of_two_processes_is_learned_with(quick):
    before, now = (read_weights(quick[0] / name / "model.safetensors") for name in ("l2rm", "dropout"))
    assert any(not torch.equal(before[name], now[name]) for name in before)


def test_one_process_needs_no_accelerate(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes.join("auto") == "auto"
    assert processes.is_first()
    assert processes.agreed(15) == 15
    model = torch.nn.Linear(2, 2)
    assert processes.share(model) is model


def test_several_processes_need_accelerate_and_a_device_each(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="device: 'cuda:1' cannot be shared"):
        processes.join("cuda:1")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"pip install 'l2rm\[distributed\]'"):
        processes.join("cpu")


def torchrun(*arguments):
    """`torchrun --nproc-per-node 2 -m l2rm …`."""
    return launched("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "l2rm", *arguments)


def accelerate(*arguments):
    """`accelerate launch --multi_gpu --num_processes 2 -m l2rm …`; without --multi_gpu it starts one on processors."""
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    return launched(*launch, "-m", "l2rm", *arguments)


def launched(*arguments):
    launcher = [sys.executable, "-m"]
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_trains(several, precomp, tmp_path):
    running = torchrun("train", precomp, "--out", tmp_path / "run", *several.COMMAND)
    out, error = running.communicate(timeout=200)
    assert running.returncode == 0, error
    assert out.count("next: l2rm evaluate") == 1
    assert error.count("epoch 2/2") == 1
    assert {"config.json", "metrics.jsonl", "pairs.parquet", "mismatch.npy"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


@pytest.mark.slow
def test_torchrun_refuses_stops_and_goes_on(several, precomp, tmp_path):
    run = tmp_path / "run"
    refused = torchrun("train", precomp, "--out", run, *several.COMMAND, "--device=cuda:1")
    assert "l2rm: error: device: 'cuda:1' cannot be shared" in refused.communicate(timeout=200)[1]
    assert refused.returncode == 1  # torchrun's own, whatever the processes say
    running = torchrun("train", precomp, "--out", run, *several.COMMAND, "--rematching-epochs=60")
    while not (run / "metrics.jsonl").exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=200)
    assert running.returncode != 0
    assert "stopped by SIGTERM" in error
    assert "--resume" in error
    done = len(read_lines(run / "metrics.jsonl"))
    assert 0 < done < 61
    running = torchrun("train", precomp, "--out", run, "--resume")
    _, error = running.communicate(timeout=300)
    assert running.returncode == 0, error
    assert len(read_lines(run / "metrics.jsonl")) == 61


def losses(run):
    return [line["losses"] for line in read_lines(run / "metrics.jsonl")]


def assert_two_by_accelerate_are_one(out, arguments):
    """Trained by two that `accelerate launch` has started, and by this process."""
    running = accelerate("train", *arguments, "--out", out / "two")
    told, error = running.communicate(timeout=300)
    assert running.returncode == 0, error
    assert told.count("next: l2rm evaluate") == 1
    assert cli.main(["train", *map(str, arguments), "--out", str(out / "one")]) == 0
    for one, two in zip(losses(out / "one"), losses(out / "two"), strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    np.testing.assert_allclose(split(out / "two"), split(out / "one"), atol=1e-4)


@pytest.mark.slow
def test_accelerate_launches_two_that_train_what_one_does(script, precomp, tmp_path):
    refused = accelerate("train", precomp, "--out", tmp_path / "run", *script.COMMAND, "--device=cuda:1")
    assert refused.communicate(timeout=200)[1].count("l2rm: error: device: 'cuda:1' cannot be shared") == 2
    assert refused.returncode == 1
    assert_two_by_accelerate_are_one(tmp_path, [precomp, *script.COMMAND, "--model.dropout=0"])


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_two_processes_fine_tune_as_one_does(finetune, tiny_clip, tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="the extra finetune (peft) is not installed")
    monkeypatch.setenv("L2RM_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    base, table = tiny_clip.save_model(tmp_path / "base", "clip"), tiny_clip.draw(tmp_path / "data")
    folds = ["--rematching.fold-rounds=1", "--rematching.evidence=pair", "--rematching.tau=0.1"]
    options = ["--ratio=0.2", "--level=image", "--device=cpu", "--batch-size=15", "--warmup-epochs=2", "--lr=0.001"]
    model = ["--recipe=clip", f"--model.encoder={base}", f"--model.finetune={finetune}"]
    assert_two_by_accelerate_are_one(tmp_path, [table, *model, *options, *folds])
