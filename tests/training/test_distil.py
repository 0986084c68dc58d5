"""A first pass learns a model's order of pairs, and is kept with its run."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from l2rm.cli import main
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.similarity.cascade import pooled, shortlist
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.similarity.settings import DataShape
from l2rm.training.distil import FILE, distil, read_first_pass, write_first_pass
from l2rm.training.run import write_model, write_record
from l2rm.training.settings import TrainConfig


def model_of(small, pairs, similarity="sgr"):
    torch.manual_seed(0)
    config = replace(small.small_config().model, similarity=similarity, similarity_dim=8)
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    model = build_model(config, DataShape(image_dim=19, regions=2, vocabulary_size=len(vocabulary)))
    model.vocabulary = vocabulary
    return model.train()


@pytest.fixture(scope="module")
def taught(small):
    pairs = small.small_pairs(60, seed=1)
    model = model_of(small, pairs)
    return model, pairs, distil(model, pairs, blocks=2, steps=150, batch=40)


def found_of_the_best(model, pairs, cheap_score):
    """What share of the model's own best tenth of the images of a caption is on a list of a fifth."""
    scores = ModelScores(model, pairs)
    images, captions = np.arange(pairs.n_images), np.arange(len(pairs))
    exact = scores.block(images, captions)
    cheap = cheap_score(scores.encoded_images(images), scores.encoded_captions(captions))
    best = torch.zeros_like(exact, dtype=torch.bool)
    best.scatter_(0, exact.topk(len(exact) // 10, 0).indices, True)
    return float(shortlist(cheap, 0.2)[best].float().mean())


def test_lists_hold_what_the_model_ranks_first_on_pairs_never_seen(taught, small):
    model, _, first_pass = taught
    assert model.training
    others = small.small_pairs(60, seed=7)
    untaught = FirstPass(model.config.embed_dim)
    found = found_of_the_best(model, others, first_pass.score)
    assert found > 0.6
    assert found > 2 * found_of_the_best(model, others, pooled)
    assert found > 2 * found_of_the_best(model, others, untaught.score)


def test_the_seed_decides_and_the_global_generator_is_left_alone(taught):
    model, pairs, _ = taught
    state = torch.get_rng_state()
    first, again, other = (distil(model, pairs, blocks=1, steps=2, batch=10, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.word.weight, again.word.weight)
    assert not torch.equal(first.word.weight, other.word.weight)


def test_it_is_kept_with_the_run(taught, tmp_path):
    model, _, first_pass = taught
    with pytest.raises(InputError, match="no such file; make it with `l2rm distil"):
        read_first_pass(tmp_path, model)
    write_first_pass(tmp_path, first_pass)
    known = read_first_pass(tmp_path, model)
    for name, value in first_pass.state_dict().items():
        assert torch.equal(value, known.state_dict()[name])


def test_a_file_of_another_model_is_refused(taught, tmp_path):
    model, _, _ = taught
    write_first_pass(tmp_path, FirstPass(5))
    with pytest.raises(InputError, match=f"{FILE}: not a first pass for this run"):
        read_first_pass(tmp_path, model)
    (tmp_path / FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="distil again"):
        read_first_pass(tmp_path, model)


@pytest.fixture
def run_folder(tmp_path, small):
    """A precomp folder and an SGR run, as if it had been trained there."""
    pairs = small.small_pairs(40, seed=1)
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_ims.npy", pairs.features.array)
        (tmp_path / f"{split}_caps.txt").write_text("\n".join(pairs.captions) + "\n")
    model, folder = model_of(small, pairs), tmp_path / "run"
    folder.mkdir()
    write_record(folder, TrainConfig(model=model.config), model.shape)
    write_model(folder, model)
    model.vocabulary.write(folder / "vocabulary.json")
    return folder, tmp_path


def test_the_commands(run_folder, capsys):
    run, data = run_folder
    evaluating = ["evaluate", str(run), "--data", str(data), "--shortlist", "0.3"]
    assert main(evaluating) == 2
    assert f"make it with `l2rm distil {run} --data DATA`" in capsys.readouterr().err
    assert main(["distil", str(run), "--data", str(data), "--steps", "3", "--quiet"]) == 0
    assert f"written to {run / FILE}" in capsys.readouterr().out
    assert main([*evaluating, "--json", str(data / "m.json"), "--quiet"]) == 0
    shown = capsys.readouterr().out
    scored = float(re.search(r"the model scored ([\d.]+)% of the pairs", shown)[1])
    assert 15 <= scored <= 30
    metrics = json.loads((data / "m.json").read_text())
    assert sorted(metrics) == ["captions", "i2t", "images", "protocol", "rsum", "t2i"]
    assert f"{metrics['rsum']:.1f}" in shown
    assert main([*evaluating[:2], str(run), *evaluating[2:]]) == 2
    assert "shortlist: it is of one run" in capsys.readouterr().err
    assert main([*evaluating[:-1], "1.5"]) == 2
    assert "share of the pairs" in capsys.readouterr().err


def test_a_cosine_has_nothing_to_learn(small):
    pairs = small.small_pairs(20, seed=1)
    with pytest.raises(InputError, match="nothing to shorten"):
        distil(model_of(small, pairs, "cosine"), pairs)
