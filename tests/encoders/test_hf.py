"""CLIP and SigLIP of a few thousand random weights, saved on disk, through the whole encoder."""

import json
import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from l2rm.data.pairs import Pairs
from l2rm.encoders.image import encode
from l2rm.errors import InputError

transformers = pytest.importorskip("transformers", reason="the extra hf (transformers) is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_clip: ModuleType) -> Path:
    return tiny_clip.save_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture
def pairs(tmp_path: Path, tiny_clip: ModuleType) -> Pairs:
    for number in range(7):
        Image.new("RGB", (20 + number, 30), (30 * number, 90, 200 - 20 * number)).save(tmp_path / f"{number}.png")
    return Pairs(
        images=tuple(f"{number}.png" for number in range(7)),
        image_of=np.arange(14) // 2,
        captions=tuple(f"a picture of {tiny_clip.WORDS[row % 5]}" for row in range(14)),
        image_root=tmp_path,
        source="made.csv",
    )


def test_embeddings_are_those_of_the_model_itself(saved: Path, pairs: Pairs, tiny_clip: ModuleType) -> None:
    encoded = encode(pairs, encoder=str(saved), progress=False)
    assert encoded.features is not None
    assert encoded.caption_features is not None
    model = transformers.AutoModel.from_pretrained(saved)
    processor = transformers.AutoImageProcessor.from_pretrained(saved, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    for number in (0, 6):
        with Image.open(pairs.image_path(number)) as picture:
            pixels = processor(images=picture.convert("RGB"), return_tensors="pt")
        expected = torch.nn.functional.normalize(tiny_clip.embeddings(model.get_image_features(**pixels)))
        torch.testing.assert_close(encoded.features.batch(np.array([number])), expected, atol=1e-3, rtol=0)
    full = "max_length" if "siglip" in saved.name else True
    tokens = tokenizer([pairs.captions[3]], padding=full, max_length=12, return_tensors="pt")
    mask = {} if "siglip" in saved.name else {"attention_mask": tokens["attention_mask"]}
    found = tiny_clip.embeddings(model.get_text_features(input_ids=tokens["input_ids"], **mask))
    torch.testing.assert_close(
        encoded.caption_features.batch(np.array([3])), torch.nn.functional.normalize(found), atol=1e-3, rtol=0
    )


def test_everything_is_embedded_once(saved: Path, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2rm.encoders.hf import TwoTowers

    first = encode(pairs, encoder=str(saved), progress=False)
    assert first.features is not None
    assert first.caption_features is not None
    monkeypatch.setattr(TwoTowers, "pixels", None)
    again = encode(pairs.take([5, 3, 0]), encoder=str(saved), progress=False)
    assert again.features is not None
    assert again.caption_features is not None
    assert torch.equal(again.features.batch(np.array([1])), first.features.batch(np.array([1])))
    assert torch.equal(again.caption_features.batch(np.array([0])), first.caption_features.batch(np.array([5])))


def test_long_captions_are_cut_and_bad_images_left_out(saved: Path, pairs: Pairs, tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "2.png").write_bytes(b"no picture")
    captions = (*pairs.captions[:13], "red " * 500)
    pairs = replace(pairs, captions=captions)
    with pytest.raises(InputError, match=r"2\.png does not decode"):
        encode(pairs, encoder=str(saved), progress=False)
    rest = encode(pairs, encoder=str(saved), skip_bad=True, progress=False)
    assert len(rest) == 12
    assert [one.row for one in rest.left_out] == ["4", "5"]
    assert rest.caption_features is not None
    assert torch.isfinite(rest.caption_features.batch(np.arange(12))).all()


def test_what_is_no_such_model_is_told_in_one_line(
    pairs: Pairs, tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_clip: ModuleType
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with caplog.at_level(logging.WARNING), pytest.raises(InputError, match="cannot be loaded") as raised:
        encode(pairs, encoder=str(empty), progress=False)
    assert "\n" not in str(raised.value)
    alone = tmp_path / "bert"
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(alone)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        source = tiny_clip.save_model(tmp_path / "clip", "clip") / name
        if source.exists():
            (alone / name).write_bytes(source.read_bytes())
    with pytest.raises(InputError, match="is a BertModel, without towers"):
        encode(pairs, encoder=str(alone), progress=False)
    assert json.loads((alone / "config.json").read_text())["model_type"] == "bert"
