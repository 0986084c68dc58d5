"""What captions vouch for, against plain loops; and divisions and partners that words decide."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from l2rm.auditing.rematch import rematch_scores
from l2rm.data.pairs import Pairs
from l2rm.data.texts import word_weights
from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection
from l2rm.evaluation.scores import MatrixScores
from l2rm.rematching.partners import find_partners
from l2rm.training.crossfit import rank_p_values
from l2rm.training.wording import PRIOR, WordedScores, unit_words

SENTENCE = "a dog runs over grass while two old men in red hats watch the grey sea from tall rocks by night"
WORDS = SENTENCE.split(" ")


def texts(count, rng, words=WORDS):
    return tuple(" ".join(rng.choice(words, rng.integers(1, 7))) for _ in range(count))


def loop_weights(captions):
    """TF-IDF of each caption as a dict of words."""
    bags = [Counter(caption.split()) for caption in captions]
    having = Counter(word for bag in bags for word in bag)
    idf = {word: math.log((1 + len(captions)) / (1 + number)) for word, number in having.items()}
    return [{word: number * idf[word] for word, number in bag.items()} for bag in bags]


def loop_likeness(captions, image_of, trust, images):
    """One cell after the other: the mean cosine with the image's other captions, half a silent one among them."""
    vectors = []
    for weights in loop_weights(captions):
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        vectors.append({word: weight / length for word, weight in weights.items()} if length else {})
    found = np.zeros((images, len(captions)))
    for image in range(images):
        for c, vector in enumerate(vectors):
            others = [o for o in range(len(captions)) if image_of[o] == image and o != c]
            total = sum(trust[o] * sum(vector.get(w, 0) * value for w, value in vectors[o].items()) for o in others)
            found[image, c] = total / (sum(trust[o] for o in others) + PRIOR)
    return found


def test_weights_of_words_are_those_of_a_plain_count():
    captions = (*texts(20, np.random.default_rng(0)), "")
    found = word_weights(captions).toarray()
    for row, expected in zip(found, loop_weights(captions), strict=True):
        assert sorted(row[row > 0]) == pytest.approx(sorted(value for value in expected.values() if value))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_cell_is_the_score_and_what_the_other_captions_say(seed):
    rng = np.random.default_rng(seed)
    captions, image_of, trust = texts(23, rng), rng.integers(0, 6, 23), rng.random(23)
    S = rng.normal(size=(7, 23))  # the last image is given no caption
    likeness = loop_likeness(captions, image_of, trust, 7)
    worded = WordedScores(MatrixScores(S), unit_words(captions), image_of, trust, strength=1.5)
    expected = S + 1.5 * S.std() / likeness.std() * likeness
    images, chosen = np.array([6, 2, 2, 0]), np.array([3, 22, 0, 3, 7])
    assert worded.block(np.arange(7), np.arange(23)).numpy() == pytest.approx(expected, abs=1e-5)
    assert worded.block(images, chosen).numpy() == pytest.approx(expected[np.ix_(images, chosen)], abs=1e-5)


def test_a_caption_does_not_vouch_for_itself():
    captions = ("red hats", "grey sea", "old men")
    worded = WordedScores(MatrixScores(np.eye(3)), unit_words(captions), np.arange(3), np.ones(3), strength=1.0)
    assert worded.block(np.arange(3), np.arange(3)).tolist() == np.eye(3).tolist()


@pytest.mark.parametrize("captions", [("", "", ""), ("same", "same", "same")])
def test_captions_whose_words_tell_nothing_change_nothing(captions):
    S = np.arange(9.0).reshape(3, 3)
    worded = WordedScores(MatrixScores(S), unit_words(captions), np.arange(3), np.ones(3), strength=1.0)
    assert worded.block(np.arange(3), np.arange(3)).tolist() == S.tolist()


def told_apart(ratio=0.4, images=60, each=5, seed=0):
    """Images of which every one has words of its own; some captions at random images; scores that hardly know."""
    rng = np.random.default_rng(seed)
    true = np.repeat(np.arange(images), each)
    captions = tuple(f"thing{image} " + " ".join(rng.choice(WORDS, 3)) for image in true)
    given = true.copy()
    moved = rng.permutation(len(true))[: round(ratio * len(true))]
    given[moved] = given[np.roll(moved, 1)]
    S = rng.normal(size=(images, len(true)))
    S[true, np.arange(len(true))] += 1.0
    return captions, true, given, S.astype(np.float32)


