"""What holds for all methods: they train on words, on embeddings, by any pooling, in equal steps."""

import dataclasses
from typing import get_args

import numpy as np
import pytest

from l2rm.data.features import Features
from l2rm.training import train as train_module
from l2rm.training.methods.registry import METHODS
from l2rm.training.settings import Method

CHANCE = 2 * 100 * (1 + 5 + 10) / 30
SHORT = {"warmup_epochs": 2, "rematching_epochs": 1, "rematching": {"steps": "pairs"}}


def test_every_name_is_a_method():
    assert set(METHODS) == set(get_args(Method))


def embedded(pairs):
    """The same with captions, and whole images, as vectors."""
    words = np.random.default_rng(0).normal(size=(20, 9))
    names = [*(f"colour{n}" for n in range(10)), *(f"shape{n}" for n in range(9))]
    captions = np.stack([sum(words[names.index(w)] for w in c.split() if w in names) for c in pairs.captions])
    return dataclasses.replace(
        pairs,
        features=Features(array=pairs.features.array[:, 0]),
        caption_features=Features(array=captions.astype(np.float32)),
    )


def single(method):
    return {"objective": "infonce"} if method in ("plain", "oracle") else {}


@pytest.mark.parametrize("method", get_args(Method))
def test_heads_on_two_arrays_of_embeddings(small, tmp_path, method):
    config = small.small_config(method=method, **SHORT, **single(method))
    pairs, dev = embedded(small.small_train()), embedded(small.small_dev())
    run = small.train(pairs, dev, config, tmp_path / "run", progress=False)
    assert run.record["best"]["rsum"] > 2 * CHANCE
    assert [line["steps"] for line in run.metrics] == [12] * 3
    assert run.match_probability(pairs).shape == (360,)


@pytest.mark.parametrize(("method", "pooling"), [("l2rm", "gpo"), ("ncr", "gpo"), ("in2r", "raw"), ("division", "raw")])
def test_any_pooling(small, tmp_path, method, pooling):
    config = small.small_config(method=method, **SHORT)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pooling=pooling))
    run = small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    assert run.record["best"]["rsum"] > 2 * CHANCE


def test_regions_pooled_once_teach_as_regions_pooled_every_time(small, tmp_path, monkeypatch):
    config = small.small_config(method="warmup", warmup_epochs=1, rematching_epochs=0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pooling="raw"))
    pairs, dev = small.small_train(40), small.small_dev()
    once = small.train(pairs, dev, config, tmp_path / "once", progress=False)
    monkeypatch.setattr(train_module, "POOLED_BYTES", 0)
    each = small.train(pairs, dev, config, tmp_path / "each", progress=False)
    for name, value in once.model.state_dict().items():
        np.testing.assert_allclose(value, each.model.state_dict()[name], atol=1e-5)
    assert once.model.shape.regions == 2
    assert once.record["best"] == each.record["best"]
