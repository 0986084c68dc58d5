"""Two processes, each with half of every batch, train what one trains."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes leave, and what they say."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pair = [
        subprocess.Popen(
            [sys.executable, SCRIPT, out],
            env=environment(rank, 2, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [0, 0], said
    return out, said


@pytest.fixture(scope="module")
def one(script, tmp_path_factory):
    """What one process leaves of a case."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("one")

    def run(name):
        script.run(name, out / name)
        return out / name

    return run


def steps(folder):
    return json.loads((folder / "steps.json").read_text())


def terms(folder):
    """(steps, terms) of the objective, at every step."""
    return [[value for key, value in step.items() if not key.startswith("transport.")] for step in steps(folder)]


def split(folder):
    return pq.read_table(folder / "pairs.parquet")["match_probability"].to_numpy()


@pytest.mark.parametrize("name", ["plain", "warmup", "l2rm", "dataset", "ncr", "crcl", "sgr", "saf"])
def test_two_processes_reproduce_one(name, one, two):
    single, double = one(name), two[0] / name
    before, now = terms(single), terms(double)
    print(name, max(abs(a - b) for x, y in zip(before, now) for a, b in zip(x, y)), np.abs(split(double)-split(single)).max())
