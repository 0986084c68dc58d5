"""Detection and rematching measures against plain loops."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection, measure_rematch

pairs_with_ties = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40)


def split(pairs: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    probability = np.array([level / 6 for level, _ in pairs])
    truth = np.array([mismatched for _, mismatched in pairs])
    assume(truth.any() and not truth.all())
    return probability, truth


@settings(max_examples=100, deadline=None)
@given(pairs_with_ties)
def test_auroc_is_the_share_of_ordered_couples(pairs: list[tuple[int, bool]]) -> None:
    probability, truth = split(pairs)
    couples = [
        1.0 if low < high else 0.5 if low == high else 0.0 for low in probability[truth] for high in probability[~truth]
    ]
    found = measure_detection(probability, truth).auroc
    assert found == pytest.approx(np.mean(couples))
    u = mannwhitneyu(probability[~truth], probability[truth]).statistic
    assert found == pytest.approx(u / (truth.sum() * (~truth).sum()))


@settings(max_examples=100, deadline=None)
@given(pairs_with_ties)
def test_average_precision_walks_down_the_thresholds(pairs: list[tuple[int, bool]]) -> None:
    probability, truth = split(pairs)
    area, recall = 0.0, 0.0
    for threshold in sorted(set(probability)):
        called = probability <= threshold
        new_recall = (called & truth).sum() / truth.sum()
        area += (new_recall - recall) * (called & truth).sum() / called.sum()
        recall = new_recall
    assert measure_detection(probability, truth).ap == pytest.approx(area)


@settings(max_examples=50, deadline=None)
@given(pairs_with_ties, st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_f1_counts_the_verdicts(pairs: list[tuple[int, bool]], threshold: float) -> None:
    probability, truth = split(pairs)
    hits = false_alarms = misses = 0
    for p, mismatched in zip(probability, truth, strict=True):
        called = p < threshold
        hits += called and mismatched
        false_alarms += called and not mismatched
        misses += mismatched and not called
    expected = 2 * hits / (2 * hits + false_alarms + misses)
    assert measure_detection(probability, truth, threshold=threshold).f1 == pytest.approx(expected)


def test_perfect_and_inverted_detection() -> None:
    truth = np.array([True, True, False, False, False])
    assert measure_detection(np.where(truth, 0.1, 0.9), truth).to_dict() == {"auroc": 1.0, "ap": 1.0, "f1": 1.0}
    assert measure_detection(np.where(truth, 0.9, 0.1), truth).auroc == 0.0
    assert measure_detection(np.full(5, 0.5), truth).auroc == 0.5


@pytest.mark.parametrize(
    ("probability", "truth", "message"),
    [
        ([0.1, 0.2], [True], "give one a pair"),
        ([0.1, float("nan")], [True, False], "pair 1 is NaN"),
        ([0.1, 0.2], [False, False], "0 mismatched and 2 matched"),
    ],
)
def test_detection_needs_both_kinds(probability: list[float], truth: list[bool], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure_detection(np.array(probability), np.array(truth))


def test_rematch_hits_count_first_and_first_ten() -> None:
    generator = np.random.default_rng(0)
    suggested = np.array([generator.permutation(20)[:12] for _ in range(50)])
    true_image = generator.integers(-1, 20, size=50)
    first = sum(int(row[0]) == image for row, image in zip(suggested, true_image, strict=True))
    ten = sum(image in row[:10].tolist() for row, image in zip(suggested, true_image, strict=True))
    found = measure_rematch(suggested, true_image)
    assert (found.hit1, found.hit10, found.captions) == (pytest.approx(first / 50), pytest.approx(ten / 50), 50)


def test_an_absent_true_image_is_a_miss_even_where_the_list_is_padded() -> None:
    assert measure_rematch(np.array([[-1, 2]]), np.array([-1])).hit10 == 0.0
    with pytest.raises(InputError, match="at least one caption"):
        measure_rematch(np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int))
