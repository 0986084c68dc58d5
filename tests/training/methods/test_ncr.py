"""NCR's formulas against plain loops, and what its two networks learn from."""

import numpy as np
import pytest
import torch

from l2rm.evaluation.detection import measure_detection
from l2rm.similarity.ensemble import Ensemble
from l2rm.training.methods.ncr import Ncr, predicted_label, soft_margin_violation
from l2rm.training.run import load
from l2rm.training.trainer import Trainer


def test_soft_margins_against_a_plain_loop():
    S = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    margins = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.2])
    expected = sum(
        max(max(0, margins[i] + S[i, j] - S[i, i]) for j in range(5) if j != i)
        + max(max(0, margins[i] + S[j, i] - S[i, i]) for j in range(5) if j != i)
        for i in range(5)
    )
    assert float(soft_margin_violation(S, margins)) == pytest.approx(float(expected), abs=1e-6)


def test_prediction_against_a_plain_loop():
    S = torch.rand(12, 12, generator=torch.Generator().manual_seed(1)) + 0.3 * torch.eye(12)
    p = []
    for i in range(12):
        to_caption = sum(max(0.0, 0.2 + float(S[i, j] - S[i, i])) for j in range(12) if j != i) / 12
        to_image = sum(max(0.0, 0.2 + float(S[j, i] - S[i, i])) for j in range(12) if j != i) / 12
        p.append(min(max(0.2 - (to_caption + to_image) / 2, 0), 0.2))
    best = sorted(p)[-2:]
    expected = [min(value / (sum(best) / 2), 1) for value in p]
    np.testing.assert_allclose(predicted_label(S, 0.2), expected, atol=1e-6)


def test_no_pair_predicted_is_no_division_by_zero():
    assert predicted_label(-torch.eye(4), 0.2).tolist() == [0, 0, 0, 0]


def test_each_network_learns_from_what_the_other_one_trusts(small, monkeypatch, tmp_path):
    seen, learn = [], Ncr.learn

    def watched(self, epoch, *batches):
        rows = [None if batch is None else batch.rows for batch in batches]
        trusted = self.state["match_probability"]
        seen.append(
            (epoch, rows, None if trusted is None else trusted.numpy().copy(), [b and b.weights for b in batches])
        )
        return learn(self, epoch, *batches)

    monkeypatch.setattr(Ncr, "learn", watched)
    pairs = small.small_train()
    config = small.small_config(method="ncr", warmup_epochs=3, rematching_epochs=2)
    run = small.train(pairs, small.small_dev(), config, tmp_path / "run", progress=False)
    assert [line["steps"] for line in run.metrics] == [12] * 5
    for epoch, rows, trusted, weights in seen:
        if epoch < 3:
            assert len(rows) == 2
            assert not np.array_equal(rows[0], rows[1])  # an order each
            continue
        for member in (0, 1):
            assert (trusted[1 - member][rows[member]] > 0.5).all()
            assert weights[member].tolist() == trusted[1 - member][rows[member]].tolist()
            suspects = rows[2 + member]
            assert (suspects is None) == (epoch == 3)  # half of the two epochs
            if suspects is not None:
                assert (trusted[1 - member][suspects] <= 0.5).all()
    assert measure_detection(run.match_probability(pairs), pairs.is_mismatched).auroc > 0.9
    assert run.metrics[-1]["dev"]["rsum"] > 400
    assert isinstance(load(tmp_path / "run"), Ensemble)


def test_both_networks_are_clipped_and_taught(small, monkeypatch, tmp_path):
    before = {}
    learn = Trainer._learn

    def watched(self, epoch, *batches):
        if not before:
            before.update({name: value.clone() for name, value in self.model.state_dict().items()})
        learn(self, epoch, *batches)

    monkeypatch.setattr(Trainer, "_learn", watched)
    config = small.small_config(method="ncr", warmup_epochs=1, rematching_epochs=0)
    run = small.train(small.small_train(20), small.small_dev(), config, tmp_path / "run", progress=False)
    after = run.model.state_dict()
    assert {name.split(".")[1] for name in after} == {"0", "1"}
    assert all(not torch.equal(before[name], after[name]) for name in after if "gru" in name)
