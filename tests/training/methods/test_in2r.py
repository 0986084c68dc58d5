"""IN2R's memory and neighbours against plain loops, and what its networks learn from."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from l2rm.data.batches import Batches
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection
from l2rm.rematching.objectives import max_violation, symmetric_cross_entropy
from l2rm.similarity.ensemble import Ensemble
from l2rm.similarity.model import build_model
from l2rm.training.check import check_config
from l2rm.training.methods.in2r import In2r, Refiner
from l2rm.training.methods.settings import In2rConfig
from l2rm.training.run import load
from l2rm.training.train import data_shape

SETTINGS = {"method": "in2r", "warmup_epochs": 3, "rematching_epochs": 2}


@pytest.fixture
def method(small):
    """Of two fresh networks without dropout, a memory of five pairs, and a division that is known."""
    pairs, config = small.small_train(40), small.small_config(**SETTINGS)
    model = dataclasses.replace(config.model, dropout=0.0)
    config = dataclasses.replace(config, model=model, in2r=In2rConfig(memory=5, neighbours=2))
    vocabulary = Vocabulary.build(pairs.captions, tokeniser="unicode", min_count=1)
    torch.manual_seed(0)
    networks = build_model(model, data_shape(pairs, vocabulary), networks=2)
    method = In2r(networks, Batches(pairs, vocabulary), config)
    told = torch.full((2, len(pairs)), 0.2)
    told[:, :20], told[:, 20:30] = 0.6, 0.9  # the trusted ones are 0.7 on average
    method.state["match_probability"] = told
    return method


def batch(method, rows, weights=None):
    rows = np.asarray(rows)
    return method.batches.batch(rows, None, None if weights is None else np.asarray(weights, dtype=np.float32))


def test_both_networks_start_alike(method):
    first, second = method.model.members
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])


def test_memory_holds_the_most_trusted_and_forgets_the_oldest(method):
    rows = [18, 19, 20, 21, 22, 30]
    asked = batch(method, rows, method.state["match_probability"][1][rows])
    vectors = torch.arange(6.0)[:, None].expand(6, 16), 10 + torch.arange(6.0)[:, None].expand(6, 16)
    method._remember(0, asked, vectors)
    assert method.state["memory"][0, :, :, 0].tolist() == [[2, 3, 4, 0, 0], [12, 13, 14, 0, 0]]
    method._remember(0, asked, vectors)
    assert method.state["memory"][0, 0, :, 0].tolist() == [4, 3, 4, 2, 3]
    assert method.state["remembered"] == [6, 0]
    assert not method.state["memory"][1].any()
    rows = [20, 21, 22, 23, 24, 25, 26]  # more than it holds
    asked = batch(method, rows, method.state["match_probability"][1][rows])
    method._remember(1, asked, (torch.arange(7.0)[:, None].expand(7, 16),) * 2)
    assert sorted(method.state["memory"][1, 0, :, 0].tolist()) == [2, 3, 4, 5, 6]


def test_matched_pairs_by_a_plain_loop(method):
    """Without dropout both views are one; the other captions of an image are no negatives of its second view."""
    rows = [20, 21, 22, 24]  # two captions of one image among them
    asked = batch(method, rows, [0.9] * 4)
    with torch.no_grad():
        model = method.model.members[0]
        images, captions = (
            model.encode_images(asked.images).whole,
            model.encode_captions(asked.captions, asked.lengths).whole,
        )
        loss = float(method._from_matched_pairs(3, 0, asked))
    within = images @ images.T
    ids = asked.image_ids.tolist()
    expected = float(max_violation(images @ captions.T, 0.2) + max_violation(captions @ captions.T, 0.3))
    for i in range(4):
        others = [j for j in range(4) if ids[j] != ids[i]]
        expected += 2 * max(max(0.0, 0.3 + float(within[i, j] - within[i, i])) for j in others)
    assert len(set(ids)) == 3
    assert loss == pytest.approx(expected, abs=1e-5)


def test_suspects_learn_from_the_partners_of_their_nearest(method):
    """With a refiner that only averages: its attention silenced, its norm undone."""

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.ones(()))

        def forward(self, vectors):
            return normalize(vectors.mean(1), dim=1) * self.unused

    generator = torch.Generator().manual_seed(0)
    method.state["memory"][1] = normalize(torch.randn(2, 5, 16, generator=generator), dim=2)
    method.state["remembered"] = [0, 3]  # two places are empty still
    method.to_captions[0] = method.to_images[0] = Mean()
    asked = batch(method, [30, 34, 36])
    loss = method._from_neighbours(0, asked)
    with torch.no_grad():
        model = method.model.members[0]
        kinds = model.encode_images(asked.images).whole, model.encode_captions(asked.captions, asked.lengths).whole
        memory, expected = method.state["memory"][1], 0.0
        for kind, vectors in enumerate(kinds):
            made = []
            for vector in vectors:
                near = sorted(range(3), key=lambda n: -float(vector @ memory[kind, n]))[:2]
                made.append(normalize(memory[1 - kind, near].mean(0), dim=0))
            expected += 0.5 * float(symmetric_cross_entropy(vectors @ torch.stack(made).T, tau=0.05))
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)


def test_the_refiner_learns_and_takes_no_gradient_into_the_step(method):
    method.state["memory"][1] = normalize(torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)), dim=2)
    method.state["remembered"] = [0, 5]
    before = {name: value.clone() for name, value in method.refiners.state_dict().items()}
    loss = method._from_neighbours(0, batch(method, [30, 34, 36]))
    after = method.refiners.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in after)
    method.refiner_optimiser.zero_grad()
    loss.backward()
    assert all(part.grad is None for part in method.refiners.parameters())
    assert any(part.grad is not None for part in method.model.members[0].parameters())
    assert all(part.grad is None for part in method.model.members[1].parameters())


def test_refined_vectors_are_of_length_one_and_do_not_depend_on_order():
    refiner = Refiner(8).eval()
    vectors = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    made = refiner(vectors)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(refiner(vectors[:, [3, 1, 0, 4, 2]]), made)


def test_it_trains_finds_the_mismatches_and_answers_as_an_ensemble(small, tmp_path):
    pairs = small.small_train()
    run = small.train(pairs, small.small_dev(), small.small_config(**SETTINGS), tmp_path / "run", progress=False)
    assert [line["steps"] for line in run.metrics] == [12] * 5
    assert all(("rectified" in line["losses"]) == (line["epoch"] > 3) for line in run.metrics)
    assert measure_detection(run.match_probability(pairs), pairs.is_mismatched).auroc > 0.9
    assert run.metrics[-1]["dev"]["rsum"] > 400
    assert isinstance(load(tmp_path / "run"), Ensemble)


def test_similarities_without_vectors_are_refused(small):
    config = small.small_config(**SETTINGS)
    with pytest.raises(InputError, match="method: in2r looks for neighbours"):
        check_config(dataclasses.replace(config, model=dataclasses.replace(config.model, similarity="sgr")))


def test_more_neighbours_than_are_remembered_are_refused(small):
    config = dataclasses.replace(small.small_config(**SETTINGS), in2r=In2rConfig(memory=4, neighbours=5))
    with pytest.raises(InputError, match=r"in2r\.neighbours: 5 are more"):
        check_config(config)
