"""What captions vouch for, against plain loops; and divisions and partners that words decide."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from l2rm.data.texts import word_weights
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
    scores = MatrixScores(torch.eye(2, dtype=torch.float64))
    worded = WordedScores(scores, unit_words(("red sea", "red dog")), np.array([0, 1]), np.ones(2), strength=1.0)
    assert worded.block(np.arange(2), np.arange(2)).dtype == torch.float64
