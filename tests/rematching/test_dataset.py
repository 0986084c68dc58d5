"""Sparse partial transport against the dense solver, POT, scipy's programmes and its own laws."""

import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from l2rm.errors import InputError
from l2rm.rematching.dataset import SparsePlan, sparse_transport, sure_mass
from l2rm.rematching.transport import partial_transport


def complete(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    captions, images = np.divmod(np.arange(n * m), m)
    return captions, images


def matrix(plan: SparsePlan) -> np.ndarray:
    whole = np.zeros((len(plan.weights), len(plan.capacities)))
    whole[plan.captions, plan.images] = plan.cell_mass
    return whole


def graph(seed: int, n: int, m: int, share: float) -> dict[str, Any]:
    """A random graph of candidates with costs, weights and capacities; some captions and images stay without a cell."""
    rng = np.random.default_rng(seed)
    captions, images = np.nonzero(rng.random((n, m)) < share)
    return {
        "captions": captions,
        "images": images,
        "cost": rng.random(len(captions)),
        "weights": rng.choice([0.0, 0.5, 1.0, 1.7], size=n, p=[0.1, 0.2, 0.5, 0.2]),
        "capacities": rng.choice([0.0, 0.4, 1.0, 5.0], size=m, p=[0.1, 0.2, 0.5, 0.2]),
    }


def linear_programme(problem: dict[str, Any], mass: float | None) -> Any:
    """The exact optimum at `mass`; without one, the most that the cells can carry."""
    n, m = len(problem["weights"]), len(problem["capacities"])
    rows, columns = np.eye(n)[:, problem["captions"]], np.eye(m)[:, problem["images"]]
    ones = np.ones((1, rows.shape[1]))
    return linprog(
        -ones[0] if mass is None else problem["cost"],
        A_ub=np.vstack([rows, columns]),
        b_ub=np.concatenate([problem["weights"], problem["capacities"]]),
        **({} if mass is None else {"A_eq": ones, "b_eq": [mass]}),
    )


@pytest.mark.parametrize(
    ("n", "m", "mass", "reg"),
    [
        (12, 12, 0.1, 0.02),
        (7, 15, 0.6, 0.05),
        (15, 7, 0.3, 0.1),
        (40, 60, 0.9, 1e-3),
        (60, 40, 1.0, 0.01),
        (1, 1, 0.5, 1),
    ],
)
def test_is_the_dense_plan_on_a_complete_graph(n: int, m: int, mass: float, reg: float) -> None:
    cost = np.random.default_rng(n * m).random((n, m))
    captions, images = complete(n, m)
    plan = sparse_transport(
        captions, images, cost.ravel(), weights=np.full(n, 1 / n), capacities=np.full(m, 1 / m), mass=mass, reg=reg,
        tolerance=1e-10,
    )  # fmt: skip
    dense = partial_transport(torch.from_numpy(cost), mass=mass, reg=reg, tolerance=1e-10)
    assert plan.converged
    assert np.abs(matrix(plan) - dense.matrix.numpy()).max() < 1e-7 * float(dense.matrix.max())
    assert plan.cost == pytest.approx(dense.cost, abs=1e-9)


def test_forbidden_cells_are_cells_left_out() -> None:
    rng = np.random.default_rng(3)
    cost, forbidden = rng.random((9, 13)), rng.random((9, 13)) < 0.4
    captions, images = np.nonzero(~forbidden)
    weights, capacities = np.full(9, 1 / 9), np.full(13, 1 / 13)
    options = {"weights": weights, "capacities": capacities, "mass": 0.6, "reg": 0.02, "tolerance": 1e-10}
    plan = sparse_transport(captions, images, cost[~forbidden], **options)
    dense = partial_transport(
        torch.from_numpy(cost), mass=0.6, reg=0.02, forbidden=torch.from_numpy(forbidden), tolerance=1e-10
    )
    assert np.abs(matrix(plan) - dense.matrix.numpy()).max() < 1e-8
    assert not matrix(plan)[forbidden].any()


def test_agrees_with_pot_on_unequal_weights_and_capacities() -> None:
    rng = np.random.default_rng(4)
    n, m, mass, reg = 8, 6, 4.0, 0.05
    cost, a, b = rng.random((n, m)), rng.random(n) + 0.3, rng.integers(1, 4, size=m).astype(float)
    extended = np.zeros((n + 1, m + 1))
    extended[:n, :m] = cost
    extended[n, m] = 1e3
    wanted = ot.bregman.sinkhorn_log(
        np.append(a, b.sum() - mass), np.append(b, a.sum() - mass), extended, reg, numItermax=100_000, stopThr=1e-13
    )[:n, :m]
    captions, images = complete(n, m)
    plan = sparse_transport(
        captions, images, cost.ravel(), weights=a, capacities=b, mass=mass, reg=reg, tolerance=1e-11
    )
    assert np.abs(matrix(plan) - wanted).max() < 1e-7


@pytest.mark.parametrize("seed", range(4))
def test_approaches_the_linear_programme(seed: int) -> None:
    problem = graph(seed, 14, 10, 0.5)
    mass = 0.7 * -linear_programme(problem, None).fun
    exact = linear_programme(problem, mass).fun
    costs = []
    for reg in (0.1, 0.01, 1e-3, 1e-5):
        plan = sparse_transport(**problem, mass=mass, reg=reg, tolerance=1e-8)
        assert plan.converged
        costs.append(plan.cost)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize(("n", "m"), [(20, 20), (15, 30)])
def test_one_to_one_becomes_the_assignment(n: int, m: int) -> None:
    cost = np.random.default_rng(n).random((n, m))
    captions, images = complete(n, m)
    plan = sparse_transport(
        captions, images, cost.ravel(), weights=np.ones(n), capacities=np.ones(m), mass=float(n), reg=2e-4
    )
    assert plan.converged
    assert plan.partner.tolist() == linear_sum_assignment(cost)[1].tolist()
    assert plan.confidence.min() > 0.5  # a runner-up may be close


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 14),
    m=st.integers(1, 14),
    density=st.sampled_from([0.2, 0.5, 1.0]),
    share=st.floats(0.01, 0.97),
    reg=st.sampled_from([1e-3, 0.01, 0.07, 1.0]),
)
def test_laws(seed: int, n: int, m: int, density: float, share: float, reg: float) -> None:
    problem = graph(seed, n, m, density)
    if not len(problem["cost"]):
        return
    most = -linear_programme(problem, None).fun
    if most <= 1e-9:
        return
    a, b, mass = problem["weights"], problem["capacities"], share * most
    sure = sure_mass(problem["captions"], problem["images"], weights=a, capacities=b)
    assert most / 2 - 1e-9 <= sure <= most + 1e-9  # nothing more fits, so it is at least half
    plan = sparse_transport(**problem, mass=mass, reg=reg)
    total = a.sum()
    assert plan.converged
    assert plan.marginal_error <= 1e-6
    assert bool(np.isfinite(plan.cell_mass).all())
    assert bool((plan.cell_mass >= 0).all())
    assert bool((plan.row_mass <= a * (1 + 1e-9)).all())
    assert bool((plan.column_mass <= b + 1e-6 * total).all())
    assert plan.mass == pytest.approx(mass, abs=2e-6 * total)
    assert not plan.cell_mass[(a[plan.captions] == 0) | (b[plan.images] == 0)].any()
    assert bool(((plan.confidence >= 0) & (plan.confidence <= 1)).all())
    assert bool((plan.confidence <= plan.row_mass / np.where(a > 0, a, 1) + 1e-12).all())
    there = plan.partner >= 0
    assert there.tolist() == (plan.row_mass > 0).tolist()
    assert np.allclose(matrix(plan)[there, plan.partner[there]], matrix(plan)[there].max(1, initial=0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 10), m=st.integers(2, 10))
