"""The same seed on the same machine gives the same result, to the last bit.

docs/faults.md says what may differ elsewhere.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from l2rm.cli import main

OPTIONS = [
    "--quiet", "--seed=3", "--batch-size=16", "--warmup-epochs=1", "--rematching-epochs=1", "--lr=0.01",
    "--model.similarity=sgr", "--model.embed-dim=16", "--model.word-dim=8", "--model.similarity-dim=8",
    "--model.min-word-count=1", "--model.dropout=0.3", "--rematching.queue-size=24",
]  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.long
def test_processes_of_one_seed_agree_and_those_of_another_do_not(precomp: Path, index: Path, tmp_path: Path) -> None:
    def arguments(name: str, *more: str) -> list[str]:
        return ["train", str(precomp), "--mismatch", str(index), "--out", str(tmp_path / name), *OPTIONS, *more]

    there = subprocess.Popen(
        [sys.executable, "-m", "l2rm", *arguments("there")],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"},  # sets in another order
    )
    assert main(arguments("here")) == 0
    assert main(arguments("other seed", "--seed=4")) == 0
    assert there.wait(timeout=300) == 0
    for name in ("model.safetensors", "pairs.parquet", "vocabulary.json"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
    weights = "model.safetensors"
    assert (tmp_path / "other seed" / weights).read_bytes() != (tmp_path / "here" / weights).read_bytes()
