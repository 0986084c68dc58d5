"""Ranks of given images against a plain loop; the cross-fitted division; and runs that learn from it."""

import dataclasses
import os
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.data.batches import Batches
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection
from l2rm.evaluation.scores import MatrixScores
from l2rm.similarity.model import build_model
from l2rm.training import crossfit
from l2rm.training.crossfit import cross_fit, rank_p_values
from l2rm.training.interrupt import Interrupted
from l2rm.training.methods import divided
from l2rm.training.run import load_run
from l2rm.training.train import data_shape
from l2rm.training.trainer import Trainer

FOLDED = {"folds": 3, "take": "weight", "targets": "mass", "matched_objective": "infonce"}


def scores_with_ties(images=12, captions=30, seed=0):
    """Scores of few values, so that many tie, and a given image for every caption; every image is given."""
    rng = np.random.default_rng(seed)
    image_of = rng.permutation(np.arange(captions) % images)
    return rng.integers(0, 4, size=(images, captions)) / 4.0, image_of


def loop_p_values(S, image_of, rivals, tau, together):
    """One caption (or image) after the other: how many rivals reach its given image, which counts half."""
    surprise = {}
    for caption in range(S.shape[1]):
        for image in range(len(S)):
            norm = np.log(sum(np.exp(S[rival, caption] / tau) for rival in {*rivals.tolist(), image}))
            surprise[image, caption] = S[image, caption] / tau - norm
    for image in range(len(S)):
        liked = []
        for rival in {*rivals.tolist(), image}:
            own = [surprise[image, c] for c in range(S.shape[1]) if image_of[c] == rival]
            liked += [np.exp(np.mean(own))] if own else []
        for caption in range(S.shape[1]):
            surprise[image, caption] -= np.log(sum(liked))
    p_values = []
    for caption, given in enumerate(image_of):
        judges = [c for c in range(S.shape[1]) if image_of[c] == given] if together else [caption]
        own = sum(surprise[given, c] for c in judges)
        others = [rival for rival in rivals if rival != given]
        above = sum(sum(surprise[rival, c] for c in judges) >= own - 1e-6 for rival in others)
        p_values.append((above + 0.5) / (len(others) + 1))
    return p_values


# ----------------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("together", [False, True], ids=["pair", "image"])
@pytest.mark.parametrize("rivals", [512, 7], ids=["all", "some"])
def test_p_values_are_those_of_a_plain_loop(monkeypatch, together, rivals):
    monkeypatch.setattr(crossfit, "RIVALS", rivals)
    S, image_of = scores_with_ties()
    S = S + (np.random.default_rng(1).normal(size=S.shape) if together else 0)  # sums that tie do so up to rounding
    p_values = rank_p_values(MatrixScores(S), image_of, tau=0.5, together=together, seed=(5,))
    chosen = np.random.default_rng((5,)).permutation(len(S))[:rivals]
    assert p_values.tolist() == pytest.approx(loop_p_values(S, image_of, chosen, 0.5, together), abs=1e-6)
    assert bool(((p_values > 0) & (p_values < 1)).all())


def test_a_tie_counts_against_the_given_image():
    flat = rank_p_values(MatrixScores(np.zeros((4, 4))), np.arange(4), tau=0.05, together=False, seed=(0,))
    assert flat.tolist() == pytest.approx([3.5 / 4] * 4)
    best = rank_p_values(MatrixScores(np.eye(4)), np.arange(4), tau=0.05, together=False, seed=(0,))
    assert best.tolist() == pytest.approx([0.5 / 4] * 4)


def test_together_captions_of_an_image_share_a_p_value_and_outweigh_one_another():
    S = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.1, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    given = np.array([0, 0, 1, 1])
    alone = rank_p_values(MatrixScores(S), given, tau=0.1, together=False, seed=(0,))
    assert alone.tolist() == pytest.approx([0.5 / 3, 2.5 / 3, 0.5 / 3, 0.5 / 3])
    together = rank_p_values(MatrixScores(S), given, tau=0.1, together=True, seed=(0,))
    assert together.tolist() == pytest.approx([0.5 / 3] * 4)


