"""Judges that never saw what they judge, and audits that need no trained model."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from l2rm.auditing.crossfit import CrossFittedScores, cross_fit_config, cross_fit_pairs
from l2rm.auditing.judge import audit_without_model
from l2rm.data.features import Features
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.scores import MatrixScores
from l2rm.training import crossfit

pytestmark = pytest.mark.usefixtures("one_thread")
FOLDS_BY: tuple[Literal["image", "image+caption"], ...] = ("image", "image+caption")
WORDS = ("red", "blue", "dog", "cat", "kite", "sea", "tree", "car", "sun", "moon", "hat", "bee")


def world(images: int = 240, *, ratio: float = 0.3, embedded: int | None = None) -> Pairs:
    """Images of four words each, 30 % of them mismatched; captions as words, or as embeddings of `embedded` numbers."""
    generator = np.random.default_rng(0)
    words = np.stack([generator.permutation(len(WORDS))[:4] for _ in range(images)])
    meaning = generator.normal(size=(len(WORDS), 24))
    features = meaning[words].sum(1) + 0.3 * generator.normal(size=(images, 24))
    captions = None
    if embedded is not None:
        turned = generator.normal(size=(24, embedded)) if embedded != 24 else np.eye(24)
        captions = Features(array=((meaning[words].sum(1) + 0.3 * generator.normal(size=(images, 24))) @ turned))
    pairs = Pairs(
        images=tuple(f"{n}" for n in range(images)),
        image_of=np.arange(images),
        captions=tuple(" ".join(WORDS[word] for word in row) for row in words),
        features=Features(array=features),
        caption_features=captions,
        source="world",
    )
    return inject_mismatches(pairs, ratio=ratio, level="image", seed=1).pairs


def quick(pairs: Pairs, **settings: object):  # type: ignore[no-untyped-def]
    config = cross_fit_config(pairs)
    rematching = replace(config.rematching, folds=3, fold_rounds=1)
    return replace(config, batch_size=32, warmup_epochs=6, rematching=rematching, **settings)


def test_no_judge_has_seen_what_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = world(90)
    learned: list[np.ndarray] = []
    judged: list[tuple[str, ...]] = []
    inner, ranked = crossfit.fold_model, crossfit.rank_p_values

    def fold_model(model, batches, rows, *rest, **options):  # type: ignore[no-untyped-def]
        learned.append(rows)
        return inner(model, batches, rows, *rest, **options)

    def rank_p_values(scores, image_of, **settings):  # type: ignore[no-untyped-def]
        judged.append(tuple(image_of.tolist()))
        return ranked(scores, image_of, **settings)

    monkeypatch.setattr(crossfit, "fold_model", fold_model)
    monkeypatch.setattr(crossfit, "rank_p_values", rank_p_values)
    groups = np.arange(90) // 2  # images by twos are one picture
    found = cross_fit_pairs(pairs, quick(pairs), groups=groups, progress=False)
    assert len(learned) == len(judged) == 3
    everyone = np.arange(90)
    for rows, own in zip(learned, judged, strict=True):
        assert len(own) == 90 - len(rows)
        assert not set(groups[pairs.image_of[rows]]) & set(groups[pairs.image_of[np.setdiff1d(everyone, rows)]])
    assert ((found.p_values > 0) & (found.p_values <= 1)).all()


def test_no_judge_has_seen_the_words_of_a_caption_that_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = world(90)
    captions = tuple("Part of a set" if row % 5 == 0 else text for row, text in enumerate(pairs.captions))
    pairs = replace(pairs, captions=("part of a SET!", *captions[1:]))
    config = quick(pairs)
    learned: list[np.ndarray] = []
    inner = crossfit.fold_model

    def fold_model(model, batches, rows, *rest, **options):  # type: ignore[no-untyped-def]
        learned.append(rows)
        return inner(model, batches, rows, *rest, **options)

    monkeypatch.setattr(crossfit, "fold_model", fold_model)
    cross_fit_pairs(pairs, config, progress=False)
    by_image, learned = learned, []
    assert any((rows % 5 == 0).any() for rows in by_image)
    by_text = replace(config, rematching=replace(config.rematching, folds_by="image+caption"))
    found = cross_fit_pairs(pairs, by_text, progress=False)
    for rows, before in zip(learned, by_image, strict=True):
        assert set(rows) < set(before)  # folds are as they were
        held_out = np.setdiff1d(np.arange(90), before)
        said = {" ".join(pairs.captions[row].lower().strip("!").split()) for row in held_out}
        assert not said & {pairs.captions[row].lower() for row in rows}
        assert set(before) - set(rows) == {row for row in before if pairs.captions[row].lower().strip("!") in said}
    assert len(found.p_values) == 90


def test_an_audit_hands_on_what_its_folds_are_by() -> None:
    pairs = world(90)
    pairs = replace(pairs, captions=tuple("a set" if row % 3 == 0 else text for row, text in enumerate(pairs.captions)))
    by = {by: audit_without_model(pairs, folds_by=by, progress=False).match_probability for by in FOLDS_BY}
    assert not np.array_equal(by["image"], by["image+caption"])


def test_captions_of_which_each_stands_in_every_fold_leave_nothing_to_learn_from() -> None:
    pairs = replace(world(60), captions=tuple("a set" for _ in range(60)))
    config = quick(pairs)
    config = replace(config, rematching=replace(config.rematching, folds_by="image+caption"))
    with pytest.raises(RuntimeError, match=r"0 pairs of fold 1 .* leaves out what has a caption of the fold"):
        cross_fit_pairs(pairs, config, progress=False)


def test_scores_are_means_of_the_two_models_that_know_one_side_less() -> None:
    generator = np.random.default_rng(0)
    matrices = [generator.normal(size=(7, 9)).astype(np.float32) for _ in range(3)]
    image_fold, caption_fold = generator.integers(0, 3, 7), generator.integers(0, 3, 9)
    scores = CrossFittedScores([MatrixScores(matrix) for matrix in matrices], image_fold, caption_fold)
    images, captions = np.array([6, 0, 3]), np.array([8, 1, 2, 5])
    expected = [
        [(matrices[image_fold[i]][i, c] + matrices[caption_fold[c]][i, c]) / 2 for c in captions] for i in images
    ]
    np.testing.assert_allclose(scores.block(images, captions).numpy(), expected, atol=1e-6)


def test_words_are_judged_by_models_made_for_it() -> None:
    audit = audit_without_model(world(), progress=False)
    assert audit.detection is not None
    assert audit.detection.auroc > 0.85
    assert audit.p_values is not None
    assert audit.mismatch_ratio is not None
    assert audit.mismatch_ratio.method == "rank mixture"
    assert 0.15 < audit.mismatch_ratio.estimate < 0.55
    assert ((audit.rematch_confidence >= 0) & (audit.rematch_confidence <= 1)).all()


def test_embeddings_of_one_space_are_judged_by_their_cosine() -> None:
    pairs = world(embedded=24)
    audit = audit_without_model(pairs, progress=False)
    assert audit.detection is not None
    assert audit.detection.auroc > 0.98
    assert audit.p_values is None
    assert audit.rematch_hits is not None
    assert audit.rematch_hits.hit1 > 0.6


def test_other_dimensions_or_head_learn_heads(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "l2rm"):
        audit = audit_without_model(world(embedded=16), progress=False)
    assert "linear heads are learned" in caplog.text
    assert audit.p_values is not None
    assert audit.detection is not None
    assert audit.detection.auroc > 0.8
    assert audit_without_model(world(100, embedded=24), head=True, progress=False).p_values is not None


def test_embeddings_of_two_spaces_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pairs = world(embedded=24)
    strangers = Features(array=np.random.default_rng(5).normal(size=(240, 24)))
    with caplog.at_level(logging.WARNING, "l2rm"):
        audit_without_model(replace(pairs, caption_features=strangers), progress=False)
    assert "--head" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "l2rm"):
        audit_without_model(pairs, progress=False)
    assert not caplog.text


def test_what_cannot_be_judged_is_told(tmp_path: Path) -> None:
    pairs = world(10)
    with pytest.raises(InputError, match="too few to learn on some and judge others"):
        audit_without_model(pairs, progress=False)
    with pytest.raises(InputError, match="--head is for embeddings"):
        audit_without_model(pairs, head=True, progress=False)
    with pytest.raises(InputError, match="without features"):
        audit_without_model(replace(pairs, features=None), progress=False)


def test_the_same_seed_gives_the_same_verdicts() -> None:
    pairs = world(90)
    torch.manual_seed(1)
    one = cross_fit_pairs(pairs, quick(pairs), progress=False)
    torch.manual_seed(2)
    two = cross_fit_pairs(pairs, quick(pairs), progress=False)
    np.testing.assert_array_equal(one.p_values, two.p_values)


@pytest.mark.parametrize(("rounds", "stopped_at"), [(1, 2), (2, 5)])
def test_a_cross_fit_that_was_stopped_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rounds: int, stopped_at: int
) -> None:
    pairs = world(90)
    config = quick(pairs)
    config = replace(config, rematching=replace(config.rematching, fold_rounds=rounds))
    whole = cross_fit_pairs(pairs, config, progress=False)
    ranked, calls = crossfit.rank_p_values, []

    def dies(*given, **settings):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return ranked(*given, **settings)

    monkeypatch.setattr(crossfit, "rank_p_values", dies)
    with pytest.raises(KeyboardInterrupt):
        cross_fit_pairs(pairs, config, progress=False, keep=tmp_path / "folds")
    again = cross_fit_pairs(pairs, config, progress=False, keep=tmp_path / "folds")
    assert len(calls) == 3 * rounds + 1  # nothing but the fold that was stopped is done twice
    np.testing.assert_array_equal(again.p_values, whole.p_values)
    np.testing.assert_array_equal(again.match_probability, whole.match_probability)
    everything = np.arange(90), np.arange(len(pairs))
    np.testing.assert_array_equal(again.scores.block(*everything), whole.scores.block(*everything))


def test_what_another_cross_fit_kept_is_not_taken(tmp_path: Path) -> None:
    pairs, folder = world(90), tmp_path / "folds"
    cross_fit_pairs(pairs, quick(pairs), progress=False, keep=folder)
    other = replace(pairs, captions=pairs.captions[::-1])
    kept = cross_fit_pairs(other, quick(other), progress=False, keep=folder)
    np.testing.assert_array_equal(kept.p_values, cross_fit_pairs(other, quick(other), progress=False).p_values)
    file = folder / "00.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    with pytest.raises(InputError, match=r"00\.safetensors: is damaged .*; delete the folder .*folds and audit again"):
        cross_fit_pairs(other, quick(other), progress=False, keep=folder)


def test_progress_is_told_by_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def track(items, *, total: int, **_: object):  # type: ignore[no-untyped-def]
        for done, item in enumerate(items):
            told.append((done, total))
            yield item

    monkeypatch.setattr("l2rm.auditing.crossfit.track", track)
    pairs = world(90)
    cross_fit_pairs(pairs, quick(pairs))
    total = told[0][1]
    assert total == 3 * round(6 * 60 / 32)  # of folds, epochs, pairs and pairs a batch
    assert [done for done, _ in told] == list(range(total + 1))
