"""A grid of two short runs: its rows, going on, several commands at once, and what is refused."""

import fcntl
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from l2rm.benchmark import work
from l2rm.benchmark.grid import read_grid
from l2rm.benchmark.report import write_report
from l2rm.benchmark.work import Job, rematch_hits, run_grid
from l2rm.cli import main
from l2rm.data.mismatch import inject_mismatches, write_index
from l2rm.errors import InputError
from l2rm.training.interrupt import Interrupted
from l2rm.training.run import load_run
from l2rm.training.trainer import Trainer

TEXT = """
methods = ["warmup", "l2rm-paper"]
ratios = [0.4]
recipe = "dual"
[config]
batch_size = 30
warmup_epochs = 1
rematching_epochs = 1
lr = 2e-2
device = "cpu"
[config.model]
embed_dim = 8
min_word_count = 1
"""
KEYS = ["method", "similarity", "ratio", "level", "seed", "dev", "test", "detection", "estimated_ratio", "rematch"]
KEYS += ["seconds", "commit"]


@pytest.fixture(scope="session")
def small(script):
    """The module `small_run.py` of the tests of training."""
    return script("tests/training/small_run.py")


@pytest.fixture(scope="session")
def data(small, tmp_path_factory):
    """A precomp folder of small pairs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    for name, images, seed in (("train", 90, 1), ("dev", 20, 2), ("test", 20, 3)):
        pairs = small.small_pairs(images, seed)
        np.save(folder / f"{name}_ims.npy", pairs.features.array)
        (folder / f"{name}_caps.txt").write_text("\n".join(pairs.captions) + "\n")
    return folder


@pytest.fixture(scope="session")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "mine.toml"
    path.write_text(TEXT)
    return read_grid(str(path))


@pytest.fixture(scope="session")
def done(data, grid, tmp_path_factory):
    """A finished job; no test may change it."""
    job = Job(grid=grid, source=str(data), out=tmp_path_factory.mktemp("done"))
    run_grid(job, progress=False)
    return job


def timeless(row):
    return {key: value for key, value in row.items() if key != "seconds"}


def test_rows_have_exactly_what_the_contract_says(done):
    rows = [json.loads(line) for line in done.results.read_text().splitlines()]
    assert [list(row) for row in rows] == [KEYS, KEYS]
    warmup, paper = rows
    assert (warmup["method"], warmup["ratio"], warmup["level"], warmup["seed"]) == ("warmup", 0.4, "image", 0)
    assert warmup["detection"] is warmup["estimated_ratio"] is None
    assert paper["method"] == "l2rm-paper"
    assert set(paper["detection"]) == {"auroc", "ap", "f1"}
    assert 0 <= paper["estimated_ratio"] <= 1
    for row in rows:
        assert (row["dev"]["images"], row["test"]["images"]) == (20, 20)
        assert set(row["rematch"]) == {"hit1", "hit10"}
        assert row["seconds"] >= 0
        folder = done.out / "runs" / f"cosine-image-40-{row['method']}-0"
        assert (folder / "pairs.parquet").exists()
        assert not (folder / "last").exists()


def test_a_second_call_runs_nothing(done, monkeypatch):
    monkeypatch.setattr(work, "train", lambda *_, **__: pytest.fail("trains again"))
    before = done.results.read_bytes()
    run_grid(done, progress=False)
    assert done.results.read_bytes() == before


def test_report_of_what_is_there(done):
    files = write_report(done)
    assert {path.name for path in files} == {
        "table.md", "recall-cosine-image.png", "detection-cosine-image.png", "reliability-cosine-image.png",
        "rematched-cosine-image.png",
    }  # fmt: skip
    assert "| l2rm-paper |" in (done.out / "table.md").read_text()


def test_a_stopped_grid_goes_on_to_the_same_rows(done, tmp_path, monkeypatch):
    learn, count = Trainer._learn, 0

    def signalled(self, *arguments):
        nonlocal count
        learn(self, *arguments)
        count += 1
        if count == 18:  # of 12 a run
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_learn", signalled)
    job = replace(done, out=tmp_path / "out")
    with pytest.raises(Interrupted):
        run_grid(job, progress=False)
    assert len(job.rows()) == 1
    run_grid(job, progress=False)
    assert [timeless(row) for row in job.rows()] == [timeless(row) for row in done.rows()]


def test_what_another_command_has_in_hand_is_left_to_it(done, tmp_path):
    job = replace(done, out=tmp_path / "out")
    name = job.grid.cells[1].name
    (job.out / "locks").mkdir(parents=True)
    with (job.out / "locks" / name).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run_grid(job, progress=False)
    assert [row["method"] for row in job.rows()] == ["warmup"]
    run_grid(job, progress=False)
    assert [row["method"] for row in job.rows()] == ["warmup", "l2rm-paper"]


def test_a_run_that_fails_is_told_after_the_others(done, tmp_path, monkeypatch):
    learn = Trainer._learn

    def failing(self, *arguments):
        if self.config.method == "warmup":
            raise RuntimeError("the gradient is nan")
        learn(self, *arguments)

    monkeypatch.setattr(Trainer, "_learn", failing)
    job = replace(done, out=tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"1 runs failed, .*: cosine-image-40-warmup-0"):
        run_grid(job, progress=False)
    assert [row["method"] for row in job.rows()] == ["l2rm-paper"]


def test_a_run_of_other_settings_is_not_mixed_in(done):
    other = replace(done, grid=replace(done.grid, config={**done.grid.config, "lr": 0.5}))
    with pytest.raises(InputError, match=r"lr was 0\.02 and is now 0\.5"):
        run_grid(other, progress=False)


def test_a_judge_that_is_not_there_is_told_before_anything_runs(done, tmp_path):
    job = replace(done, grid=replace(done.grid, methods=("warmup", "l2rm"), judge="no/{noise}"), out=tmp_path / "out")
    with pytest.raises(InputError, match=r"no/image-40: no RUN folder"):
        run_grid(job, progress=False)
    assert not job.results.exists()


def test_index_files_must_hold_what_their_names_say(done, data, small, tmp_path):
    pairs = small.small_pairs(90, 1)
    write_index(data / "right_image_40.npy", inject_mismatches(pairs, ratio=0.4, level="image", seed=5))
    write_index(data / "wrong_image_40.npy", inject_mismatches(pairs, ratio=0.4, level="caption", seed=5))
    cell = done.grid.cells[0]
    right = replace(done, grid=replace(done.grid, mismatch="right_{level}_{percent}.npy"))
    assert work.mismatched(right, cell).image_of.tolist() == np.load(data / "right_image_40.npy").tolist()
    wrong = replace(done, grid=replace(done.grid, mismatch="wrong_{level}_{percent}.npy"))
    with pytest.raises(InputError, match=r"at level caption, where the grid wants 40\.0 % at level image"):
        work.mismatched(wrong, cell)
    with pytest.raises(InputError, match="no such file"):
        work.mismatched(replace(done, grid=replace(done.grid, mismatch="{level}.npy")), cell)


def test_rematch_hits_by_sorting_everything(done):
    run, pairs = load_run(done.folder(done.grid.cells[0])), work.mismatched(done, done.grid.cells[0])
    S = work.model_scores(run.model, pairs).block(np.arange(pairs.n_images), np.arange(len(pairs)))
    first = among_ten = 0
    rows = np.flatnonzero(pairs.is_mismatched)
    for row in rows:
        order = [i for i in S[:, row].argsort(descending=True).tolist() if i != pairs.image_of[row]]
        first += order[0] == pairs.true_image_of[row]
        among_ten += pairs.true_image_of[row] in order[:10]
    hits = rematch_hits(run, pairs)
    assert hits == pytest.approx({"hit1": first / len(rows), "hit10": among_ten / len(rows)}, abs=0.01)
    assert rematch_hits(run, replace(pairs, image_of=pairs.true_image_of)) is None


def test_a_broken_row_is_an_input_error(done, tmp_path):
    job = replace(done, out=tmp_path)
    job.results.write_text('{"method": "plain"}\n')
    with pytest.raises(InputError, match=r"results\.jsonl:1: no key 'similarity'"):
        job.rows()
    job.results.write_text("{\n")
    with pytest.raises(InputError, match="not JSON"):
        job.rows()


def test_the_command_reports_and_says_what_is_wrong(done, data, tmp_path, capsys):
    grid = tmp_path / "mine.toml"
    grid.write_text(TEXT)
    command = ["benchmark", str(grid), "--data", str(data), "--out", str(done.out), "--quiet"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "2 of 2 runs have a row in" in told
    assert "table.md" in told
    assert main([*command, "--workers", "0"]) == 2
    assert "workers: 0 is too small" in capsys.readouterr().err
    assert main(["benchmark", "nothing", "--data", str(data), "--out", str(tmp_path / "new")]) == 2
    assert "no such grid" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_several_processes_share_the_work(done, tmp_path):
    job = replace(done, out=tmp_path / "out")
    run_grid(job, workers=2, progress=False)
    assert [timeless(row) for row in job.rows()] == [timeless(row) for row in done.rows()]


def test_a_run_that_rematches_the_data_set_is_asked_for_its_plan(small, tmp_path):
    settings = {"scope": "dataset", "evidence": "image", "folds": 2, "fold_rounds": 1}
    config = small.small_config(warmup_epochs=2, rematching_epochs=1, rematching=settings)
    pairs = small.small_train()
    run = small.train(pairs, small.small_dev(), config, tmp_path / "run", progress=False)
    hits = rematch_hits(run, pairs)
    assert 0 < hits["hit1"] <= hits["hit10"] <= 1
    suspects = run.match_probability(pairs) < config.rematching.matched_above
    assert hits["hit10"] <= suspects[pairs.is_mismatched].mean()  # who is not suspected gets no partner
