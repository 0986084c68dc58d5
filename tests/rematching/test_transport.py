"""Masked partial transport against golden plans, POT, scipy's linear programme and its own laws."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from l2rm.errors import InputError
from l2rm.rematching.transport import partial_transport

GOLDEN = Path(__file__).with_name("transport_golden.npz")


def own_pairs(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.bool)


def random_cost(seed: int, n: int, m: int) -> torch.Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst(found: torch.Tensor, wanted: np.ndarray | torch.Tensor) -> float:
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    return float((found.double() - wanted).abs().max() / wanted.max())


def pot_plan(cost: torch.Tensor, mass: float, reg: float) -> np.ndarray:
    n, m = cost.shape
    extended = np.zeros((n + 1, m + 1))
    extended[:n, :m] = cost.numpy()
    extended[n, m] = 1e3
    rows, columns = np.append(np.full(n, 1 / n), 1 - mass), np.append(np.full(m, 1 / m), 1 - mass)
    plan = ot.bregman.sinkhorn_log(rows, columns, extended, reg, numItermax=100_000, stopThr=1e-12)
    return np.asarray(plan)[:n, :m]


@pytest.mark.parametrize("size", ["n16", "n64"])
@pytest.mark.parametrize("kind", ["masked", "full"])
@pytest.mark.parametrize("reg", [0.07, 0.01])
def test_golden_plans(size: str, kind: str, reg: float) -> None:
    with np.load(GOLDEN) as golden:
        cost = torch.from_numpy(golden[f"{size}/cost"])
        wanted = golden[f"{size}/{kind}/reg{reg}/converged_plan"]
        exact = float(golden[f"{size}/{kind}/reg{reg}/exact_cost"])
    forbidden = own_pairs(len(cost)) if kind == "masked" else None
    plan = partial_transport(cost.double(), reg=reg, forbidden=forbidden, tolerance=1e-9)
    assert plan.converged
    assert plan.marginal_error <= 1e-9
    assert worst(plan.matrix, wanted) < 1e-6
    assert plan.cost > exact
    single = partial_transport(cost, reg=reg, forbidden=forbidden)
    assert single.matrix.dtype == torch.float32
    assert single.converged
    assert worst(single.matrix, wanted) < 1e-3
    if kind == "masked":
        assert not plan.matrix.diagonal().any()


@pytest.mark.parametrize(("n", "m", "mass", "reg"), [(12, 12, 0.1, 0.02), (7, 15, 0.6, 0.05), (15, 7, 0.3, 0.1)])
def test_agrees_with_pot(n: int, m: int, mass: float, reg: float) -> None:
    cost = random_cost(3, n, m)
    plan = partial_transport(cost, mass=mass, reg=reg, tolerance=1e-10)
    assert worst(plan.matrix, pot_plan(cost, mass, reg)) < 1e-6


def test_agrees_with_pot_at_full_mass() -> None:
    cost = random_cost(4, 9, 6)
    wanted = ot.bregman.sinkhorn_log(
        np.full(9, 1 / 9), np.full(6, 1 / 6), cost.numpy(), 0.05, numItermax=100_000, stopThr=1e-12
    )
    plan = partial_transport(cost, mass=1.0, reg=0.05, tolerance=1e-10)
    assert worst(plan.matrix, wanted) < 1e-6
    nearly = partial_transport(cost, mass=1 - 1e-9, reg=0.05, tolerance=1e-12)
    assert nearly.converged
    assert worst(nearly.matrix, plan.matrix) < 1e-3


def test_approaches_the_linear_programme() -> None:
    n, m, mass = 8, 11, 0.4
    cost = random_cost(5, n, m)
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    exact = linprog(
        cost.numpy().ravel(),
        A_ub=np.vstack([rows, columns]),
        b_ub=np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)]),
        A_eq=np.ones((1, n * m)),
        b_eq=[mass],
    ).fun
    costs = []
    for reg in (0.1, 0.01, 1e-3, 1e-4, 1e-6):
        plan = partial_transport(cost, mass=mass, reg=reg, tolerance=1e-9)
        assert plan.converged
        costs.append(plan.cost)
    assert all(after <= before + 1e-8 for before, after in pairwise(costs))
    assert costs[-1] == pytest.approx(exact, abs=1e-7)


def test_scalings_solve_the_stated_equations() -> None:
    n, m, mass, reg = 6, 8, 0.3, 0.1
    cost = random_cost(6, n, m)
    plan = partial_transport(cost, mass=mass, reg=reg, tolerance=1e-13)
    # log P + C / reg = log u + log v, where u is proportional to the row's dummy cell and v to the column's.
    left_rows, left_columns = 1 / n - plan.row_mass, 1 / m - plan.column_mass
    constant = plan.matrix.log() + cost / reg - left_rows.log()[:, None] - left_columns.log()
    assert float(constant.max() - constant.min()) < 1e-8


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 10), (1, 7), (7, 1), (1, 1)])
def test_constant_cost_is_uniform(n: int, m: int) -> None:
    plan = partial_transport(torch.full((n, m), 3.5, dtype=torch.float64), mass=0.3, reg=0.01, tolerance=1e-11)
    assert torch.allclose(plan.matrix, torch.full((n, m), 0.3 / (n * m), dtype=torch.float64), atol=1e-11)
    assert plan.cost == pytest.approx(3.5 * 0.3)


def test_one_row_in_closed_form() -> None:
    # A free mass on one row: the columns' equations are v_j (K_j u + t) = 1/m, so P_j / (1/m - P_j) = K_j * constant.
    cost = random_cost(7, 1, 5)
    plan = partial_transport(cost, mass=0.4, reg=0.2, tolerance=1e-13)
    share = plan.matrix[0] / (0.2 - plan.matrix[0])
    scaled = share * torch.exp(cost[0] / 0.2)
    assert torch.allclose(scaled, scaled[:1].expand(5))
    assert plan.mass == pytest.approx(0.4)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    mass=st.floats(0.001, 0.999),
    reg=st.sampled_from([1e-4, 1e-3, 0.01, 0.07, 1.0]),
    wide=st.booleans(),
)
def test_laws(seed: int, n: int, m: int, mass: float, reg: float, wide: bool) -> None:
    cost = random_cost(seed, n, m).to(torch.float64 if wide else torch.float32)
    generator = torch.Generator().manual_seed(seed)
    forbidden = torch.rand(n, m, generator=generator) < 0.2
    try:
        plan = partial_transport(cost, mass=mass, reg=reg, forbidden=forbidden)
    except InputError:
        assert mass > 1 - forbidden.double().mean() * max(n, m)  # a mask this thin leaves at least this much
        return
    assert plan.converged
    assert plan.marginal_error <= 1e-6
    assert bool(torch.isfinite(plan.matrix).all())
    assert bool((plan.matrix >= 0).all())
    assert not plan.matrix[forbidden].any()
    assert plan.mass == pytest.approx(mass, abs=2e-6)
    assert float(plan.row_mass.max()) <= 1 / n + 2e-6
    assert float(plan.column_mass.max()) <= 1 / m + 2e-6
    assert plan.cost == pytest.approx(float((cost * plan.matrix).sum()), abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 10), m=st.integers(2, 10), mass=st.floats(0.05, 0.7))
def test_order_shift_and_transposition_do_not_matter(seed: int, n: int, m: int, mass: float) -> None:
    cost = random_cost(seed, n, m)
    forbidden = torch.zeros(n, m, dtype=torch.bool)
    forbidden[0, 0] = True
    settings_ = {"mass": mass, "reg": 0.05, "tolerance": 1e-11}
    plan = partial_transport(cost, forbidden=forbidden, **settings_).matrix
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.randperm(n, generator=generator), torch.randperm(m, generator=generator)
    moved = partial_transport(cost[rows][:, columns], forbidden=forbidden[rows][:, columns], **settings_).matrix
    assert worst(moved, plan[rows][:, columns]) < 1e-7
    for offset in (1e3, -1e3):
        shifted = partial_transport(cost + offset, forbidden=forbidden, **settings_).matrix
        assert worst(shifted, plan) < 1e-7
    assert worst(partial_transport(cost.T, forbidden=forbidden.T, **settings_).matrix.T, plan) < 1e-7


@pytest.mark.parametrize("kind", ["random", "squared distances", "few values", "similarities"])
@pytest.mark.parametrize("reg", [0.01, 1e-4, 1e-6])
@pytest.mark.parametrize("mass", [1e-3, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_converges_fast_on_hard_problems(kind: str, reg: float, mass: float) -> None:
    generator = torch.Generator().manual_seed(1)
    n, m = 40, 60
    points, others = torch.randn(n, 3, generator=generator), torch.randn(m, 3, generator=generator)
    normal = torch.nn.functional.normalize
    cost = {
        "random": torch.rand(n, m, generator=generator),
        "squared distances": torch.cdist(points, others + 1) ** 2 / 10,
        "few values": torch.randint(0, 4, (n, m), generator=generator) / 3.0,
        "similarities": 1 - normal(points) @ normal(others + 1).T,
    }[kind]
    plan = partial_transport(cost, mass=mass, reg=reg)
    assert plan.converged
    assert plan.iterations <= 150
    assert plan.mass == pytest.approx(mass, abs=2e-6)


def test_large_offsets_and_scales() -> None:
    cost = random_cost(8, 20, 20)
    wanted = partial_transport(cost, reg=0.02, tolerance=1e-10).matrix
    assert worst(partial_transport(cost + 1e6, reg=0.02, tolerance=1e-10).matrix, wanted) < 1e-6
    assert worst(partial_transport(cost * 1e5, reg=2e3, tolerance=1e-10).matrix, wanted) < 1e-7
    assert partial_transport(cost.float() * 1e5, reg=0.01).converged


def test_forbidden_rows_and_columns_carry_nothing() -> None:
    cost = random_cost(9, 10, 14)
    forbidden = torch.zeros(10, 14, dtype=torch.bool)
    forbidden[3], forbidden[:, 5] = True, True
    cost[3, 0], cost[0, 5] = math.inf, math.nan  # what a forbidden cell costs is nobody's business
    plan = partial_transport(cost, mass=0.5, reg=0.01, forbidden=forbidden)
    assert plan.converged
    assert float(plan.row_mass[3]) == 0.0
    assert float(plan.column_mass[5]) == 0.0
    assert bool(torch.isfinite(plan.matrix).all())
    assert math.isfinite(plan.cost)
    assert plan.mass == pytest.approx(0.5, abs=1e-6)


def test_mass_that_cannot_be_carried() -> None:
    cost = random_cost(10, 10, 10)
    forbidden = torch.ones(10, 10, dtype=torch.bool)
    forbidden[:3, :4] = False  # three rows of 1/10 each
    assert partial_transport(cost, mass=0.3, forbidden=forbidden).mass == pytest.approx(0.3, abs=2e-6)
    with pytest.raises(InputError, match=r"at most 0\.3 of the 0\.3001"):
        partial_transport(cost, mass=0.3001, forbidden=forbidden)
    with pytest.raises(InputError, match="at most 0 of"):
        partial_transport(cost, mass=0.01, forbidden=torch.ones(10, 10, dtype=torch.bool))
    with pytest.raises(InputError, match="lower the mass"):
        partial_transport(cost[:, :3], mass=1.0, forbidden=forbidden[:, :3])


def test_feasibility_is_exact_where_the_simple_flow_is_not() -> None:
    # A staircase: spreading each row evenly carries less than a maximum flow, which carries everything.
    n = 8
    forbidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    plan = partial_transport(random_cost(11, n, n), mass=0.95, reg=0.1, forbidden=forbidden)
    assert plan.converged
    assert plan.mass == pytest.approx(0.95, abs=2e-6)
    thin = ~torch.eye(4, 6, dtype=torch.bool)  # four cells, each at most 1/6
    assert partial_transport(random_cost(12, 4, 6), mass=0.66, reg=0.1, forbidden=thin).converged
    with pytest.raises(InputError, match=r"at most 0\.666667"):
        partial_transport(random_cost(12, 4, 6), mass=0.67, reg=0.1, forbidden=thin)


def test_gives_up_honestly() -> None:
    cost = random_cost(13, 30, 30)
    for limit in (1, 2, 4):
        plan = partial_transport(cost, reg=1e-3, max_iterations=limit)
        assert not plan.converged
        assert plan.iterations == limit
        rows, columns = plan.row_mass, plan.column_mass
        assert plan.marginal_error > 1e-6
        assert float((plan.matrix.sum() - 0.1).abs()) <= plan.marginal_error
        assert max(float(rows.max()), float(columns.max())) <= 1 / 30 + plan.marginal_error


def test_dtypes_and_gradients() -> None:
    cost = random_cost(14, 5, 6)
    assert partial_transport(cost).matrix.dtype == torch.float64
    assert partial_transport(cost.float()).matrix.dtype == torch.float32
    for half in (torch.float16, torch.bfloat16):
        assert partial_transport(cost.to(half)).matrix.dtype == torch.float32
    assert not partial_transport(cost.requires_grad_()).matrix.requires_grad


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mass": 0.0}, "mass"),
        ({"mass": 1.1}, "mass"),
        ({"mass": math.nan}, "mass"),
        ({"reg": 0.0}, "reg"),
        ({"reg": math.inf}, "reg"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"cost": torch.ones(3)}, "cost"),
        ({"cost": torch.ones(0, 3)}, "at least one"),
        ({"cost": torch.ones(3, 3, dtype=torch.int64)}, "floating"),
        ({"cost": torch.tensor([[0.0, math.nan], [1.0, 1.0]])}, "row 0, column 1"),
        ({"forbidden": torch.zeros(3, 4)}, "boolean"),
        ({"forbidden": torch.zeros(4, 3, dtype=torch.bool)}, "shape"),
    ],
)
def test_bad_arguments(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        partial_transport(**({"cost": torch.rand(3, 4)} | change))
    assert "\n" not in str(caught.value)