def test_order_and_shift_do_not_matter(seed: int, n: int, m: int) -> None:
    problem = graph(seed, n, m, 0.7)
    sure = sure_mass(
        problem["captions"], problem["images"], weights=problem["weights"], capacities=problem["capacities"]
    )
    if sure < 1e-9:
        return
    options = {"mass": 0.8 * sure, "reg": 0.05, "tolerance": 1e-11}
    wanted = matrix(sparse_transport(**problem, **options))
    rng = np.random.default_rng(seed)
    rows, columns, order = rng.permutation(n), rng.permutation(m), rng.permutation(len(problem["cost"]))
    moved = {
        "captions": rows[problem["captions"]][order],
        "images": columns[problem["images"]][order],
        "cost": problem["cost"][order] + 17.0,
        "weights": problem["weights"][np.argsort(rows)],
        "capacities": problem["capacities"][np.argsort(columns)],
    }
    found = matrix(sparse_transport(**moved, **options))
    assert np.abs(found[rows][:, columns] - wanted).max() < 1e-7


def test_captions_compete_for_an_image() -> None:
    # Two captions like image 0 best; the one that has another good choice must take it.
    captions, images = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    cost = np.array([0.1, 0.2, 0.1, 0.9])
    one = sparse_transport(captions, images, cost, weights=np.ones(2), capacities=np.ones(2), mass=2.0, reg=0.02)
    assert one.partner.tolist() == [1, 0]
    two = sparse_transport(
        captions, images, cost, weights=np.ones(2), capacities=np.array([2.0, 1.0]), mass=2.0, reg=0.02
    )
    assert two.partner.tolist() == [0, 0]
    half = sparse_transport(captions, images, cost, weights=np.ones(2), capacities=np.ones(2), mass=1.0, reg=0.02)
    assert half.row_mass.sum() == pytest.approx(1.0, abs=1e-5)
    assert half.confidence.max() < 0.9  # nobody can tell which of the two is meant