def test_words_find_captions_that_went_astray():
    captions, true, given, S = told_apart()
    bare = MatrixScores(S)
    worded = WordedScores(bare, unit_words(captions), given, np.ones(len(given)), strength=1.0)

    def auroc(scores):
        p_values = rank_p_values(scores, given, tau=1.0, together=False, seed=(0,))
        return measure_detection(1 - p_values.numpy(), given != true).auroc

    assert auroc(bare) < 0.8 < 0.9 < auroc(worded)


def test_words_lead_captions_back():
    captions, true, given, S = told_apart()
    probability = np.where(given == true, 1.0, 0.0)
    worded = WordedScores(MatrixScores(S), unit_words(captions), given, probability, strength=1.0)
    right = [
        float((find_partners(scores, given, probability).suggested[:, 0] == true)[given != true].mean())
        for scores in (MatrixScores(S), worded)
    ]
    assert right[0] < 0.3 < 0.7 < right[1]


def test_scores_keep_their_type():
    scores = MatrixScores(torch.eye(2, 4, dtype=torch.float64))
    words = unit_words(("red sea", "red dog", "old men", "old sea"))
    worded = WordedScores(scores, words, np.array([0, 0, 1, 1]), np.ones(4), strength=1.0)
    block = worded.block(np.arange(2), np.arange(4))
    assert block.dtype == torch.float64
    assert not torch.equal(block, torch.eye(2, 4, dtype=torch.float64))


def test_captions_that_share_no_word_are_not_told_apart_by_rounding():
    rng = np.random.default_rng(0)
    captions = tuple(f"a{c} b{c} c{c}" for c in range(200))
    S = rng.normal(size=(40, 200))
    worded = WordedScores(MatrixScores(S), unit_words(captions), np.arange(200) % 40, rng.random(200), strength=0.2)
    assert worded.block(np.arange(40), np.arange(200)).numpy() == pytest.approx(S, abs=1e-4)


def test_a_single_shared_word_does_not_outweigh_the_scores():
    captions = ("kite one", "kite two", *(f"a{c} b{c}" for c in range(398)))
    S = np.random.default_rng(0).normal(size=(200, 400))
    worded = WordedScores(MatrixScores(S), unit_words(captions), np.arange(400) % 200, np.ones(400), strength=0.2)
    change = worded.block(np.arange(200), np.arange(400)).numpy() - S
    assert 0 < np.abs(change).max() < 10


def test_an_only_caption_speaks_neither_for_its_image_nor_against_it():
    rng = np.random.default_rng(0)
    captions = texts(300, rng)
    S = rng.normal(size=(300, 300))  # chance: every rank as often as any other
    worded = WordedScores(MatrixScores(S), unit_words(captions), np.arange(300), np.ones(300), strength=0.5)
    p_values = rank_p_values(worded, np.arange(300), tau=1.0, together=False, seed=(0,))
    assert float(p_values.mean()) == pytest.approx(0.5, abs=0.06)


def test_scores_of_no_candidates_are_left_out_of_the_spread_and_others_named():
    captions, _, given, S = told_apart()
    S[3, 4] = -np.inf
    block = WordedScores(MatrixScores(S), unit_words(captions), given, np.ones(300), strength=1.0).block(
        np.arange(60), np.arange(300)
    )
    assert block.isfinite().sum() == block.numel() - 1
    S[7, 9] = np.nan
    with pytest.raises(InputError, match="NaN for image 7 and caption 9"):
        WordedScores(MatrixScores(S), unit_words(captions), given, np.ones(300), strength=1.0)


def test_rematching_asks_words_where_each_caption_goes_by_itself():
    captions, true, given, S = told_apart()
    pairs = Pairs(images=tuple(f"{i}.jpg" for i in range(60)), image_of=given, captions=captions)
    probability = np.where(given == true, 1.0, 0.0)

    def suggested(**options):
        found = rematch_scores(MatrixScores(S), pairs, match_probability=probability, progress=False, **options)
        return found.partners.suggested[:, 0]

    assert (suggested() == true)[given != true].mean() < 0.3
    assert (suggested(wording=1.0) == true)[given != true].mean() > 0.7
    assert np.array_equal(suggested(level="image", wording=1.0), suggested(level="image"))
