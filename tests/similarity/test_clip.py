"""A whole CLIP or SigLIP as the similarity, against transformers itself; its adapters and its state."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from l2rm.encoders.pretrained import Reading
from l2rm.errors import InputError
from l2rm.similarity.clip import READING, Clip
from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig

transformers = pytest.importorskip("transformers", reason="the extra hf (transformers) is not installed")
pytest.importorskip("peft", reason="the extra finetune (peft) is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = DataShape(image_dim=256, regions=3)
CAPTIONS = ("a red dog", "cat", "blue")


@pytest.fixture(scope="module", params=["clip", "siglip"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_clip: ModuleType) -> Path:
    return tiny_clip.save_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def model_of(base: Path, **changes: Any) -> Clip:
    torch.manual_seed(0)
    model = build_model(ModelConfig(similarity="clip", encoder=str(base), **changes), SHAPE)
    assert isinstance(model, Clip)
    return model.eval()


def inputs(model: Clip) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four random pictures, and three captions as a batch has them."""
    ids = list(model.reading.encode_all(CAPTIONS))
    lengths = torch.tensor([len(one) for one in ids])
    tokens = torch.zeros(3, int(lengths.max()), dtype=torch.long)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = torch.tensor(one)
    return torch.randn(4, 3, 256, generator=torch.Generator().manual_seed(1)), tokens, lengths


def learn(model: Clip) -> list[float]:
    """Three steps; the loss of each."""
    optimiser = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(3):
        loss = -model(*inputs(model)).diagonal().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_before_it_learns_it_says_what_the_pretrained_model_says(
    base: Path, finetune: str, tiny_clip: ModuleType
) -> None:
    model = model_of(base, finetune=finetune)
    images, tokens, lengths = inputs(model)
    found = model.similarity(images, tokens, lengths)
    theirs = transformers.AutoModel.from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    siglip = "siglip" in base.name
    read = tokenizer(list(CAPTIONS), padding="max_length" if siglip else True, max_length=12, return_tensors="pt")
    mask = {} if siglip else {"attention_mask": read["attention_mask"]}
    with torch.no_grad():
        image = tiny_clip.embeddings(theirs.get_image_features(pixel_values=images.view(4, 3, 16, 16)))
        caption = tiny_clip.embeddings(theirs.get_text_features(input_ids=read["input_ids"], **mask))
    torch.testing.assert_close(found, normalize(image) @ normalize(caption).T, atol=1e-6, rtol=0)
    assert model.dim == image.shape[1]


def test_a_caption_is_encoded_the_same_whatever_it_is_padded_with(base: Path) -> None:
    model = model_of(base)
    _, tokens, lengths = inputs(model)
    together = model.encode_captions(tokens, lengths).whole
    for row, length in enumerate(lengths):
        alone = model.encode_captions(tokens[row : row + 1, :length], lengths[row : row + 1]).whole
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="lengths"):
        model.encode_captions(tokens)


def test_adapters_alone_learn_and_are_the_state(base: Path) -> None:
    model = model_of(base)
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = learn(model)
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert {"text", "vision"} <= {name.split(".")[1].split("_")[0] for name in changed}
    state = model.state_dict()
    assert set(state) == {name for name in before if "lora_" in name} | {"base_checksum"}
    again = model_of(base)
    assert not torch.equal(again.similarity(*inputs(again)), model.similarity(*inputs(model)))
    again.load_state_dict(state)
    assert torch.equal(again.similarity(*inputs(again)), model.similarity(*inputs(model)))
    del state[next(name for name in state if "lora_B" in name)]
    with pytest.raises(RuntimeError, match="Missing key"):
        again.load_state_dict(state)


def test_adapters_are_not_put_beside_other_weights(base: Path, tmp_path: Path, tiny_clip: ModuleType) -> None:
    state = model_of(base).state_dict()
    other = model_of(tiny_clip.save_model(tmp_path / "other", "siglip" if "siglip" in base.name else "clip", seed=1))
    with pytest.raises(InputError, match="has changed: the adapters were learned beside weights with the checksum"):
        other.load_state_dict(state)


def test_all_weights_learn_and_need_no_base(base: Path, tmp_path: Path) -> None:
    model = model_of(base, finetune="full")
    learn(model)
    model.reading.write(tmp_path / READING)
    config = replace(model.config, encoder="/gone")
    again = build_model(config, SHAPE, folder=tmp_path)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.similarity(*inputs(model)), model.similarity(*inputs(model)))


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_transformers_reads_what_was_learned(base: Path, tmp_path: Path, finetune: str) -> None:
    model = model_of(base, finetune=finetune)
    learn(model)
    model.save_pretrained(tmp_path / "mine")
    merged = model_of(tmp_path / "mine", finetune="full")
    torch.testing.assert_close(merged.similarity(*inputs(model)), model.similarity(*inputs(model)), atol=1e-5, rtol=0)
    kept = transformers.AutoModel.from_pretrained(tmp_path / "mine").state_dict()
    assert set(kept) == set(transformers.AutoModel.from_pretrained(base).state_dict())


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_checkpointing_changes_no_gradient(base: Path, finetune: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = model_of(base, finetune=finetune, checkpointing=checkpointing).train()
        model(*inputs(model)).square().sum().backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_every_adapter_learns(base: Path) -> None:
    """None stands where the network goes by it."""
    model = model_of(base).train()
    model(*inputs(model)).square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if "lora_B" in name and not weight.grad.any()]
    assert idle == []


def test_two_networks_answer_as_one(base: Path) -> None:
    torch.manual_seed(0)
    config = ModelConfig(similarity="clip", encoder=str(base))
    pair = build_model(config, SHAPE, networks=2).eval()
    first, second = pair.members
    assert isinstance(first, Clip)
    learn(first)
    expected = (first.similarity(*inputs(first)) + second.similarity(*inputs(first))) / 2
    torch.testing.assert_close(pair.similarity(*inputs(first)), expected)
    assert pair.reading is first.reading
    again = build_model(config, SHAPE, networks=2).eval()
    again.load_state_dict(pair.state_dict())
    assert torch.equal(again.similarity(*inputs(first)), pair.similarity(*inputs(first)))


def test_bfloat16_is_near(base: Path) -> None:
    exact, rough = model_of(base), model_of(base, precision="bfloat16")
    found = rough.similarity(*inputs(rough))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact.similarity(*inputs(exact)), atol=0.05, rtol=0)


def test_tokens_are_cut_at_the_longest_text_and_end_as_they_should(base: Path) -> None:
    reading = Reading.open(base)
    tokens = reading.encode("red " * 500)
    assert len(tokens) == reading.longest == 12
    assert tokens[-1] == 2  # </s>
    assert np.array_equal(reading.encode("a red dog"), next(iter(reading.encode_all(["a red dog"]))))


def test_peft_that_is_not_installed_is_told(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'l2rm\[finetune\]'"):
        model_of(base)
    model_of(base, finetune="full")