def test_gives_up_honestly() -> None:
    problem = graph(5, 30, 30, 0.3) | {"weights": np.ones(30), "capacities": np.ones(30)}
    for limit in (1, 3):
        plan = sparse_transport(**problem, mass=20.0, reg=1e-3, max_iterations=limit)
        assert not plan.converged
        assert plan.iterations == limit
        assert plan.marginal_error > 1e-6
        assert bool((plan.row_mass <= 1 + 1e-9).all())
        assert abs(plan.mass - 20.0) <= 30 * plan.marginal_error + 1e-9


def test_mass_that_cannot_be_carried() -> None:
    captions, images = np.array([0, 1, 2, 2]), np.array([0, 0, 0, 1])  # three captions, two images
    problem = {"captions": captions, "images": images, "cost": np.ones(4), "weights": np.ones(3), "reg": 0.1}
    assert sparse_transport(**problem, capacities=np.ones(2), mass=1.9).converged
    with pytest.raises(InputError, match=r"at most 2 of the 2\.1 asked for"):
        sparse_transport(**problem, capacities=np.ones(2), mass=2.1)
    with pytest.raises(InputError, match=r"at most 0\.8"):
        sparse_transport(**problem, capacities=np.array([0.5, 0.3]), mass=0.9)


def test_a_staircase_needs_the_exact_flow() -> None:
    # Filled up evenly, the staircase carries less than its maximum flow, which is everything.
    n = 8
    captions, images = np.nonzero(np.tril(np.ones((n, n))))
    assert sure_mass(captions, images, weights=np.ones(n), capacities=np.ones(n)) < 0.95 * n
    plan = sparse_transport(
        captions, images, np.random.default_rng(0).random(len(captions)), weights=np.ones(n), capacities=np.ones(n),
        mass=0.95 * n, reg=0.1,
    )  # fmt: skip
    assert plan.converged


GOOD = {
    "captions": np.array([0, 1]),
    "images": np.array([1, 0]),
    "cost": np.array([0.1, 0.2]),
    "weights": np.ones(2),
    "capacities": np.ones(2),
    "mass": 1.0,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mass": 0.0}, "mass"),
        ({"mass": math.nan}, "mass"),
        ({"reg": 0.0}, "reg"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"captions": np.array([0])}, "one of each a cell"),
        ({"captions": np.array([0, 2])}, "caption 2 of cell 1, but there are 2"),
        ({"images": np.array([-1, 0])}, "image -1"),
        ({"captions": np.array([0, 0]), "images": np.array([1, 1])}, "twice"),
        ({"cost": np.array([0.1, math.inf])}, "inf in cell 1"),
        ({"cost": np.array([1, 2])}, "int64"),
        ({"weights": np.array([1.0, -1.0])}, "weights: -1.0 at 1"),
        ({"capacities": np.array([1.0, math.nan])}, "capacities: nan at 1"),
        ({"captions": np.zeros(0, int), "images": np.zeros(0, int), "cost": np.zeros(0)}, "none"),
    ],
)
def test_bad_arguments(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        sparse_transport(**(GOOD | change))
    assert "\n" not in str(caught.value)
