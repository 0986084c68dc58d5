"""A whole CLIP-type model as the similarity: cosine of what its own two towers make of pixels and words, fine-tuned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l2rm.encoders.lora import add_adapters, merged
from l2rm.encoders.pretrained import (
    Reading,
    empty_towers,
    load_towers,
    recompute_activations,
    telling_in_one_line,
    vectors,
    weights_checksum,
)
from l2rm.encoders.towers import l2_normalise
from l2rm.errors import InputError
from l2rm.similarity.cosine import Cosine
from l2rm.similarity.model import Encoded
from l2rm.similarity.settings import DataShape, ModelConfig

READING = "reading"
"""Folder, in that of a model, of its preprocessing and its tokenizer."""
CHECKSUM = "base_checksum"


class Clip(Cosine):
    """`s = cos(image tower(pixels), text tower(tokens))` of a pretrained model, all of which can learn, or adapters.

    Fresh weights are the pretrained ones. With `finetune="lora"` the state is the adapters and a checksum of the
    weights that they stand beside: loading it over others is refused. With `finetune="full"` it is all weights.

    Args:
        config: `encoder`, `finetune`, `lora_rank`, `lora_alpha`, `checkpointing` and `precision` count here.
        shape: of the pictures.
        folder: of a saved model whose weights will be loaded; None to start from the pretrained ones.

    Raises:
        InputError: the pretrained model cannot be loaded, or an extra is missing.

    Example:
        >>> config = ModelConfig(similarity="clip", encoder="openai/clip-vit-base-patch32")
        >>> Clip(config, DataShape(image_dim=224 * 224, regions=3)).dim  # doctest: +SKIP
        512
    """

    reading: Reading
    towers: Any
    at_once = 64
    worth_keeping = 2**32

    def __init__(self, config: ModelConfig, shape: DataShape, folder: Path | None = None) -> None:
        nn.Module.__init__(self)
        self.config, self.shape, self.precision = config, shape, config.precision
        self.reading = Reading.open(config.encoder if folder is None else folder / READING)
        self.vocabulary = self.reading
        adapted = config.finetune == "lora"
        towers: Any = load_towers(config.encoder) if adapted or folder is None else empty_towers(self.reading)
        if adapted:
            self.register_buffer(CHECKSUM, _as_bytes(weights_checksum(towers.state_dict())))
            add_adapters(towers, rank=config.lora_rank, alpha=config.lora_alpha)
            own: Any = self  # torch's hooks have no types
            own.register_state_dict_post_hook(_leave_out_frozen)
            own.register_load_state_dict_pre_hook(_refuse_another_base)
            own.register_load_state_dict_post_hook(_miss_no_frozen)
        if config.checkpointing:
            recompute_activations(towers)
        self.towers = towers
        with torch.no_grad():
            self._dim = self.encode_captions(*_tokens(self.reading, ["a"])).whole.shape[1]

    @property
    def dim(self) -> int:
        return self._dim

    def encode_images(self, images: Tensor) -> Encoded:
        """(N, 3, H·W) pixels, as `Pictures` gives them, -> N encoded images."""
        pixels = images.view(len(images), *self.reading.shape)
        with self.autocast():
            found = self.towers.get_image_features(pixel_values=pixels)
        return Encoded(l2_normalise(vectors(found).float()))

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        """(M, L) token ids of the model's own tokenizer with (M,) lengths -> M encoded captions."""
        if lengths is None:
            raise InputError("captions: token ids come with the length of each caption; give lengths (M,)")
        with self.autocast():
            found = self.towers.get_text_features(**self.reading.text_inputs(captions, lengths))
        return Encoded(l2_normalise(vectors(found).float()))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the fine-tuned model as transformers reads it, adapters added into the weights; no l2rm is needed."""
        whole: Any = merged(self.towers)
        with telling_in_one_line(self.config.encoder):
            whole.save_pretrained(folder)
        self.reading.write_into(Path(folder))


def _tokens(reading: Reading, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(one) for one in reading.encode_all(captions)]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([len(one) for one in ids])


def _as_bytes(checksum: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(checksum)), dtype=torch.uint8)


def _learned(model: nn.Module) -> set[str]:
    """Names of what the state of a model with adapters is."""
    return {name for name, weight in model.named_parameters() if weight.requires_grad} | {CHECKSUM}


def _leave_out_frozen(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    kept = {prefix + name for name in _learned(model)}
    for name in [name for name in state if name.startswith(prefix) and name not in kept]:
        del state[name]


def _refuse_another_base(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    known, own = state.get(prefix + CHECKSUM), model.get_buffer(CHECKSUM)
    if known is not None and not torch.equal(known.cpu(), own.cpu()):
        name = model.config.encoder  # type: ignore[union-attr]
        raise InputError(
            f"encoder {name}: has changed: the adapters were learned beside weights with the checksum "
            f"{bytes(known.tolist()).hex()[:12]}, these have {bytes(own.tolist()).hex()[:12]}; put it back as it was, "
            "or train anew"
        )


def _miss_no_frozen(model: nn.Module, incompatible: Any) -> None:
    learned = _learned(model)
    frozen = [name for name in (*dict(model.named_parameters()), *dict(model.named_buffers())) if name not in learned]
    missing: list[str] = incompatible.missing_keys
    missing[:] = [one for one in missing if not any(one == name or one.endswith(f".{name}") for name in frozen)]
