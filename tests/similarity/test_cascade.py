"""Two passes against the exact scores."""

import numpy as np
import pytest
import torch

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.similarity import cascade as module
from l2rm.similarity.cascade import CascadeScores, cascade, pooled, shortlist
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import Encoded, build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.similarity.settings import DataShape, ModelConfig


@pytest.fixture(scope="module", params=["sgr", "saf"])
def scored(request):
    torch.manual_seed(0)
    config = ModelConfig(similarity=request.param, embed_dim=12, word_dim=6, similarity_dim=8)
    model = build_model(config, DataShape(image_dim=10, regions=5, vocabulary_size=30))
    lengths = torch.randint(1, 8, (20,))
    tokens = torch.randint(4, 30, (20, 7)) * (torch.arange(7) < lengths[:, None])
    model.eval()
    with torch.no_grad():
        images, captions = model.encode_images(torch.randn(9, 5, 10)), model.encode_captions(tokens, lengths)
        exact = model.score(images, captions)
    return model.train(), images, captions, exact


@pytest.mark.parametrize("distilled", [False, True])
def test_what_is_listed_is_exact_and_above_the_rest_in_the_order_of_the_cheap_score(scored, distilled):
    model, images, captions, exact = scored
    first_pass = FirstPass(12) if distilled else None
    cheap = first_pass.score(images, captions) if distilled else pooled(images, captions)
    found = cascade(model, images, captions, 0.4, first_pass)
    assert model.training
    listed = found >= 0
    assert listed.equal(shortlist(cheap, 0.4))
    torch.testing.assert_close(found[listed], exact[listed])
    assert (found[~listed] < 0).all()
    torch.testing.assert_close(found[~listed].argsort(), cheap[~listed].argsort())
    for dim, count in ((0, 2), (1, 4)):  # 20 % of 9 images and of 20 captions
        assert listed.gather(dim, cheap.topk(count, dim).indices).all()
        assert listed.sum(dim).min() >= count
    assert not listed.all()


@pytest.fixture
def data_set():
    generator = np.random.default_rng(0)
    captions = tuple(" ".join(f"w{n}" for n in generator.integers(20, size=1 + k % 6)) for k in range(23))
    features = Features(array=generator.normal(size=(11, 5, 10)).astype(np.float32))
    pairs = Pairs(images=tuple(map(str, range(11))), image_of=np.arange(23) % 11, captions=captions, features=features)
    torch.manual_seed(0)
    config = ModelConfig(similarity="sgr", embed_dim=12, word_dim=6, similarity_dim=8)
    vocabulary = Vocabulary.build(captions, min_count=1)
    model = build_model(config, DataShape(image_dim=10, regions=5, vocabulary_size=len(vocabulary)))
    model.vocabulary = vocabulary
    return model, pairs


@pytest.mark.parametrize("keep", [0, 2**27])
def test_a_data_set_goes_block_by_block_to_the_same_scores(data_set, monkeypatch, keep):
    monkeypatch.setattr(module, "ENCODE_CHUNK", 4)
    scores, first_pass = ModelScores(*data_set, keep=keep), FirstPass(12)
    images, captions = np.arange(11), np.arange(23)
    found = CascadeScores(scores, 0.3, first_pass)
    wanted = cascade(scores.model, scores.encoded_images(images), scores.encoded_captions(captions), 0.3, first_pass)
    torch.testing.assert_close(found.block(images, captions), wanted)
    torch.testing.assert_close(found.block(images[[7, 2]], captions[[1, 1, 20]]), wanted[[7, 2]][:, [1, 1, 20]])
    assert (found.n_images, found.n_captions) == (11, 23)
    assert found.scored == float((wanted >= 0).float().mean())


def test_cheap_scores_do_not_favour_what_is_near_to_everything():
    generator = torch.Generator().manual_seed(1)
    whole, words = torch.randn(6, 4, generator=generator), torch.randn(8, 4, generator=generator)
    images = Encoded(whole, whole[:, None])
    captions = Encoded(words, words[:, None], torch.ones(8, dtype=torch.long))
    total = pooled(images, captions)
    hub = Encoded(whole + 100 * words.mean(0), (whole + 100 * words.mean(0))[:, None])
    assert pooled(hub, captions).argmax(0).bincount(minlength=6).max() < 8
    assert total.isfinite().all()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(scored, share):
    with pytest.raises(InputError, match="share of the pairs"):
        cascade(*scored[:3], share)


def test_a_model_of_pooled_vectors_has_nothing_to_shorten():
    model = build_model(ModelConfig(similarity="cosine", embed_dim=4), DataShape(image_dim=3, regions=1, caption_dim=3))
    with torch.no_grad():
        images, captions = model.encode_images(torch.randn(3, 3)), model.encode_captions(torch.randn(3, 3))
    with pytest.raises(InputError, match="nothing to shorten"):
        cascade(model, images, captions, 0.5)
