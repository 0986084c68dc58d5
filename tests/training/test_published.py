"""Checkpoints of the public code become runs with the same similarities, and back; none of them is executed."""

import argparse
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from l2rm.cli import main
from l2rm.data.vocabulary import SPECIAL, Vocabulary
from l2rm.errors import InputError
from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.published import convert, export
from l2rm.training.run import load, load_run, write_model, write_record
from l2rm.training.settings import TrainConfig

GOLDEN = Path(__file__).parent.parent / "similarity"


@pytest.fixture(scope="module", params=["sgr", "saf"])
def golden(request):
    with np.load(GOLDEN / f"{request.param}_golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def state(golden):
    return OrderedDict((n.removeprefix("state/"), value) for n, value in golden.items() if n.startswith("state/"))


@pytest.fixture
def words(tmp_path):
    """A published vocabulary of 50 words."""
    names = [*SPECIAL, *(f"word{number}" for number in range(46))]
    content = {
        "word2idx": {word: number for number, word in enumerate(names)},
        "idx2word": {str(number): word for number, word in enumerate(names)},
        "idx": 50,
    }
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def save(tmp_path):
    """`save(content)`: a checkpoint with it."""

    def write(content):
        torch.save(content, tmp_path / "model_best.pth.tar")
        return tmp_path / "model_best.pth.tar"

    return write


def assert_golden(model, golden):
    similarity = model.similarity(golden["images"], golden["captions"], golden["lengths"])
    torch.testing.assert_close(similarity, golden["similarity"], atol=1e-5, rtol=0)


def published(state):
    options = argparse.Namespace(margin=0.3, tau=0.07, reg=0.07, rho=0.2, data_name="f30k_precomp")
    return {"epoch": 7, "net": state, "best_rsum": 490.5, "opt": options}


def test_a_converted_run_gives_the_public_code_s_similarities(golden, state, words, save, tmp_path):
    run = convert(save(published(state)), words, tmp_path / "run")
    assert_golden(run.model, golden)
    assert_golden(load(tmp_path / "run"), golden)
    assert run.record["converted"] == {"from": "model_best.pth.tar", "epoch": 7, "best_rsum": 490.5}
    told = run.config.rematching
    assert (told.margin, told.tau, told.reg, told.mass) == (0.3, 0.07, 0.07, 0.2)
    assert run.model.vocabulary.tokeniser == "published"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "model.safetensors",
        "vocabulary.json",
    ]


def test_other_shapes_of_the_family_are_read(golden, state, words, save, tmp_path):
    parts = [
        {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        for part in ("img_enc", "txt_enc", "sim_enc")
    ]
    assert_golden(convert(save({"model": parts}), words, tmp_path / "list").model, golden)
    several = {name.replace("img_enc.", "img_enc.module."): value for name, value in state.items()}
    assert_golden(convert(save({"net": several}), words, tmp_path / "several").model, golden)


def test_a_row_for_the_mask_is_a_word_more(golden, state, words, save, tmp_path):
    rows = state["txt_enc.embed.weight"]
    state["txt_enc.embed.weight"] = torch.cat([rows, rows[:1]])
    run = convert(save({"net": state}), words, tmp_path / "run")
    assert run.model.vocabulary.words[-1] == "<mask>"
    assert_golden(run.model, golden)


def test_export_gives_the_same_checkpoint_back(state, words, save, tmp_path):
    run = convert(save(published(state)), words, tmp_path / "run")
    beside = export(run, tmp_path / "again.pth.tar")
    assert beside == tmp_path / "again_vocab.json"
    assert json.loads(beside.read_text()) == json.loads(words.read_text())
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "again.pth.tar", weights_only=True)
    assert (content["epoch"], content["best_rsum"]) == (7, 490.5)
    assert content["opt"].module_name == run.config.model.similarity.upper()
    kept = {name: value for name, value in content["net"].items() if not name.endswith("num_batches_tracked")}
    assert kept.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in kept.items())
    assert convert(tmp_path / "again.pth.tar", beside, tmp_path / "third").config == run.config


def test_what_the_public_code_has_not_is_not_exported(tmp_path):
    config = TrainConfig(model=ModelConfig(similarity="cosine", embed_dim=8))
    shape = DataShape(image_dim=4, regions=1, vocabulary_size=4)
    (tmp_path / "run").mkdir(exist_ok=True)
    write_record(tmp_path / "run", config, shape)
    write_model(tmp_path / "run", build_model(config.model, shape))
    Vocabulary(words=SPECIAL).write(tmp_path / "run" / "vocabulary.json")
    with pytest.raises(InputError, match="only sgr and saf models"):
        export(load_run(tmp_path / "run"), tmp_path / "no.pth.tar")
    assert not (tmp_path / "no.pth.tar").exists()


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("where", ["net", "opt", "extra"])
def test_a_hostile_checkpoint_is_refused_by_name_and_not_executed(state, words, save, tmp_path, capsys, where):
    content = published(state) | {where: Hostile(tmp_path / "pwned")}
    arguments = ["convert", str(save(content)), "--vocab", str(words), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "posix.mkdir" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "run").exists()


