import pytest
import torch

from l2rm.errors import InputError
from l2rm.similarity.model import Encoded, build_model, evaluating
from l2rm.similarity.settings import DataShape, ModelConfig


def make(similarity="cosine", **shape):
    torch.manual_seed(0)
    sizes = {"image_dim": 5, "regions": 3} | (shape or {"vocabulary_size": 12})
    return build_model(
        ModelConfig(similarity=similarity, embed_dim=8, word_dim=4, similarity_dim=6), DataShape(**sizes)
    )


IMAGES, TOKENS, LENGTHS = torch.rand(4, 3, 5), torch.randint(1, 12, (2, 6)), torch.tensor([6, 6])


@pytest.mark.parametrize("similarity", ["cosine", "sgr"])
@pytest.mark.parametrize("training", [True, False])
def test_similarity_is_that_of_evaluation_mode_without_gradient(similarity, training):
    model = make(similarity)
    expected = model.eval()(IMAGES, TOKENS, LENGTHS)
    model.train(training)
    S = model.similarity(IMAGES, TOKENS, LENGTHS)
    torch.testing.assert_close(S, expected)
    assert S.shape == (4, 2)
    assert not S.requires_grad
    assert model.training is training
    low, high = model.range
    assert low <= S.min()
    assert S.max() <= high


@pytest.mark.parametrize("similarity", ["cosine", "sgr", "saf"])
def test_token_ids_need_lengths_and_nothing_is_like_nothing(similarity):
    model = make(similarity)
    with pytest.raises(InputError, match=r"give lengths \(M,\)"):
        model.similarity(IMAGES, TOKENS)
    assert model.similarity(IMAGES[:0], TOKENS, LENGTHS).shape == (0, 2)
    assert model.similarity(IMAGES, TOKENS[:0], LENGTHS[:0]).shape == (4, 0)
    embedded = make(similarity, caption_dim=7)
    assert embedded.similarity(IMAGES, torch.rand(2, 7)).shape == (4, 2)


def test_mode_is_restored_after_an_error():
    model = make().train()
    modes = []

    def fail():
        with evaluating(model):
            modes.append(model.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [*modes, model.training] == [False, True]


def test_tokens_without_lengths_are_refused():
    with pytest.raises(InputError, match="length of each caption"):
        make().similarity(IMAGES, TOKENS)


def test_unknown_similarity_is_refused():
    with pytest.raises(InputError, match="'psychic' is unknown; take one of cosine, sgr"):
        make("psychic")


def test_a_shape_without_captions_is_a_mistake():
    with pytest.raises(ValueError, match="vocabulary_size or caption_dim"):
        make(vocabulary_size=None)


def test_encoded_takes_all_its_parts():
    whole, local, lengths = torch.rand(4, 2), torch.rand(4, 3, 2), torch.tensor([1, 2, 3, 1])
    index = torch.tensor([2, 0])
    part = Encoded(whole, local, lengths).take(index)
    assert len(part) == 2
    assert torch.equal(part.whole, whole[index])
    assert torch.equal(part.local, local[index])
    assert part.lengths.tolist() == [3, 1]
    assert Encoded(whole).take(slice(1, 3)).local is None
