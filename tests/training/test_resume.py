"""A run that was stopped, by whatever means, ends as if it had not been."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.data.features import Features
from l2rm.errors import InputError
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.scoring import ModelScores
from l2rm.training import divide as divide_module
from l2rm.training import trainer
from l2rm.training.interrupt import Interrupted
from l2rm.training.methods import divided
from l2rm.training.run import load_run
from l2rm.training.trainer import Trainer

SCRIPT = Path(__file__).with_name("small_run.py")


@pytest.fixture
def go(small, tmp_path):
    def run(out=tmp_path / "run", pairs=None, **config):
        pairs = small.small_train() if pairs is None else pairs
        return small.train(pairs, small.small_dev(), small.small_config(**config), out, resume=True, progress=False)

    return run


def timeless(value):
    """Metrics without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def assert_same(run, finished):
    for name in ("model.safetensors", "pairs.parquet", "vocabulary.json"):
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    assert timeless(run.metrics) == timeless(finished.metrics)
    assert timeless(run.record) == timeless(finished.record)
    assert not [path for path in run.folder.rglob("*") if path.name.startswith(".") or path.name == "lock"]


def stop_after(monkeypatch, steps):
    """Let a signal arrive in this process after so many steps."""
    learn, done = Trainer._learn, 0

    def signalled(self, *arguments):
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_learn", signalled)


def start(out, steps, save_seconds):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(out), str(steps), str(save_seconds)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout.readline() == "now\n", process.stderr.read()
    return process


def test_after_a_kill_in_the_middle_of_a_rematching_epoch(finished, go, tmp_path):
    process = start(tmp_path / "run", steps=40, save_seconds=0)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=120) == -signal.SIGKILL
    process.communicate()
    run = tmp_path / "run"
    assert (run / "lock").exists()
    saved = torch.load(run / "last" / "state.pt", weights_only=True)
    assert (saved["epoch"], 0 < saved["step"] < 7) == (3, True)
    assert_same(go(), finished)


@pytest.mark.long
def test_after_an_interrupt_of_a_process(finished, go, tmp_path):
    process = start(tmp_path / "run", steps=17, save_seconds=1000)
    with pytest.raises(InputError, match=f"process {process.pid} on .* is training there"):
        go()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert "stopped by SIGINT" in errors
    assert not (tmp_path / "run" / "lock").exists()
    saved = torch.load(tmp_path / "run" / "last" / "state.pt", weights_only=True)
    assert (saved["epoch"], saved["step"]) == (1, 5)
    assert_same(go(), finished)


@pytest.mark.parametrize(
    ("steps", "number"),
    [(1, signal.SIGINT), (12, signal.SIGTERM), (36, signal.SIGINT), (37, signal.SIGTERM), (55, signal.SIGINT)],
)
def test_after_an_interrupt_at_any_step(finished, go, monkeypatch, steps, number):
    learn, done = Trainer._learn, 0

    def signalled(self, *arguments):
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == steps:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_learn", signalled)
    with pytest.raises(Interrupted) as interrupted:
        go()
    assert interrupted.value.signal == number
    assert done == steps  # not one more
    assert_same(go(), finished)


def test_after_an_interrupt_during_the_evaluation(finished, go, monkeypatch):
    evaluate, done = trainer.evaluate_scores, 0

    def signalled(*arguments):
        nonlocal done
        done += 1
        if done in (2, 6):
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(trainer, "evaluate_scores", signalled)
    for _ in range(2):  # the second one as the last epoch ends
        with pytest.raises(Interrupted):
            go()
    assert_same(go(), finished)


@pytest.mark.parametrize("what", ["divide", "evaluate_scores"])
def test_a_signal_is_not_kept_waiting(finished, go, monkeypatch, what):
    """It comes in the middle of a long pass over the data, and the pass goes on for one more block at most."""
    asked, signalled_at = 0, None
    owner, name = (RetrievalModel, "forward") if what == "divide" else (ModelScores, "block")
    room = divided if what == "divide" else trainer
    original, inner = getattr(room, what), getattr(owner, name)

    def counted(self, *arguments, **options):
        nonlocal asked, signalled_at
        asked += 1
        if inside and signalled_at is None:
            signalled_at = asked
            os.kill(os.getpid(), signal.SIGINT)
        return inner(self, *arguments, **options)

    inside = False

    def entered(*arguments, **options):
        nonlocal inside
        inside = True
        try:
            many_blocks = {"block_images": 8} if what == "evaluate_scores" else {}
            return original(*arguments, **options, **many_blocks)
        finally:
            inside = False

    monkeypatch.setattr(owner, name, counted)
    monkeypatch.setattr(room, what, entered)
    with pytest.raises(Interrupted):
        go()
    assert asked == signalled_at
    monkeypatch.undo()
    assert_same(go(), finished)