def bad(name, state, path):
    """Make the checkpoint bad in one way; what the error says."""
    if name == "no such file":
        path.unlink()
        return "no such file"
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
        return "checkpoint"
    if name in ("text", "empty", "a torn number"):
        path.write_bytes({"text": b"not a checkpoint", "empty": b"", "a torn number": b"\x80\x02J"}[name])
        return "checkpoint"
    content, words = {
        "a tensor": (torch.zeros(3), "holds a Tensor"),
        "no state dict": ({"epoch": 3, "opt": argparse.Namespace()}, "no state dict under net or model"),
        "other things in the state": ({"net": {**state, "epoch": 3}}, "no state dict under net or model"),
        "a parameter missing": (
            {"net": {n: v for n, v in state.items() if n != "sim_enc.sim_eval_w.bias"}},
            "lacks sim_enc.sim_eval_w.bias",
        ),
        "no image encoder": ({"net": {n: v for n, v in state.items() if "img_enc" not in n}}, "lacks img_enc.fc"),
        "a parameter more": ({"net": {**state, "sim_enc.more": torch.zeros(1)}}, "has sim_enc.more"),
        "a parameter of no numbers": (
            {"net": {**state, "img_enc.fc.weight": torch.zeros(0, 32)}},
            "img_enc.fc.weight has no numbers of its own",
        ),
        "a parameter blown up": (
            {"net": {**state, "txt_enc.embed.weight": torch.zeros(50, 1).expand(50, 10**13)}},
            "txt_enc.embed.weight has no numbers of its own",
        ),
        "an option out of range": (
            {"net": state, "opt": argparse.Namespace(tau=-1.0)},
            "rematching.tau",
        ),
        "a wrong shape": ({"net": {**state, "sim_enc.sim_eval_w.bias": torch.zeros(2)}}, "do not fit together"),
        "another vocabulary": (
            {"net": {**state, "txt_enc.embed.weight": torch.zeros(60, 24)}},
            "has 50 words, but",
        ),
    }[name]
    torch.save(content, path)
    return words


@pytest.mark.parametrize(
    "name",
    [
        "no such file",
        "truncated",
        "text",
        "empty",
        "a torn number",
        "a parameter of no numbers",
        "a parameter blown up",
        "an option out of range",
        "a tensor",
        "no state dict",
        "other things in the state",
        "a parameter missing",
        "no image encoder",
        "a parameter more",
        "a wrong shape",
        "another vocabulary",
    ],
)
def test_bad_checkpoints_are_one_line_and_leave_nothing(state, words, save, tmp_path, capsys, name):
    path = save(published(state))
    expected = bad(name, state, path)
    assert main(["convert", str(path), "--vocab", str(words), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert {one.name for one in tmp_path.iterdir()} <= {"model_best.pth.tar", "vocab.json"}


def test_the_command_both_ways(golden, state, words, save, tmp_path, capsys):
    path, out = save(published(state)), tmp_path / "run"
    assert main(["convert", str(path), "--out", str(out)]) == 2
    assert "--vocab" in capsys.readouterr().err
    assert main(["convert", str(path), "--vocab", str(words), "--out", str(out)]) == 0
    assert "36 regions of 32, embed 64, 50 words" in capsys.readouterr().out
    assert main(["convert", str(path), "--vocab", str(words), "--out", str(out)]) == 2
    assert "there is a run already" in capsys.readouterr().err
    assert main(["convert", str(out), "--out", str(tmp_path / "back.pth.tar")]) == 0
    assert main(["convert", str(out), "--out", str(tmp_path / "back.pth.tar")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert_golden(convert(tmp_path / "back.pth.tar", tmp_path / "back_vocab.json", tmp_path / "third").model, golden)


def test_odd_facts_are_left_out(state, words, save, tmp_path):
    options = argparse.Namespace(margin=True, tau=float("nan"), reg="x")
    content = {"net": state, "epoch": torch.tensor(3), "best_rsum": float("inf"), "opt": options}
    run = convert(save(content), words, tmp_path / "run")
    assert run.record["converted"] == {"from": "model_best.pth.tar", "epoch": 3, "best_rsum": None}
    assert (run.config.rematching.margin, run.config.rematching.tau) == (0.2, 0.05)


def test_nothing_that_is_there_is_overwritten(state, words, save, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep me")
    path = save({"net": state})
    with pytest.raises(InputError, match="a folder with other files in it"):
        convert(path, words, tmp_path / "mine")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep me"
    run = convert(path, words, tmp_path / "run")
    (tmp_path / "f30k_vocab.json").write_text("{}")
    with pytest.raises(InputError, match=r"f30k_vocab\.json: is there already"):
        export(run, tmp_path / "f30k.pth.tar")
    assert (tmp_path / "f30k_vocab.json").read_text() == "{}"
    assert not (tmp_path / "f30k.pth.tar").exists()


def test_words_read_by_other_rules_are_not_exported(state, words, save, tmp_path):
    run = convert(save({"net": state}), words, tmp_path / "run")
    run.model.vocabulary = Vocabulary(words=run.model.vocabulary.words, tokeniser="unicode")
    with pytest.raises(InputError, match="reads words by 'unicode'"):
        export(run, tmp_path / "x.pth.tar")


def test_a_converted_run_cannot_be_trained_on(state, words, save, tmp_path, small):
    run = convert(save({"net": state}), words, tmp_path / "run")
    with pytest.raises(InputError, match="was converted from a checkpoint"):
        small.train(small.small_train(), small.small_dev(), run.config, run.folder, resume=True, progress=False)
    assert load_run(tmp_path / "run").record == run.record
