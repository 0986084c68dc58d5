"""The memory of images against a plain list, and its plans against those of the dense solver."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l2rm.rematching.memory import CANDIDATES, Memory, plan_from_many
from l2rm.rematching.transport import partial_transport

SOLVER = {"tolerance": 1e-7, "max_iterations": 1000}


@given(batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=6), size=st.integers(1, 8))
def test_it_holds_the_last_images_each_once_and_as_last_encoded(batches, size):
    memory, known = Memory(), []
    for step, ids in enumerate(batches):
        vectors = torch.tensor([[float(image), step + place / 10] for place, image in enumerate(ids)])
        memory = memory.newer(torch.tensor(ids), vectors, size=size)
        for image, vector in [*zip(ids, vectors.tolist(), strict=True)][::-1]:
            known = [(image, vector), *(one for one in known if one[0] != image)]
        known = known[:size]
    assert memory.ids.tolist() == [image for image, _ in known]
    assert memory.vectors.tolist() == [vector for _, vector in known]
    others = memory.without(torch.tensor([0, 1, 2]))
    assert others.ids.tolist() == [image for image, _ in known if image > 2]
    assert len(others.vectors) == len(others)


def test_what_is_remembered_has_no_gradient():
    vectors = torch.ones(2, 3, requires_grad=True)
    assert not Memory().newer(torch.tensor([0, 1]), 2 * vectors, size=5).vectors.requires_grad


@pytest.mark.parametrize("seed", range(3))
def test_as_many_images_as_captions_give_the_plan_of_the_dense_solver(seed):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(12, 12, generator=generator, dtype=torch.float64)
    forbidden = torch.rand(12, 12, generator=generator) < 0.2
    plan = plan_from_many(cost, forbidden, mass=0.5, reg=0.05, **SOLVER)
    expected = partial_transport(cost, mass=0.5, reg=0.05, forbidden=forbidden, **SOLVER)
    torch.testing.assert_close(plan.matrix, expected.matrix, atol=1e-6, rtol=0)
    assert plan.converged
    assert plan.cost == pytest.approx(expected.cost, abs=1e-5)


def test_of_many_images_one_can_take_a_whole_caption():
    cost = torch.ones(400, 4)
    cost[[7, 70, 170, 399], range(4)] = 0.0
    forbidden = torch.zeros(400, 4, dtype=torch.bool)
    forbidden[7, 0] = True
    plan = plan_from_many(cost, forbidden, mass=0.75, reg=0.01, **SOLVER)
    assert plan.mass == pytest.approx(0.75, abs=1e-5)
    assert plan.matrix[7, 0] == 0
    assert (plan.matrix[[70, 170, 399], [1, 2, 3]] > 0.24).all()  # of 1/4 each; in the dense plan an image takes 1/400
    assert ((plan.matrix > 0).sum(0) <= CANDIDATES).all()
    assert (plan.matrix.sum(1) <= 0.25 + 1e-6).all()


def test_a_mass_that_does_not_fit_is_lowered_and_where_nothing_fits_there_is_no_plan():
    cost = torch.from_numpy(np.random.default_rng(0).random((5, 4)))
    forbidden = torch.ones(5, 4, dtype=torch.bool)
    assert plan_from_many(cost, forbidden, mass=0.5, reg=0.05, **SOLVER) is None
    forbidden[0] = False  # one image for four captions
    plan = plan_from_many(cost, forbidden, mass=0.9, reg=0.05, **SOLVER)
    assert 0.2 < plan.mass <= 0.25


def test_the_mass_asked_for_is_carried_where_it_takes_several_fillings_to_see_that_it_fits():
    cost = torch.rand(10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forbidden = ~torch.eye(10, dtype=torch.bool)  # each caption may take one image of its own,
    forbidden[0] = False  # and one that all may take
    for mass in (0.3, 0.6, 0.85):
        assert plan_from_many(cost, forbidden, mass=mass, reg=0.05, **SOLVER).mass == pytest.approx(mass, abs=1e-5)