def test_after_a_crash_between_model_and_state(finished, go, monkeypatch):
    save = Trainer.save

    def crash(self):
        if self.state["epoch"] == 4:
            raise OSError(28, "No space left on device")
        save(self)

    monkeypatch.setattr(Trainer, "save", crash)
    with pytest.raises(OSError, match="No space left"):
        go()
    monkeypatch.setattr(Trainer, "save", save)
    assert_same(go(), finished)


def test_candidates_go_on_where_they_stopped(small, go, monkeypatch, tmp_path):
    settings = {"method": "plain", "warmup_epochs": 1, "rematching_epochs": 1}
    whole = small.train(
        small.small_train(), small.small_dev(), small.small_config(**settings), tmp_path / "whole", progress=False
    )
    learn, done = Trainer._learn, 0

    def signalled(self, *arguments):
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == 24 + 5:  # in the second candidate
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_learn", signalled)
    with pytest.raises(Interrupted):
        go(**settings)
    run = go(**settings)
    assert done == 3 * 24
    assert_same(run, whole)
    go(**settings)
    assert done == 3 * 24


@pytest.mark.parametrize(("method", "steps"), [("division", 41), ("ncr", 41), ("in2r", 41), ("crcl", 29), ("crcl", 24)])
def test_every_method_goes_on_where_it_stopped(small, go, monkeypatch, tmp_path, method, steps):
    """In an epoch after a division; in a round of crcl, and just as the next one is to begin."""
    settings = {"method": method, "warmup_epochs": 3, "rematching_epochs": 2}
    whole = small.train(
        small.small_train(), small.small_dev(), small.small_config(**settings), tmp_path / "whole", progress=False
    )
    learn, done = Trainer._learn, 0

    def signalled(self, *arguments):
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_learn", signalled)
    with pytest.raises(Interrupted):
        go(**settings)
    assert_same(go(**settings), whole)


def test_a_finished_run_is_returned_at_once(finished, go, tmp_path, monkeypatch):
    shutil.copytree(finished.folder, tmp_path / "run")
    monkeypatch.setattr(Trainer, "__init__", lambda *_, **__: pytest.fail("trains again"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.name != "log.txt"}
    run = go()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert timeless(run.metrics) == timeless(finished.metrics)
    assert "nothing is left to do" in (tmp_path / "run" / "log.txt").read_text()


def test_device_and_times_of_saving_may_change(finished, go, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    assert go(device="auto", save_seconds=5.0).folder == tmp_path / "run"


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, "lr was 0.02 and is now 0.5"),
        ({"rematching": {"mass": 0.2}}, "rematching.mass was 0.1 and is now 0.2"),
        ({"method": "warmup"}, "method was l2rm and is now warmup"),
    ],
)
def test_another_configuration_is_refused(finished, go, tmp_path, changes, message, is_finished):
    shutil.copytree(finished.folder, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text()) | {"finished": is_finished}
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        go(**changes)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == record