@pytest.mark.parametrize("together", [False, True], ids=["pair", "image"])
@pytest.mark.parametrize("chunk", [1, 4, 29])
def test_chunks_change_nothing(monkeypatch, together, chunk):
    rng = np.random.default_rng(3)
    S, image_of = rng.normal(size=(12, 30)), scores_with_ties()[1]
    whole = rank_p_values(MatrixScores(S), image_of, tau=0.5, together=together, seed=(5,))
    monkeypatch.setattr(crossfit, "CHUNK", chunk)
    assert torch.equal(rank_p_values(MatrixScores(S), image_of, tau=0.5, together=together, seed=(5,)), whole)


def test_ranks_of_chance_are_uniform():
    rng = np.random.default_rng(0)
    p = rank_p_values(MatrixScores(rng.normal(size=(100, 2000))), np.arange(2000) % 100, tau=1, together=False, seed=())
    assert np.histogram(p, bins=10, range=(0, 1))[0].tolist() == pytest.approx([200] * 10, abs=60)


def test_a_given_image_that_is_no_rival_fares_as_those_that_are(monkeypatch):
    """Of mismatched pairs, with most images no rivals: uniform p-values, whoever is given."""
    monkeypatch.setattr(crossfit, "RIVALS", 200)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(600, 24))
    captions = images + 0.6 * rng.normal(size=images.shape)
    given = np.arange(600)
    given[:240] = np.roll(given[:240], 7)  # captions 0 to 239 belong to other images
    S = (images / np.linalg.norm(images, axis=1)[:, None]) @ (captions / np.linalg.norm(captions, axis=1)[:, None]).T
    p = rank_p_values(MatrixScores(S), given, tau=0.05, together=False, seed=(1,)).numpy()
    rival = np.isin(given, np.random.default_rng((1,)).permutation(600)[:200])
    wrong = np.arange(600) < 240
    assert p[wrong & rival].mean() == pytest.approx(p[wrong & ~rival].mean(), abs=0.08)
    assert p[wrong].mean() == pytest.approx(0.5, abs=0.1)
    assert p[~wrong].mean() < 0.05


def test_scores_that_are_not_numbers_are_refused():
    S = np.random.default_rng(0).normal(size=(4, 4))
    S[1, 2] = np.nan
    with pytest.raises(InputError, match="scores: NaN"):
        rank_p_values(MatrixScores(S), np.arange(4), tau=1, together=False, seed=())


# -------------------------------------------------------------------------------------------------------- division


@pytest.fixture
def fitted(small):
    """`fitted(settings)`: cross-fit on the small set; with the model that it was told."""

    def fit(**rematching):
        pairs = small.small_train()
        config = small.small_config(rematching={"folds": 3, **rematching})
        torch.manual_seed(0)
        vocabulary = Vocabulary.build(pairs.captions, min_count=1)
        model = build_model(config.model, data_shape(pairs, vocabulary))
        model.vocabulary = vocabulary
        return cross_fit(model, Batches(pairs, vocabulary), config), pairs, model

    return fit


@pytest.mark.parametrize("evidence", ["pair", "image"])
def test_mismatches_are_found_by_models_that_did_not_see_them(fitted, evidence):
    division, pairs, _ = fitted(evidence=evidence)
    assert division.match_probability.dtype == division.losses.dtype == np.float32
    assert measure_detection(division.match_probability, pairs.is_mismatched).auroc > 0.8
    facts = division.statistics(0.5, pairs.is_mismatched)
    assert facts["accuracy"] > 0.75
    assert facts["estimated_ratio"] == pytest.approx(0.4, abs=0.15)
    assert {"mismatch_ratio", "matched", "mismatched", "purity"} <= facts.keys()
    if evidence == "image":
        for image in range(pairs.n_images):
            assert len(set(division.match_probability[pairs.image_of == image])) == 1


