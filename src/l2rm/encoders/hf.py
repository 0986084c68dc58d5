"""Two-tower models of transformers (CLIP, SigLIP and their kin), frozen: images and captions to one space."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from l2rm.data.pairs import Pairs
from l2rm.encoders.filling import BATCH, Embed, Read
from l2rm.encoders.image import encode_files
from l2rm.encoders.pixels import opened
from l2rm.encoders.store import FeatureStore
from l2rm.errors import InputError
from l2rm.files import cache_folder
from l2rm.progress import track

VERSION = 1
"""Raise it when the same model and file would give other embeddings: it is a part of the cache's key."""
BATCH_CAPTIONS = 64
GPU_BATCH = 64
"""Images at a time, where they are not encoded on a processor."""


def encode_both(
    pairs: Pairs,
    model: str,
    *,
    skip_bad: bool = False,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> Pairs:
    """Give pairs embeddings of images and of captions, unit vectors of one space: their cosine is how well they fit.

    Both are kept in `cache_folder()/features/`, one growing file each for a model (and image folder): what was embedded
    once never is again, and a killed run goes on where it stopped. Safetensors weights only; code of a model's own is
    never run.

    Args:
        pairs: the table; every image needs a file.
        model: a folder that transformers saved, or a name on the hub, OWNER/MODEL, which it may download.
        skip_bad: leave out rows whose image does not decode; see `Pairs.left_out`.
        progress: tell on standard error how far it has come.
        device: where the model runs.

    Returns:
        The pairs with `features` (N, D) and `caption_features` (rows, D), float16, memory-mapped.

    Raises:
        InputError: transformers is not installed; no such model, or not one of two towers; an image that does not
            decode (without `skip_bad`).

    Example:
        >>> encode_both(pairs, "openai/clip-vit-base-patch32").caption_features.shape  # doctest: +SKIP
        (5000, 512)
    """
    towers = TwoTowers(model, device)

    def network() -> tuple[Read, Embed]:
        return towers.pixels, towers.images

    store = FeatureStore(_store_path("images", towers, str(pairs.image_root)), (towers.dim,))
    batch = BATCH if torch.device(device).type == "cpu" else GPU_BATCH
    pairs = encode_files(pairs, store, network, skip_bad=skip_bad, progress=progress, batch=batch)
    return replace(pairs, caption_features=_captions(pairs, towers, progress).features(_stamps(pairs.captions)))


class TwoTowers:
    """A frozen model with its preprocessing.

    Args:
        name: folder or name on the hub.
        device: where it runs.

    Raises:
        InputError: transformers is not installed, no such model, or one without towers for images and texts.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        transformers = _transformers()
        self.name, self.device = name, torch.device(device)
        with _quietly(transformers):
            try:
                self._model = transformers.AutoModel.from_pretrained(name, use_safetensors=True)
                self._processor = transformers.AutoImageProcessor.from_pretrained(name, **_processor_options())
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            except (OSError, ValueError, KeyError, ImportError) as error:
                raise InputError(
                    f"encoder {name}: cannot be loaded ({_brief(error)}); give a folder that save_pretrained wrote, "
                    "with its tokenizer and image processor, or the name of a model on the hub that can be reached"
                ) from error
        if not (hasattr(self._model, "get_image_features") and hasattr(self._model, "get_text_features")):
            raise InputError(
                f"encoder {name}: is a {type(self._model).__name__}, without towers for images and for texts; give "
                "CLIP, SigLIP or a model of their kind"
            )
        self._model = self._model.eval().requires_grad_(False).to(self.device)
        config = self._model.config
        self.size = max(int(side) for side in dict(self._processor.size).values())
        text = config.text_config
        self._longest = int(text.max_position_embeddings)
        # SigLIP learned with every text filled up to the full length, and no mask: it must be asked in the same way.
        self._padding = "max_length" if config.model_type.startswith("siglip") else True
        self.identity = _identity(name, config)
        self.dim = int(self.texts(["a"]).shape[1])

    def pixels(self, path: Path) -> NDArray[np.float32]:
        """(3, H, W) of a file, resized, cropped and scaled as the model learned it.

        Raises:
            UndecodableImageError: it does not decode.
        """
        picture = opened(path, self.size)
        ready: NDArray[np.float32] = self._processor(images=picture, return_tensors="np")["pixel_values"][0]
        return ready

    @torch.inference_mode()
    def images(self, pixels: NDArray[Any]) -> torch.Tensor:
        """(B, 3, H, W) to unit vectors (B, D) float32 on the CPU."""
        found = self._model.get_image_features(pixel_values=torch.from_numpy(pixels).to(self.device))
        return _unit(found)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit vectors (B, D) float32 on the CPU; what is beyond the model's longest text is not read."""
        read = self._tokenizer(
            list(texts), padding=self._padding, truncation=True, max_length=self._longest, return_tensors="pt"
        )
        known = {name: read[name].to(self.device) for name in ("input_ids", "attention_mask") if name in read}
        if self._padding == "max_length":
            known.pop("attention_mask", None)
        return _unit(self._model.get_text_features(**known))


def _captions(pairs: Pairs, towers: TwoTowers, progress: bool) -> FeatureStore:
    """The store that holds all captions; each text is embedded once."""
    store = FeatureStore(_store_path("captions", towers, ""), (towers.dim,))
    missing = dict(zip(_stamps(pairs.captions), pairs.captions, strict=True))
    if all(stamp in store for stamp in missing):
        return store
    with store.writing():
        left = [(stamp, text) for stamp, text in missing.items() if stamp not in store]
        left.sort(key=lambda item: len(item[1]))  # texts of one length need little padding
        batches = [left[start : start + BATCH_CAPTIONS] for start in range(0, len(left), BATCH_CAPTIONS)]
        for batch in track(batches, total=len(batches), what="encoding captions", enabled=progress):
            entries = towers.texts([text for _, text in batch])
            store.append([stamp for stamp, _ in batch], entries.numpy().astype(np.float16))
    return store


def _stamps(captions: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[:16] for caption in captions]


def _store_path(what: str, towers: TwoTowers, root: str) -> Path:
    key = hashlib.sha256(f"{VERSION}\0{towers.identity}\0{root}".encode()).hexdigest()[:16]
    return cache_folder() / "features" / f"{Path(towers.name).name}-{what}-{key}.npy"


def _identity(name: str, config: Any) -> str:
    """What tells the model from any other: its files' names, sizes and times, or its commit on the hub."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{getattr(config, '_commit_hash', None)}"
    files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".txt", ".model"))
    return str(folder.absolute()) + "".join(f"\0{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)


def _unit(found: Any) -> torch.Tensor:
    vectors = found if isinstance(found, torch.Tensor) else found.pooler_output
    return normalize(vectors.float(), dim=-1).cpu()


def _brief(error: Exception) -> str:
    """The first sentence of what transformers has to say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removesuffix(".") if lines else type(error).__name__


def _processor_options() -> dict[str, Any]:
    """Preprocessing by Pillow, not by torchvision; how that is asked for changed with version 5."""
    version = int(_transformers().__version__.split(".")[0])
    return {"backend": "pil"} if version >= 5 else {"use_fast": False}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"encoder: transformers cannot be imported ({error}); install the extra: pip install 'l2rm[hf]'"
        ) from error
    return transformers


@contextmanager
def _quietly(transformers: Any) -> Iterator[None]:
    """No warnings and no progress bars of its own."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
