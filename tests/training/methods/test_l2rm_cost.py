"""Training with the equivariant cost, with a memory, and by Gaussian mixtures."""

import math
import os
import signal

import pytest
import torch

from l2rm.errors import InputError
from l2rm.rematching.equivariant import EquivariantCost
from l2rm.training.interrupt import Interrupted
from l2rm.training.methods.l2rm import Rematch
from l2rm.training.trainer import Trainer

CHANCE = 2 * 100 * (1 + 5 + 10) / 30
EQUIVARIANT = {"cost": "equivariant", "targets": "mass", "mass": 0.3, "planted": 0.3, "queue_size": 0}


def go(small, out, **rematching):
    config = small.small_config(rematching=rematching)
    return small.train(small.small_train(), small.small_dev(), config, out, resume=True, progress=False)


def same(one, two):
    weights, others = one.model.state_dict(), two.model.state_dict()
    return all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture
def methods(monkeypatch):
    """Every method that is made from now on."""
    made, begin = [], Rematch.__init__

    def watched(self, *arguments):
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Rematch, "__init__", watched)
    return made


@pytest.mark.parametrize("memory", [0, 50])
def test_the_cost_learns_beside_the_model(small, tmp_path, methods, memory):
    run = go(small, tmp_path / "run", **EQUIVARIANT, memory=memory)
    assert run.record["best"]["rsum"] > 4 * CHANCE
    cost = [line["losses"]["cost"] for line in run.metrics[3:]]
    assert cost[-1] < 0.75 * cost[0] < 0.75 * math.log(2)  # which is the loss of not knowing anything
    (method,) = methods
    assert isinstance(method.cost, EquivariantCost)
    assert len(method.state["memory_ids"]) == memory
    assert method.state["memory_ids"].unique().shape == (memory,)
    transport = run.metrics[-1]["transport"]
    assert transport["mass"] == pytest.approx(0.3, abs=0.01)
    assert transport["unconverged"] == 0


def test_one_that_was_stopped_ends_as_one_that_was_not(small, tmp_path, monkeypatch):
    settings = {**EQUIVARIANT, "memory": 50}
    whole = go(small, tmp_path / "whole", **settings)
    learn, done = Trainer._learn, 0

    def signalled(self, *arguments):
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == 41:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_learn", signalled)
    with pytest.raises(Interrupted):
        go(small, tmp_path / "run", **settings)
    assert same(go(small, tmp_path / "run", **settings), whole)


def test_over_the_data_set_the_cost_changes_what_is_rematched(small, tmp_path):
    settings = {"scope": "dataset", "folds": 2, "fold_rounds": 1, "evidence": "image", "take": "weight"}
    linear = go(small, tmp_path / "linear", **settings)
    equivariant = go(small, tmp_path / "equivariant", **settings, cost="equivariant")
    plans = [run.metrics[-1]["division"]["plan"] for run in (linear, equivariant)]
    assert plans[0]["reg"] != plans[1]["reg"]
    assert plans[1]["converged"]
    assert plans[1]["hit1"] > 0.3
    assert equivariant.record["best"]["rsum"] > 4 * CHANCE


def test_gaussians_divide_as_betas_do(small, tmp_path):
    run = go(small, tmp_path / "run", mixture="gaussian")
    division = run.metrics[-1]["division"]
    assert division["accuracy"] > 0.9
    assert division["mean"][0] < division["mean"][1]
    assert "alpha" not in division


def test_a_memory_wants_whole_vectors(small, tmp_path):
    config = small.small_config(rematching={"memory": 10})
    config = type(config)(**{**vars(config), "model": type(config.model)(similarity="sgr")})
    with pytest.raises(InputError, match=r"rematching\.memory: sgr compares regions"):
        small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