def test_other_pairs_are_refused(finished, go, small, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    with pytest.raises(InputError, match="was trained on other pairs"):
        go(pairs=small.small_train(ratio=0.2))


def test_a_run_whose_state_is_torn_ends_as_if_it_were_not(finished, go, monkeypatch, tmp_path):
    stop_after(monkeypatch, steps=40)
    with pytest.raises(Interrupted):
        go()
    path = tmp_path / "run" / "last" / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    assert_same(go(), finished)
    assert "going on from the one before it" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("damage", [b"", b"torn", "flipped"])
def test_damaged_weights_are_taken_from_their_copy_and_that_is_said(finished, go, tmp_path, damage, caplog):
    run = shutil.copytree(finished.folder, tmp_path / "run")
    path = run / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 4
    path.write_bytes(whole if damage == "flipped" else damage)
    loaded = load_run(run)
    assert all(map(torch.equal, loaded.model.state_dict().values(), finished.model.state_dict().values()))
    assert re.search(r"model\.safetensors: is damaged .*; its copy .*best\.safetensors is taken instead", caplog.text)
    assert_same(go(), finished)  # puts the copy in its place
    assert "restored from its copy" in (run / "log.txt").read_text()
    path.write_bytes(whole)
    (run / "last" / "best.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged \(its checksum is wrong\); train again"):
        load_run(run)


def test_features_that_have_changed_are_refused(go, small, tmp_path, monkeypatch):
    def on_disk(pairs):
        return dataclasses.replace(pairs, features=Features.open(tmp_path / "ims.npy"))

    pairs = small.small_train()
    np.save(tmp_path / "ims.npy", pairs.features.array)
    stop_after(monkeypatch, steps=3)
    with pytest.raises(Interrupted):
        go(pairs=on_disk(pairs))
    changed = pairs.features.array.copy()
    changed[7, 1, 3] += 1
    np.save(tmp_path / "ims.npy", changed)
    with pytest.raises(InputError, match="the features of the train images have changed since the run was started"):
        go(pairs=on_disk(pairs))
    np.save(tmp_path / "ims.npy", pairs.features.array)
    os.utime(tmp_path / "ims.npy", ns=(10, 10))  # a copy of the same is as good
    stop_after(monkeypatch, steps=3)
    with pytest.raises(Interrupted):
        go(pairs=on_disk(pairs))


# ------------------------------------------------------------------------------------------- numbers that are none


@pytest.mark.parametrize("where", ["the loss", "the gradient", "the pairs to rematch"])
def test_a_step_that_is_not_finite_is_told_undone_and_saved(finished, go, monkeypatch, tmp_path, where):
    learn, done = Trainer._learn, 0

    def spoiled(self, epoch, batch, suspects=None):
        nonlocal done
        done += 1
        if done == 40 and where == "the gradient":
            parameter = next(self.model.parameters())
            hook = parameter.register_hook(lambda gradient: gradient * torch.nan)
            try:
                return learn(self, epoch, *(one for one in (batch, suspects) if one is not None))
            finally:
                hook.remove()
        if done == 40:
            spoilt = batch if where == "the loss" else suspects
            spoilt.images[2, 0, 0] = torch.nan
        return learn(self, epoch, *(one for one in (batch, suspects) if one is not None))

    monkeypatch.setattr(Trainer, "_learn", spoiled)
    with pytest.raises(RuntimeError, match=r"epoch 4, step \d: .*saved .* of pairs .*not_finite\.json") as raised:
        go()
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert (told["epoch"], len(told["pair_ids"])) == (4, 60)
    assert f"of pairs {', '.join(told['pair_ids'][:5])} and 55 more" in str(raised.value)
    assert set(told["pair_ids"]) <= set(small_ids(finished))
    monkeypatch.setattr(Trainer, "_learn", learn)
    (tmp_path / "run" / "not_finite.json").unlink()
    assert_same(go(), finished)  # the fault came from outside and is gone


@pytest.mark.parametrize("similarity", ["sgr", "saf"])
def test_means_and_variances_are_undone_too(small, monkeypatch, tmp_path, similarity):
    """Those of the norms move in the forward pass, before anybody knows that the loss is no number."""
    config = small.small_config(method="warmup", warmup_epochs=1, rematching_epochs=0)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, similarity=similarity, similarity_dim=4)
    )
    learn, done = Trainer._learn, 0

    def spoiled(self, epoch, batch):
        nonlocal done
        done += 1
        if done == 5:
            batch.images[2, 0, 0] = torch.nan
        return learn(self, epoch, batch)

    def go(folder):
        return small.train(
            small.small_train(), small.small_dev(), config, tmp_path / folder, resume=True, progress=False
        )

    monkeypatch.setattr(Trainer, "_learn", spoiled)
    with pytest.raises(RuntimeError, match="epoch 1, step 5"):
        go("run")
    monkeypatch.setattr(Trainer, "_learn", learn)
    (tmp_path / "run" / "not_finite.json").unlink()
    assert_same(go("run"), go("whole"))


def small_ids(run):
    return pq.read_table(run.folder / "pairs.parquet")["pair_id"].to_pylist()


def test_a_division_of_losses_that_are_not_finite_names_the_pair(go, monkeypatch):
    pair_loss = divide_module.pair_loss

    def spoilt(S, margin):
        losses = pair_loss(S, margin)
        losses[-1] = torch.nan
        return losses

    monkeypatch.setattr(divide_module, "pair_loss", spoilt)
    with pytest.raises(InputError, match=r"small: the model gives pair \d+ \(row \d+\) the loss nan"):
        go()
