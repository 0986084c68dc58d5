"""Two processes, each with half of every batch, train what one trains."""

import importlib.util
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

from l2rm.errors import InputError
from l2rm.training import processes
from l2rm.training.run import read_lines, read_weights

SCRIPT = Path(__file__).with_name("several_run.py")
pytest.importorskip("accelerate", reason="extra distributed: pip install 'l2rm[distributed]'")


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("several_run", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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


QUICK, LONG = ("plain", "warmup", "l2rm", "dataset"), ("memory", "ncr", "crcl", "sgr", "saf")


@pytest.fixture(scope="module")
def quick(tmp_path_factory, precomp):
    out = tmp_path_factory.mktemp("two")
    return out, by_two(out, *QUICK, "stopped", f"command={precomp}")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    return out, by_two(out, *LONG)


@pytest.fixture(scope="module")
def one(script, tmp_path_factory):
    """What one process leaves of a case."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("one")

    def run(name):
        if not (out / name).exists():
            script.run(name, out / name)
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
@pytest.mark.parametrize("name", ["memory", "ncr", "crcl", "sgr"])
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
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "l2rm"]
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_trains(script, precomp, tmp_path):
    running = torchrun("train", precomp, "--out", tmp_path / "run", *script.COMMAND)
    out, error = running.communicate(timeout=200)
    assert running.returncode == 0, error
    assert out.count("next: l2rm evaluate") == 1
    assert error.count("epoch 2/2") == 1
    assert {"config.json", "metrics.jsonl", "pairs.parquet", "mismatch.npy"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


@pytest.mark.slow
def test_torchrun_refuses_stops_and_goes_on(script, precomp, tmp_path):
    run = tmp_path / "run"
    refused = torchrun("train", precomp, "--out", run, *script.COMMAND, "--device=cuda:1")
    assert "l2rm: error: device: 'cuda:1' cannot be shared" in refused.communicate(timeout=200)[1]
    assert refused.returncode == 1  # torchrun's own, whatever the processes say
    running = torchrun("train", precomp, "--out", run, *script.COMMAND, "--rematching-epochs=60")
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