def test_nothing_else_is_touched_and_the_result_is_the_same_again(fitted, small):
    pairs = small.small_train()
    config = small.small_config(rematching={"folds": 2, "fold_rounds": 1})
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    model = build_model(config.model, data_shape(pairs, vocabulary)).train()
    model.vocabulary = vocabulary
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = cross_fit(model, Batches(pairs, vocabulary), config)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    again = cross_fit(model, Batches(pairs, vocabulary), config)
    assert np.array_equal(first.match_probability, again.match_probability)
    assert np.array_equal(first.losses, again.losses)
    other = cross_fit(model, Batches(pairs, vocabulary), dataclasses.replace(config, seed=1))
    assert not np.array_equal(first.losses, other.losses)


@pytest.mark.parametrize("rematching_epochs", [0, 1])
def test_no_model_judges_an_image_that_it_learned_from(small, monkeypatch, fitted, rematching_epochs):
    learned, judged, moved = [], [], []
    make, repaired, p_values = crossfit.fold_model, crossfit.repaired, crossfit.rank_p_values

    def watched(model, batches, matched, config, **options):
        learned.append(set(batches.pairs.image_of[matched]))
        return make(model, batches, matched, config, **options)

    def repairing(batches, *others):
        lesson = repaired(batches, *others)
        learned[-1] |= set(lesson.images) | set(batches.pairs.image_of[lesson.rows])
        moved.append(int((lesson.images != batches.pairs.image_of[lesson.rows]).sum()))
        return lesson

    def ranked(scores, image_of, **options):
        judged.append(len(image_of))
        return p_values(scores, image_of, **options)

    takes = []
    take = type(small.small_train()).take

    def taken(self, rows):
        if len(self) == 360:
            takes.append(set(self.image_of[rows]))
        return take(self, rows)

    monkeypatch.setattr(crossfit, "fold_model", watched)
    monkeypatch.setattr(crossfit, "repaired", repairing)
    monkeypatch.setattr(crossfit, "rank_p_values", ranked)
    monkeypatch.setattr(type(small.small_train()), "take", taken)
    fitted(folds=3, fold_rounds=2, fold_rematching_epochs=rematching_epochs)
    assert len(moved) == 3 * rematching_epochs
    assert all(count > 30 for count in moved)  # of some 100 suspects among the pairs of two folds
    assert len(learned) == len(judged) == 6
    assert sum(judged) == 2 * 360
    held_out_of = [images for images in takes if len(images) == 60]
    for images, held_out in zip(learned, held_out_of, strict=True):
        assert not images & held_out
    assert all(len(images) == 120 for images in learned[:3])  # all the others; then those drawn as matched
    if not rematching_epochs:
        assert all(len(images) < 120 for images in learned[3:])


def test_where_folds_rematch_the_first_round_counts_no_more(fitted, monkeypatch):
    """Its models learned the mismatches."""
    rounds, fit = [], crossfit.RankMixture.fit

    def watched(p_values):
        mixture = fit(p_values)
        rounds.append(mixture.match_probability(p_values).numpy())
        return mixture

    monkeypatch.setattr(crossfit.RankMixture, "fit", watched)
    division, _, _ = fitted(folds=2, fold_rounds=3, fold_rematching_epochs=1)
    assert np.allclose(division.match_probability, np.mean(rounds[1:], 0), atol=1e-6)
    rounds.clear()
    division, _, _ = fitted(folds=2, fold_rounds=3)
    assert np.allclose(division.match_probability, np.mean(rounds, 0), atol=1e-6)


