"""Two-tower models of transformers (CLIP, SigLIP and their kin): the networks, and how they read pictures and texts."""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from l2rm.encoders.pixels import opened
from l2rm.errors import InputError
from l2rm.files import folder_written_whole

AT_ONCE = 1000
"""Captions that are handed to a tokenizer at a time."""
# What transformers raises on models that cannot be loaded or run, found by damaging some.
_UNLOADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
NEEDS = "with its tokenizer and image processor"
LONGEST = 16
"""A picture is cut to so many times its shorter side where its middle is all that counts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """How a model wants its pictures and captions: its own preprocessing and its own tokenizer.

    Attributes:
        name: folder or name on the hub that it came from.
        config, processor, tokenizer: of transformers.

    Example:
        >>> reading = Reading.open("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> reading.encode("a red kite"), reading.pixels(Path("kite.jpg")).shape  # doctest: +SKIP
        ([49406, 320, 736, 29647, 49407], (3, 224, 224))
    """

    name: str
    config: Any
    processor: Any
    tokenizer: Any

    @classmethod
    def open(cls, name: str | Path) -> "Reading":
        """Read it from a folder that `write` or save_pretrained wrote, or from the hub; weights are not needed.

        Raises:
            InputError: transformers is not installed, or there is no such model.
        """
        transformers = import_transformers()
        if not Path(name).is_dir() and "/" not in str(name):
            raise InputError(f"encoder {name}: no such folder, and no name on the hub, which is OWNER/MODEL")
        with telling_in_one_line(str(name)):
            return cls(
                name=str(name),
                config=transformers.AutoConfig.from_pretrained(name, trust_remote_code=False),
                processor=transformers.AutoImageProcessor.from_pretrained(
                    name, trust_remote_code=False, **_processor_options()
                ),
                tokenizer=transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False),
            )

    def write(self, folder: Path) -> None:
        """Write all of it as a folder of its own, which `open` reads."""
        with folder_written_whole(folder) as beside:
            self.write_into(beside)

    def write_into(self, folder: Path) -> None:
        """Write its files into a folder that holds others."""
        for part in (self.config, self.processor, self.tokenizer):
            part.save_pretrained(folder)

    # ------------------------------------------------------------------------------------------------------ pictures

    @cached_property
    def side(self) -> int:
        """The longer side, in pixels, that preprocessing resizes a picture to."""
        return max(int(side) for side in dict(self.processor.size).values() if side)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(3, H, W) of a picture as the model takes it."""
        _, height, width = self._ready(Image.new("RGB", (self.side, self.side))).shape
        return 3, height, width

    def pixels(self, path: Path | BinaryIO) -> NDArray[np.float32]:
        """(3, H, W) of a file, resized, cropped and scaled as the model learned it.

        Raises:
            UndecodableImageError: it does not decode.
        """
        picture = opened(path, self.side)
        if getattr(self.processor, "do_center_crop", False):
            picture = _without_far_ends(picture)
        return self._ready(picture)

    def _ready(self, picture: Image.Image) -> NDArray[np.float32]:
        ready: NDArray[np.float32] = self.processor(images=picture, return_tensors="np")["pixel_values"][0]
        return ready

    # ------------------------------------------------------------------------------------------------------ captions

    @property
    def longest(self) -> int:
        """Tokens of the longest text that the model reads; what is beyond is cut off."""
        return int(self.config.text_config.max_position_embeddings)

    @property
    def fills_up(self) -> bool:
        """SigLIP learned with every text filled up to the full length, and no mask: it must be asked so."""
        return str(self.config.model_type).startswith("siglip")

    def encode(self, caption: str) -> list[int]:
        """The tokens of a caption, special ones included."""
        return next(self.encode_all([caption]))

    def encode_all(self, captions: Sequence[str]) -> Iterator[list[int]]:
        """The tokens of each of many captions."""
        for start in range(0, len(captions), AT_ONCE):
            part = list(captions[start : start + AT_ONCE])
            yield from self.tokenizer(part, truncation=True, max_length=self.longest)["input_ids"]

    def text_inputs(self, tokens: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """What `get_text_features` takes, of (M, L) token ids and (M,) lengths; beyond them, ids may be anything."""
        there = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
        filler = self.tokenizer.pad_token_id or 0
        ids = tokens.where(there, filler)
        if self.fills_up:
            return {"input_ids": nn.functional.pad(ids, (0, self.longest - ids.shape[1]), value=filler)}
        return {"input_ids": ids, "attention_mask": there.long()}


def load_towers(name: str) -> nn.Module:
    """A pretrained model with towers for images and for texts, float32, in evaluation mode. Safetensors weights only.

    Raises:
        InputError: transformers is not installed, no such model, weights of it are missing, or one without the two
            towers.
    """
    return _with_two_towers(load_weights(name), name)


def load_weights(name: str, needs: str = NEEDS, unused: str | None = None) -> nn.Module:
    """A pretrained model of any kind, float32, in evaluation mode. Safetensors weights only, none of its own code.

    Args:
        name: folder or name on the hub.
        needs: what comes with such a model, for messages.
        unused: how the names of weights begin that are not used, and so may be missing.

    Raises:
        InputError: transformers is not installed, no such model, or weights of it are missing.
    """
    transformers = import_transformers()
    precision = "dtype" if _version(transformers) >= 5 else "torch_dtype"
    with telling_in_one_line(name, needs):
        model, told = transformers.AutoModel.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **{precision: torch.float32},
        )
    missing = [key for key in told["missing_keys"] if unused is None or not key.startswith(unused)]
    missing += [key[0] if isinstance(key, tuple) else key for key in told["mismatched_keys"]]
    if missing:
        raise InputError(f"encoder {name}: its file has no weights for {sorted(missing)[0]}; restore the whole model")
    found: nn.Module = model.eval()
    return found


def empty_towers(reading: Reading) -> nn.Module:
    """The same network with weights that are still to be read from elsewhere."""
    model: nn.Module = import_transformers().AutoModel.from_config(reading.config)
    return _with_two_towers(model, reading.name).float().eval()


def recompute_activations(towers: Any) -> None:
    """Let a backward pass compute activations again instead of keeping them; version 5 calls it by another name."""
    how = {"use_reentrant": False}  # else inputs without gradient, such as pixels, would keep adapters from theirs
    if hasattr(towers, "activation_checkpointing_enable"):
        towers.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        towers.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: their names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def identity(name: str, config: Any) -> str:
    """What tells a model from any other: its files' names, sizes and times, or its commit on the hub."""
    folder = Path(name)
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        if commit is None:  # from transformers 5 on; the hub's cache has a folder for each commit
            with telling_in_one_line(name):
                commit = Path(import_transformers().utils.hub.cached_file(name, "config.json")).parent.name
        return f"{name}@{commit}"
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".txt", ".model"))
    return str(folder.absolute()) + "".join(f"\0{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)


def vectors(found: Any) -> Tensor:
    """What a tower gives, (N, D): a tensor before transformers 5, and inside of something from there on."""
    tensor: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return tensor


def import_transformers() -> Any:
    """The library.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"encoder: transformers cannot be imported ({error}); install the extra: pip install 'l2rm[hf]'"
        ) from error
    return transformers


@contextmanager
def telling_in_one_line(name: str, needs: str = NEEDS, what: str = "encoder") -> Iterator[None]:
    """What transformers finds wrong inside the block is an InputError; no warnings and no progress bars of its own."""
    logs, hub = import_transformers().utils.logging, logging.getLogger("huggingface_hub")
    level, bars, hub_level = logs.get_verbosity(), logs.is_progress_bar_enabled(), hub.level
    logs.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _UNLOADABLE as error:
        raise InputError(
            f"{what} {name}: cannot be loaded ({_brief(error)}); give a folder that save_pretrained wrote, {needs}, "
            "or the name of a model on the hub that can be reached"
        ) from error
    finally:
        logs.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            logs.enable_progress_bar()


def _without_far_ends(picture: Image.Image) -> Image.Image:
    """The middle of a picture that is far longer than wide: what the crop would leave, and no gigabytes before it."""
    width, height = picture.size
    most = LONGEST * min(width, height)
    if max(width, height) <= most:
        return picture
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return picture.crop((left, top, left + min(width, most), top + min(height, most)))


def _with_two_towers(model: nn.Module, name: str) -> nn.Module:
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise InputError(
            f"encoder {name}: is a {type(model).__name__}, without towers for images and for texts; give "
            "CLIP, SigLIP or a model of their kind"
        )
    return model


def _brief(error: Exception) -> str:
    """The first sentence of what transformers has to say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removesuffix(".") if lines else type(error).__name__


def _processor_options() -> dict[str, Any]:
    """Preprocessing by Pillow, not by torchvision; how that is asked for changed with version 5."""
    return {"backend": "pil"} if _version(import_transformers()) >= 5 else {"use_fast": False}


def _version(transformers: Any) -> int:
    return int(transformers.__version__.split(".")[0])
