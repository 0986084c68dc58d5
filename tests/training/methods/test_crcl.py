"""CRCL's loss against a plain loop, its labels, its rounds."""

import math

import numpy as np
import pytest
import torch

from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection
from l2rm.training.check import check_config
from l2rm.training.methods.crcl import Crcl, active_complementary
from l2rm.training.methods.settings import CrclConfig
from l2rm.training.settings import TrainConfig
from l2rm.training.trainer import Trainer


def test_loss_against_a_plain_loop():
    S = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([1.0, 0.3, 0.0, 0.7], dtype=torch.float64)
    active = complementary = 0.0
    for T in (S.tolist(), S.T.tolist()):
        for i in range(4):
            total = sum(math.exp(T[i][j] / 0.1) for j in range(4))
            p = [math.exp(T[i][j] / 0.1) / total for j in range(4)]
            active -= float(labels[i]) * math.log(p[i]) / 4
            tangents = [math.tan(one) for one in p]
            complementary += (sum(tangents) - tangents[i]) / sum(tangents) ** (1 - float(labels[i])) / 4
    found = active_complementary(S, labels, 0.1)
    assert [float(one) for one in found] == pytest.approx([active, complementary])


@pytest.fixture
def run(small, tmp_path, monkeypatch):
    """A run of three rounds (2, 2 and 8 epochs), with the labels before and after every epoch's first step."""
    labels, first_weights, learn = [], [], Crcl.learn

    def watched(self, epoch, *batches):
        before = self.state["labels"].clone()
        if not labels or labels[-1][0] != epoch:
            first_weights.append((epoch, self.model.image_tower.project.weight.detach().clone()))
        taught = learn(self, epoch, *batches)
        labels.append((epoch, batches[0].rows, before, self.state["labels"].clone()))
        return taught

    monkeypatch.setattr(Crcl, "learn", watched)
    config = small.small_config(
        method="crcl", warmup_epochs=6, rematching_epochs=6, decay_every=9,
        crcl=CrclConfig(rounds=3, early_share=0.16, frozen_epochs=1),
    )  # fmt: skip
    found = small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    return found, labels, dict(first_weights)


def test_rounds_start_afresh_and_keep_the_labels(small, run):
    found, labels, first_weights = run
    assert [line["stage"] for line in found.metrics] == ["round 1"] * 2 + ["round 2"] * 2 + ["round 3"] * 8
    assert [line["steps"] for line in found.metrics] == [12] * 12
    bound = 1.01 * (6 / (19 + 16)) ** 0.5  # of Xavier's uniform
    fresh = [epoch for epoch, weight in first_weights.items() if float(weight.abs().max()) < bound]
    assert {0, 2, 4} <= set(fresh)
    assert found.metrics[3]["dev"]["rsum"] < found.metrics[-1]["dev"]["rsum"]
    for epoch, rows, before, after in labels:
        rest = np.setdiff1d(np.arange(360), rows)
        assert torch.equal(before[rest], after[rest])
        kept = torch.where(before[rows] < 0.1, 0.0, before[rows])
        if epoch in (2, 4):  # frozen, at the start of a later round
            assert torch.equal(after[rows], kept)
        elif epoch:
            assert (after[rows] <= 0.8 * before[rows] + 0.2 + 1e-6).all()
            assert ((after[rows] == 0) | (after[rows] >= 0.1)).all()
    pairs = small.small_train()
    probability = found.match_probability(pairs)
    assert np.array_equal(probability, labels[-1][3].double().numpy())
    assert measure_detection(probability, pairs.is_mismatched).auroc > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "crcl.rounds: 0 is too small"),
        ({"early_share": 0.0}, "crcl.early_share: 0.0 is not positive"),
        ({"momentum": 1.5}, "crcl.momentum: 1.5 is too large"),
        ({"least": 1.0}, "crcl.least: 1.0 is too large"),
    ],
)
def test_rounds_and_shares_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError) as error:
        check_config(TrainConfig(method="crcl", crcl=CrclConfig(**changes)))
    assert str(error.value).startswith(message)


def test_weights_do_change_at_a_restart(small, run):
    _, _, first_weights = run
    assert not torch.allclose(first_weights[0], first_weights[2])


def test_optimiser_forgets_at_a_restart(small, monkeypatch, tmp_path):
    steps, learn = [], Trainer._learn

    def watched(self, epoch, *batches):
        learn(self, epoch, *batches)
        steps.append(int(next(iter(self.optimiser.state.values()))["step"]))

    monkeypatch.setattr(Trainer, "_learn", watched)
    config = small.small_config(
        method="crcl", warmup_epochs=1, rematching_epochs=1, crcl=CrclConfig(rounds=2, early_share=0.5)
    )
    small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    assert steps == [*range(1, 13), *range(1, 13)]
