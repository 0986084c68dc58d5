"""Scores of a whole set, block by block, against the model asked at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.data.batches import Batches
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.evaluation.ranks import exact_ranks
from l2rm.similarity import scoring, sgraf
from l2rm.similarity.model import build_model
from l2rm.similarity.scoring import JoinedScores, ModelScores
from l2rm.similarity.settings import DataShape, ModelConfig

IMAGES, CAPTIONS = 7, 17


def build(similarity, **config):
    generator = np.random.default_rng(0)
    words = np.array(["red", "blue", "kite", "dog", "the"])
    pairs = Pairs(
        images=tuple(map(str, range(IMAGES))),
        image_of=generator.integers(IMAGES, size=CAPTIONS),
        captions=tuple(" ".join(generator.choice(words, size=generator.integers(1, 9))) for _ in range(CAPTIONS)),
        features=Features(array=generator.normal(size=(IMAGES, 3, 5)).astype(np.float32)),
    )
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    model = build_model(
        ModelConfig(similarity=similarity, embed_dim=8, word_dim=4, similarity_dim=6, **config),
        DataShape(image_dim=5, regions=3, vocabulary_size=len(vocabulary)),
    )
    model.vocabulary = vocabulary
    batches = Batches(pairs, vocabulary)
    everything = model.similarity(batches.images(np.arange(IMAGES)), *batches.captions(np.arange(CAPTIONS)))
    return model, pairs, everything


@pytest.fixture(scope="module", params=["cosine", "sgr", "saf"])
def case(request):
    return build(request.param)


@settings(max_examples=25, deadline=None)
@given(
    chunk=st.integers(1, 20),
    keep=st.sampled_from([0, 2**20]),
    piece=st.integers(1, 12),
    images=st.lists(st.integers(0, IMAGES - 1), min_size=1, max_size=9),
    captions=st.lists(st.integers(0, CAPTIONS - 1), min_size=1, max_size=20),
)
def test_blocks_are_those_of_the_whole_matrix_however_they_are_encoded(case, chunk, keep, piece, images, captions):
    model, pairs, everything = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "ENCODE_CHUNK", chunk)
        patch.setattr(sgraf, "AT_ONCE", piece)
        scores = ModelScores(model, pairs, keep=keep)
        block = scores.block(np.array(images), np.array(captions))
        assert torch.equal(block, scores.block(np.array(images), np.array(captions)))
    assert (scores.n_images, scores.n_captions) == (IMAGES, CAPTIONS)
    torch.testing.assert_close(block, everything[images][:, captions], rtol=1e-4, atol=1e-5)
    assert not block.requires_grad


def test_scores_are_those_of_evaluation_mode_and_leave_the_mode():
    model, pairs, everything = build("sgr", dropout=0.5)
    model.train()
    scores = ModelScores(model, pairs)
    block = scores.block(np.arange(IMAGES), np.arange(CAPTIONS))
    assert model.training
    torch.testing.assert_close(block, everything, rtol=1e-4, atol=1e-5)


def test_caption_embeddings():
    generator = np.random.default_rng(0)
    pairs = Pairs(
        images=("a", "b"),
        image_of=np.array([0, 1, 1]),
        captions=("1", "2", "3"),
        features=Features(array=generator.normal(size=(2, 5)).astype(np.float32)),
        caption_features=Features(array=generator.normal(size=(3, 4)).astype(np.float32)),
    )
    for similarity in ("cosine", "sgr"):
        model = build_model(
            ModelConfig(similarity=similarity, embed_dim=8, similarity_dim=6),
            DataShape(image_dim=5, regions=1, caption_dim=4),
        )
        rows = np.arange(3)
        expected = model.similarity(pairs.features.batch(np.arange(2)), pairs.caption_features.batch(rows))
        torch.testing.assert_close(ModelScores(model, pairs).block(np.arange(2), rows), expected)


def counted(monkeypatch, model, name):
    """How many items each call of one of the model's functions is given."""
    sizes, function = [], getattr(model, name)

    def count(first, second=None):
        sizes.append((len(first), 0 if second is None else len(second)))
        return function(first, second) if name != "encode_images" else function(first)

    monkeypatch.setattr(model, name, count)
    return sizes


def encoded(sizes):
    return sum(size for size, _ in sizes)


def test_what_fits_is_encoded_once_and_what_does_not_is_not_kept(monkeypatch):
    model, pairs, _ = build("sgr")
    monkeypatch.setattr(scoring, "ENCODE_CHUNK", 5)
    images, captions = (counted(monkeypatch, model, f"encode_{name}") for name in ("images", "captions"))
    whole = 8 * 4 * (1 + 3) * IMAGES  # bytes: D numbers for an image and for each of its three regions
    scores = ModelScores(model, pairs, keep=whole)
    assert encoded(images) == IMAGES
    assert encoded(captions) < CAPTIONS  # given up before the end
    for _ in range(2):
        scores.block(np.arange(IMAGES), np.arange(4))
    assert encoded(images) == IMAGES
    images.clear()
    ModelScores(model, pairs, keep=whole - 1).block(np.array([6, 1]), np.arange(4))
    assert [size for size, _ in images] == [5, 2, 2]


def test_ranking_what_cannot_be_kept_encodes_each_caption_twice(monkeypatch):
    model, pairs, _ = build("sgr")
    scores = ModelScores(model, pairs, keep=0)
    captions = counted(monkeypatch, model, "encode_captions")
    streamed = exact_ranks(scores, pairs.image_of, block_images=2, block_captions=6)
    assert encoded(captions) <= 2 * CAPTIONS
    kept = exact_ranks(ModelScores(model, pairs), pairs.image_of)
    assert streamed.i2t.tolist() == kept.i2t.tolist()
    assert streamed.t2i.tolist() == kept.t2i.tolist()


def test_a_block_is_scored_in_pieces_that_do_not_grow_with_it(monkeypatch):
    model, pairs, _ = build("sgr")
    monkeypatch.setattr(sgraf, "AT_ONCE", 2)
    pieces = counted(monkeypatch, model, "_score_block")
    ModelScores(model, pairs).block(np.arange(IMAGES), np.arange(CAPTIONS))
    assert max(images for images, _ in pieces) == 2
    assert max(captions for _, captions in pieces) == 2
    assert sum(images * captions for images, captions in pieces) == IMAGES * CAPTIONS


def test_two_sets_joined_are_blocks_of_one_matrix(case):
    model, pairs, everything = case
    first, rest = pairs.take(np.arange(8)), pairs.take(np.arange(8, CAPTIONS))
    both = JoinedScores(ModelScores(model, first), ModelScores(model, rest))
    images = [int(image) for part in (first, rest) for image in map(int, part.images)]
    assert (both.n_images, both.n_captions) == (len(images), CAPTIONS)
    sides = np.split(np.arange(both.n_images), [first.n_images]), np.split(np.arange(CAPTIONS), [8])
    for rows in sides[0]:
        for columns in sides[1]:
            expected = everything[[images[row] for row in rows]][:, columns]
            torch.testing.assert_close(both.block(rows, columns), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="one after the other"):
        both.block(np.arange(both.n_images), np.arange(3))