def test_a_signal_stops_it(small, fitted, monkeypatch):
    pairs, config = small.small_train(20), small.small_config(rematching={"folds": 2})
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    model = build_model(config.model, data_shape(pairs, vocabulary))
    model.vocabulary = vocabulary

    def stop():
        raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        cross_fit(model, Batches(pairs, vocabulary), config, stop=stop)


# ------------------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def folded(small, tmp_path_factory):
    """An uninterrupted run with folds; no test may change it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("folded") / "run"
    return small.train(
        small.small_train(), small.small_dev(), small.small_config(rematching=FOLDED), out, progress=False
    )


def test_a_run_with_folds_learns_from_draws_and_by_mass(small, folded):
    pairs = small.small_train()
    chance = 2 * 100 * (1 + 5 + 10) / 30
    assert all(line["dev"]["rsum"] > 3 * chance for line in folded.metrics[3:])
    assert all(np.isfinite(list(line["losses"].values())).all() for line in folded.metrics)
    lines = folded.metrics[3:]
    assert [line["division"] for line in lines] == [lines[0]["division"]] * 3  # divided once, as no model may learn it
    assert all(line["transport"]["mass"] == pytest.approx(0.1, abs=1e-4) for line in lines)
    probability = pq.read_table(folded.folder / "pairs.parquet")["match_probability"].to_numpy()
    assert measure_detection(probability, pairs.is_mismatched).auroc > 0.8
    division = lines[0]["division"]
    assert division["matched"] == int((probability > 0.5).sum())
    assert division["estimated_ratio"] == pytest.approx(1 - probability.mean(), abs=1e-6)


def test_its_folder_tells_the_cross_fitted_probabilities_of_its_own_pairs_only(small, folded):
    pairs = small.small_train()
    run = load_run(folded.folder)
    probability = run.match_probability(pairs)
    assert probability.dtype == np.float64
    table = pq.read_table(folded.folder / "pairs.parquet")
    assert np.array_equal(probability, table["match_probability"].to_numpy())
    other = small.small_pairs(180, seed=1)  # the same captions, most on other images
    learned = set(zip(table["image"].to_pylist(), table["caption"].to_pylist(), strict=True))
    names = [(other.images[image], caption) for image, caption in zip(other.image_of, other.captions, strict=True)]
    found = run.match_probability(other)
    assert [name not in learned for name in names] == (
        [True] * len(other) if found is None else np.isnan(found).tolist()
    )
    assert run.match_probability(small.small_dev()) is None
    order = np.random.default_rng(0).permutation(360)[:200]
    np.testing.assert_array_equal(np.sort(run.match_probability(pairs.take(order))), np.sort(probability[order]))


def test_every_pair_is_learned_by_its_match_probability_from_the_first_epoch_on(small, monkeypatch, tmp_path):
    learned, learn = [], Trainer._learn

    def watched(self, epoch, matched, *suspects):
        rows = suspects[0].rows if suspects and suspects[0] is not None else None
        learned.append((epoch, matched.rows, rows, matched.weights))
        return learn(self, epoch, matched, *suspects)

    monkeypatch.setattr(Trainer, "_learn", watched)
    config = small.small_config(warmup_epochs=1, rematching_epochs=2, rematching={**FOLDED, "fold_rounds": 1})
    run = small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    probability = run.match_probability(small.small_train())
    assert {epoch for epoch, *_ in learned} == {0, 1, 2}
    for _, matched, _, weights in learned:
        assert weights.tolist() == pytest.approx(probability[matched].tolist(), abs=1e-6)
    for epoch in (0, 1, 2):
        assert len(np.concatenate([m for e, m, *_ in learned if e == epoch])) == 360  # the unlikely ones as well
    rematched = np.concatenate([m for epoch, _, m, _ in learned if epoch])
    assert (probability[rematched] <= 0.5).all()
    assert all(mismatched is None for epoch, _, mismatched, _ in learned if not epoch)


@pytest.mark.parametrize("when", ["while cross-fitting", "between two steps"])
def test_a_run_with_folds_goes_on_where_it_stopped(small, folded, tmp_path, monkeypatch, when):
    def go():
        config = small.small_config(rematching=FOLDED)
        return small.train(
            small.small_train(), small.small_dev(), config, tmp_path / "run", resume=True, progress=False
        )

    owner, name = (crossfit, "fold_model") if when == "while cross-fitting" else (Trainer, "_learn")
    step, done, at = getattr(owner, name), 0, 4 if owner is crossfit else 3 * 12 + 9

    def signalled(*arguments, **options):
        nonlocal done
        done += 1
        if done == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments, **options)

    monkeypatch.setattr(owner, name, signalled)
    with pytest.raises(Interrupted):
        go()
    assert done == at
    if owner is Trainer:  # what was divided before is not divided again
        monkeypatch.setattr(divided, "cross_fit", lambda *_, **__: pytest.fail("divides again"))
    run = go()
    for name in ("model.safetensors", "pairs.parquet"):
        assert (run.folder / name).read_bytes() == (folded.folder / name).read_bytes(), name
    timeless = ("epoch", "losses", "dev", "transport")
    assert [[line[key] for key in timeless] for line in run.metrics] == [
        [line[key] for key in timeless] for line in folded.metrics
    ]


@pytest.mark.parametrize("save_seconds", [0.0, pytest.param(1000.0, marks=pytest.mark.slow)])
def test_folds_that_are_finished_are_not_trained_again(small, folded, tmp_path, monkeypatch, save_seconds):
    def go():
        config = small.small_config(rematching=FOLDED, save_seconds=save_seconds)
        return small.train(
            small.small_train(), small.small_dev(), config, tmp_path / "run", resume=True, progress=False
        )

    make, p_values, seen = crossfit.fold_model, crossfit.rank_p_values, []

    def counted(*arguments, **options):
        seen.append(options["seed"])
        return make(*arguments, **options)

    def killed(*arguments, **options):
        if len(seen) == 4:  # as kill -9 would, after the third of the six was saved
            if save_seconds:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise KeyboardInterrupt
        return p_values(*arguments, **options)

    monkeypatch.setattr(crossfit, "fold_model", counted)
    monkeypatch.setattr(crossfit, "rank_p_values", killed)
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        go()
    monkeypatch.setattr(crossfit, "rank_p_values", p_values)
    del seen[:3]
    run = go()
    assert [(turn, fold) for *_, turn, fold in seen] == [(1, 0), (1, 0), (1, 1), (1, 2)]
    for name in ("model.safetensors", "pairs.parquet"):
        assert (run.folder / name).read_bytes() == (folded.folder / name).read_bytes(), name


def test_other_folds_are_another_configuration(small, folded, tmp_path):
    shutil.copytree(folded.folder, tmp_path / "run")
    config = small.small_config(rematching={**FOLDED, "folds": 4})
    with pytest.raises(InputError, match=r"rematching\.folds was 3 and is now 4"):
        small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize(
    ("rematching", "schedule", "message"),
    [
        ({"folds": 1}, {}, "rematching.folds: 1 "),
        ({"folds": 91}, {}, "small: 180 training images are fewer than two for each of 91 folds"),
        ({"folds": 2}, {"warmup_epochs": 0}, "rematching.folds: "),
        ({"folds_by": "image+caption"}, {}, "rematching.folds_by: says what falls into folds, which are 0"),
        ({"wording": 0.2}, {}, "rematching.wording: words count where folds divide"),
        ({"wording": -1.0, "folds": 2}, {}, "rematching.wording: -1.0 is too small"),
    ],
    ids=["a single fold", "more folds than images", "no warm-up", "captions of no folds", "words of no folds", "less"],
)
def test_folds_that_cannot_be_are_refused(small, tmp_path, rematching, schedule, message):
    config = small.small_config(rematching=rematching, **schedule)
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()
