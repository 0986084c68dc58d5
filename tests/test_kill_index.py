"""kill -9 at any moment of `index`, `benchmark` and `serve`: the next call continues, and what was told is kept."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import killing
from l2rm.cli import main
from l2rm.errors import InputError
from l2rm.search.index import Index

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
Found = list[tuple[str, float]]


def vectors(folder: Path, count: int, seed: int = 0) -> str:
    """DATA of embeddings."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for name in ("images", "captions"):
        np.save(folder / f"{name}.npy", generator.normal(size=(count, 8)).astype(np.float32))
    return f"{folder}/images.npy,{folder}/captions.npy"


def named_vectors(folder: Path, count: int, seed: int = 0) -> str:
    """The same as Parquet, which names its images: what is added twice is there once."""
    vectors(folder, count, seed)
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("images", "captions")}
    columns = {
        f"{name[:-1]}_embedding": pa.array(array.tolist(), pa.list_(pa.float32())) for name, array in arrays.items()
    }
    pq.write_table(pa.table({"image": [f"more {n}" for n in range(count)], **columns}), folder / "more.parquet")
    return str(folder / "more.parquet")


def answers(index: Path) -> tuple[int, Found]:
    """How many images there are, and what is found."""
    opened = Index(index)
    hits = opened.search_vector(np.ones(8, dtype=np.float32), k=5)
    return len(opened.items["image"]), [(hit.name, round(hit.score, 5)) for hit in hits]


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


# ---------------------------------------------------------------------------------------------------------------- index


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("existed", [True, False])
def test_an_index_that_is_killed_as_it_is_made(before: bool, existed: bool, tmp_path: Path) -> None:
    old, new = vectors(tmp_path / "old", 30, seed=1), vectors(tmp_path / "new", 40)
    make = ["index", "--data", new, "--exact", "--out"]
    assert main([*make, str(tmp_path / "whole")]) == 0
    number, came_to_it = 0, True
    while came_to_it:
        number += 1
        out = tmp_path / f"index {number}"
        if existed:
            assert main(["index", "--data", old, "--exact", "--out", str(out)]) == 0
        came_to_it = killing.dies_at_rename([*make, str(out)], number, before=before)
        if existed:
            assert answers(out)[0] in (30, 40)  # what was there, or all of the new one
        elif out.exists():
            assert answers(out)[0] == 40
        assert main([*make, str(out)]) == 0
        assert answers(out) == answers(tmp_path / "whole")
    assert hidden(tmp_path) == []
    assert number > 3


CHANGES = {
    "--add": ["--add", "DATA"],
    "--remove": ["--remove", "image:3", "caption:7"],
    "--compact": ["--compact"],
}


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("change", CHANGES)
def test_an_index_that_is_killed_as_it_is_changed(change: str, before: bool, tmp_path: Path) -> None:
    start, more = vectors(tmp_path / "start", 40), named_vectors(tmp_path / "more", 50, seed=1)
    first = tmp_path / "first"
    assert main(["index", "--data", start, "--exact", "--out", str(first)]) == 0
    assert main(["index", "--out", str(first), "--remove", "image:0"]) == 0
    arguments = [more if one == "DATA" else one for one in CHANGES[change]]
    shutil.copytree(first, tmp_path / "whole")
    assert main(["index", "--out", str(tmp_path / "whole"), *arguments]) == 0
    was, becomes = answers(first), answers(tmp_path / "whole")
    number, came_to_it = 0, True
    while came_to_it:
        number += 1
        out = tmp_path / f"index {number}"
        shutil.copytree(first, out)
        came_to_it = killing.dies_at_rename(["index", "--out", str(out), *arguments], number, before=before)
        now = answers(out)  # opens without any repair, as it was or as it is to be
        assert now in (was, becomes)
        again = main(["index", "--out", str(out), *arguments])
        assert again == (2 if change == "--remove" and now == becomes else 0)  # what is gone cannot be removed
        assert answers(out) == becomes
        assert hidden(out) == []
    assert number > 1


