"""Objectives against golden values of the public code, plain double loops and finite differences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from l2rm.rematching import objectives

GOLDEN = np.load(Path(__file__).parent / "objectives_golden.npz")
HARD = {
    "max_violation": objectives.max_violation,
    "warmup": objectives.mean_violation,
    "eval_loss": objectives.pair_loss,
    "infonce": objectives.infonce,
    "rce": objectives.symmetric_cross_entropy,
}
SOFT = {
    "soft_infonce": objectives.soft_infonce,
    "kl": objectives.kl,
    "symmetric_kl": objectives.symmetric_kl,
    "js": objectives.js,
}
squares = st.integers(1, 6).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(-1, 1, width=32)))


def random_similarity(rows, columns, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (rows, columns)))


# ------------------------------------------------------------------------------------------------- the public code


@pytest.mark.parametrize("model", ["sgr", "saf"])
@pytest.mark.parametrize("name", [*HARD, *SOFT])
def test_value_is_that_of_the_public_code(model, name):
    S, T = (torch.from_numpy(GOLDEN[f"{model}/{key}"]) for key in ("similarity", "soft_labels"))
    value = HARD[name](S) if name in HARD else SOFT[name](S, T)
    np.testing.assert_allclose(value.numpy(), GOLDEN[f"{model}/loss/{name}"], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- plain loops


def loop_violations(S, margin):
    """[caption of image i: its hinges], [image of caption j: its hinges], each with its own pair as 0."""
    n = len(S)
    to_caption = [[max(0.0, margin + S[i][j] - S[i][i]) if i != j else 0.0 for j in range(n)] for i in range(n)]
    to_image = [[max(0.0, margin + S[i][j] - S[j][j]) if i != j else 0.0 for i in range(n)] for j in range(n)]
    return to_caption, to_image


def loop_softmax(row, tau):
    weights = [math.exp((value - max(row)) / tau) for value in row]
    return [weight / sum(weights) for weight in weights]


def loop_targets(row):
    floored = [max(value, 1e-10) for value in row]
    return [value / sum(floored) for value in floored]


def loop_kl(a, b):
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))


def loop_hard(name, S, tau):
    total = 0.0
    for matrix in (S, list(map(list, zip(*S, strict=True)))):
        for i, row in enumerate(matrix):
            P = loop_softmax(row, tau)
            entropy = -math.log(P[i])
            reverse = -sum(math.log((i == j) + 1e-7) * p for j, p in enumerate(P))
            total += (entropy if name == "infonce" else 0.5 * (entropy + reverse)) / len(matrix)
    return total


def loop_soft(name, S, T, tau):
    total = 0.0
    for s, t in ((S, T), (list(map(list, zip(*S, strict=True))), list(map(list, zip(*T, strict=True))))):
        for s_row, t_row in zip(s, t, strict=True):
            P, A = loop_softmax(s_row, tau), loop_targets(t_row)
            M = [(p + a) / 2 for p, a in zip(P, A, strict=True)]
            term = {
                "soft_infonce": -sum(a * math.log(p) for a, p in zip(A, P, strict=True)),
                "kl": loop_kl(A, P),
                "symmetric_kl": 0.5 * (loop_kl(A, P) + loop_kl(P, A)),
                "js": 0.5 * (loop_kl(M, P) + loop_kl(M, A)),
            }[name]
            total += term / len(s)
    return total


@given(S=squares, margin=st.floats(0, 1))
def test_violations_are_those_of_a_double_loop(S, margin):
    to_caption, to_image = loop_violations(S.tolist(), margin)
    n = len(S)
    pairs = [(sum(a) + sum(b)) / n for a, b in zip(to_caption, to_image, strict=True)]
    S = torch.from_numpy(S)
    assert objectives.max_violation(S, margin).item() == pytest.approx(sum(map(max, to_caption + to_image)))
    assert objectives.pair_loss(S, margin).tolist() == pytest.approx(pairs)
    assert objectives.mean_violation(S, margin).item() == pytest.approx(sum(pairs))


@pytest.mark.parametrize("name", ["infonce", "rce"])
@given(S=squares, tau=st.floats(0.05, 2))
def test_cross_entropies_are_those_of_a_double_loop(name, S, tau):
    assert HARD[name](torch.from_numpy(S), tau).item() == pytest.approx(loop_hard(name, S.tolist(), tau), abs=1e-9)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (6, 2), (1, 4)])
def test_soft_objectives_are_those_of_a_double_loop(name, shape):
    S = random_similarity(*shape)
    T = random_similarity(*shape, seed=1).clamp(min=0)  # about half of the cells carry nothing
    expected = loop_soft(name, S.tolist(), T.tolist(), 0.1)
    assert SOFT[name](S, T, 0.1).item() == pytest.approx(expected, rel=1e-9)


# ------------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("name", [*HARD, *SOFT])
def test_gradient_is_that_of_finite_differences(name):
    S = random_similarity(4, 4).requires_grad_()
    T = random_similarity(4, 4, seed=2).abs()
    function = HARD[name] if name in HARD else lambda S: SOFT[name](S, T, 0.2)
    assert torch.autograd.gradcheck(function, (S,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", [*HARD, *SOFT])
@given(seed=st.integers(0, 99))
def test_order_of_the_pairs_does_not_count(name, seed):
    S, T = random_similarity(5, 5, seed), random_similarity(5, 5, seed + 100).abs()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(5))
    if name in SOFT:
        before, after = SOFT[name](S, T), SOFT[name](S[order][:, order], T[order][:, order])
    else:
        before, after = HARD[name](S), HARD[name](S[order][:, order])
    if name == "eval_loss":
        before = before[order]
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("name", [*HARD, *SOFT])
def test_images_and_captions_change_places(name):
    S, T = random_similarity(5, 5), random_similarity(5, 5, seed=1).abs()
    one, other = (HARD[name](S), HARD[name](S.T)) if name in HARD else (SOFT[name](S, T), SOFT[name](S.T, T.T))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["kl", "symmetric_kl", "js"])
def test_a_divergence_is_zero_at_the_target_and_positive_elsewhere(name):
    S = torch.zeros(4, 4, dtype=torch.float64)
    assert SOFT[name](S, torch.full((4, 4), 0.3, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-12)
    assert SOFT[name](S, torch.eye(4, dtype=torch.float64)).item() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SOFT)
def test_a_plan_without_mass_in_a_row_makes_no_nan(name, dtype):
    S = random_similarity(4, 5).to(dtype).requires_grad_()
    T = torch.zeros(4, 5, dtype=dtype)
    T[1, 2] = 0.1
    loss = SOFT[name](S, T)
    loss.backward()
    assert loss.isfinite()
    assert S.grad.isfinite().all()


def test_soft_targets_of_one_caption_each_are_hard_ones():
    S = random_similarity(5, 5)
    soft = objectives.soft_infonce(S, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(soft, objectives.infonce(S), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["max_violation", "mean_violation", "infonce", "symmetric_cross_entropy"])
def test_named_fills_in_the_parameter(name):
    S = random_similarity(4, 4)
    parameter = {"margin": 0.4} if "violation" in name else {"tau": 0.3}
    expected = getattr(objectives, name)(S, **parameter)
    assert objectives.named(name, margin=0.4, tau=0.3)(S).item() == expected.item()


@pytest.mark.parametrize("name", ["max_violation", "mean_violation", "infonce", "symmetric_cross_entropy"])
def test_weights_count_pairs_one_by_one(name):
    S = random_similarity(5, 5)
    objective = objectives.named(name, margin=0.2, tau=0.3)
    alone = torch.stack([objective(S, weights=row) for row in torch.eye(5, dtype=torch.float64)])
    torch.testing.assert_close(alone.sum(), objective(S))
    weights = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(objective(S, weights=weights), (weights * alone).sum())


def test_a_pair_of_weight_0_is_still_a_negative_of_the_others():
    S = random_similarity(4, 4).requires_grad_()
    objectives.infonce(S, weights=torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)).backward()
    assert S.grad[3, 3] == 0
    assert bool((S.grad[:3, 3] != 0).all())


# ---------------------------------------------------------------------------------------------------- mass that moves


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (6, 2), (1, 4)])
def test_transported_is_that_of_a_double_loop(shape):
    S = random_similarity(*shape)
    plan = random_similarity(*shape, seed=1).clamp(min=0)
    P = [loop_softmax(row, 0.1) for row in S.tolist()]
    Q = [loop_softmax(row, 0.1) for row in S.T.tolist()]
    total = sum(
        plan[i, j].item() * (-math.log(P[i][j]) - math.log(Q[j][i])) for i in range(shape[0]) for j in range(shape[1])
    )
    assert objectives.transported(S, plan, 0.1).item() == pytest.approx(total / plan.sum().item(), rel=1e-9)


def test_what_transports_nothing_teaches_nothing_of_its_own():
    """Image 2 and caption 0 carry no mass: others push them away, as negatives; their own cell is left alone."""
    S = random_similarity(3, 4).requires_grad_()
    plan = torch.tensor([[0.0, 0.2, 0.0, 0.1], [0.0, 0.0, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    objectives.transported(S, plan, 0.1).backward()
    assert S.grad[2, 0].item() == 0
    assert (S.grad[2] >= 0).all()
    assert (S.grad[:, 0] >= 0).all()
    assert S.grad[1, 2] < 0


@pytest.mark.parametrize("scale", [1.0, 0.3 / 5])
def test_transported_along_the_diagonal_is_infonce(scale):
    S = random_similarity(5, 5)
    plan = scale * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(objectives.transported(S, plan), objectives.infonce(S))


def test_gradient_of_transported_is_that_of_finite_differences():
    S = random_similarity(3, 4).requires_grad_()
    plan = random_similarity(3, 4, seed=2).abs()
    assert torch.autograd.gradcheck(lambda S: objectives.transported(S, plan, 0.2), (S,))