@pytest.mark.slow
def test_an_index_that_is_killed_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(0)
    data = [vectors(tmp_path / str(part), 3000, seed=part) for part in range(2)]
    index = tmp_path / "index"
    began = time.monotonic()
    whole = killing.started(["index", "--data", data[0], "--exact", "--out", str(tmp_path / "whole")])
    assert whole.wait(timeout=120) == 0
    longest = time.monotonic() - began
    kills = 0
    for arguments in (["--data", data[0], "--exact"], ["--add", data[1]], ["--compact"]) * 2:
        for _ in range(2):
            process = killing.started(["index", "--out", str(index), *arguments])
            time.sleep(chance.uniform(0.5 * longest, longest))
            kills += killing.killed(process)
            try:
                assert answers(index)[0] in (3000, 6000)
            except InputError:
                assert not (index / "index.json").exists()
        assert main(["index", "--out", str(index), *arguments]) == 0
    assert kills > 3
    assert answers(index)[0] == 3000  # the names of both are the same
    assert hidden(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------ benchmark

GRID = """
methods = ["warmup", "l2rm-paper"]
similarities = ["cosine"]
ratios = [0.4]
levels = ["image"]
seeds = [0]
[config]
warmup_epochs = 1
rematching_epochs = 1
batch_size = 16
save_seconds = 0.0
[config.model]
embed_dim = 16
word_dim = 8
min_word_count = 1
"""


def rows(out: Path) -> list[dict[str, object]]:
    found = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return sorted(({k: v for k, v in row.items() if k != "seconds"} for row in found), key=str)


@pytest.fixture
def grid(tmp_path: Path, precomp: Path) -> Callable[[Path], list[str]]:
    (tmp_path / "grid.toml").write_text(GRID)
    return lambda out: ["benchmark", str(tmp_path / "grid.toml"), "--data", str(precomp), "--out", str(out), "--quiet"]


@pytest.mark.parametrize("number", [1, 7, 11, pytest.param(16, marks=pytest.mark.slow)])
def test_a_grid_that_is_killed_at_a_rename(number: int, grid: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert main(grid(tmp_path / "whole")) == 0
    out = tmp_path / "killed"
    assert killing.dies_at_rename(grid(out), number, before=True)
    assert killing.dies_at_rename(grid(out), 4, before=False)
    assert main(grid(out)) == 0
    assert rows(out) == rows(tmp_path / "whole")
    assert len(rows(out)) == 2
    assert hidden(out) == []


@pytest.mark.slow
def test_a_grid_that_is_killed_at_random_moments(grid: Callable[[Path], list[str]], tmp_path: Path) -> None:
    chance, kills = random.Random(0), 0
    began = time.monotonic()
    assert killing.started(grid(tmp_path / "whole")).wait(timeout=300) == 0
    longest = time.monotonic() - began
    for workers in ([], ["--workers", "2"]):
        out = tmp_path / f"killed {len(workers)}"
        for _ in range(4):
            process = killing.started([*grid(out), *workers])
            time.sleep(chance.uniform(0.4 * longest, 0.9 * longest))
            kills += killing.killed(process)
        assert main(grid(out)) == 0
        assert rows(out) == rows(tmp_path / "whole")
        assert hidden(out) == []
    assert kills > 4


# ---------------------------------------------------------------------------------------------------------------- serve


def serve(audit: Path) -> tuple["subprocess.Popen[str]", str]:
    """`l2rm serve --audit`, and where it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "l2rm", "serve", "--audit", str(audit), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0]


def stored(audit: Path) -> dict[str, str]:
    """The decisions in the store, which is whole."""
    with sqlite3.connect(audit / "decisions.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT pair_id, decision FROM decisions").fetchall()
        (changes,) = connection.execute("SELECT count(*) FROM history").fetchone()
    assert changes >= len(found)
    return dict(found)


def decide(address: str, worker: int, rows_of: list[int], told: dict[str, str]) -> None:
    """Decide row after row until nobody answers; what was answered is in `told`."""
    import httpx

    with httpx.Client(base_url=address, timeout=10) as client:
        for row in rows_of:
            said = ("keep", "drop")[row % 2]
            request = {"row": row, "verdict": said, "seen": 0, "tab": f"tab-{worker}", "request": f"r-{worker}-{row}"}
            try:
                answer = client.post("review/api/decisions", json=request)
            except httpx.TransportError:
                return
            assert answer.status_code == 200, answer.text
            told[answer.json()["pair"]["pair_id"]] = said


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_review_whose_server_is_killed_keeps_every_decision_that_it_answered(
    rounds: int, tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    audit = script("tests/auditing/reviewed.py").write_audit(tmp_path / "audit", rows=2000, pixels=False)
    told: dict[str, str] = {}
    left, chance = list(range(2000)), random.Random(0)
    for number in range(rounds):
        process, address = serve(audit)
        before = len(told)
        threads = [
            threading.Thread(target=decide, args=(address, 10 * number + worker, left[worker::3], told))
            for worker in range(3)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(told) < before + 30 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.2))
        assert killing.killed(process)
        assert len(told) >= before + 30
        for thread in threads:
            thread.join(30)
        found = stored(audit)
        assert told.items() <= found.items()  # and of what was not answered, one a worker at most
        assert len(found) <= len(told) + 3 * (number + 1)
        told |= found
        left = [row for row in left if f"pair/{1999 - row}" not in told]  # as write_audit numbers them
    process, address = serve(audit)  # and it is served again
    decide(address, 99, left[:5], told)
    assert killing.killed(process)
    assert stored(audit) == told
