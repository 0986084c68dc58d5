"""A CLIP or a SigLIP of a few thousand random weights, saved on disk; and pictures in two colours, with captions."""

import random
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 220),
    "yellow": (220, 220, 30),
    "white": (235, 235, 235),
    "black": (20, 20, 20),
}
WORDS = (*COLOURS, "dog", "cat", "a", "picture", "of", "and")


def save_model(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a CLIP or SigLIP into `folder`, with its tokenizer and image processor."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(seed)
    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    reading = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    reading.pre_tokenizer = pre_tokenizers.Whitespace()
    reading.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=reading, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 12}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": 16, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
        processor = _by_pillow(transformers, "CLIP")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    else:
        config = transformers.SiglipConfig(text_config={**text, **ids}, vision_config=vision)
        model = transformers.SiglipModel(config)
        processor = _by_pillow(transformers, "Siglip")(size={"height": 16, "width": 16})
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def embeddings(found: Any) -> Any:
    """What `get_image_features` and `get_text_features` find; transformers before 5 hand it over bare."""
    return getattr(found, "pooler_output", found)


def _by_pillow(transformers: Any, kind: str) -> Any:
    """The image processor that asks for no torchvision; before transformers 5 it is the only slow one."""
    if int(transformers.__version__.partition(".")[0]) < 5:
        return getattr(transformers, f"{kind}ImageProcessor")
    module = getattr(transformers.models, kind.lower())
    return getattr(getattr(module, f"image_processing_pil_{kind.lower()}"), f"{kind}ImageProcessorPil")


def draw(folder: Path) -> Path:
    """A table of pictures, each of one colour on the left and one on the right, with two captions each.

    All 36 kinds are twice in train, and once in dev and in test, never quite in the same shade.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    kinds = list(product(COLOURS, COLOURS))
    lines = ["image,caption,split"]
    for split, times in (("train", 2), ("dev", 1), ("test", 1)):
        for number, (left, right) in enumerate(kinds * times):
            picture = Image.new("RGB", (32, 32), _shade(left, chance))
            picture.paste(_shade(right, chance), (16, 0, 32, 32))
            picture.save(folder / f"{split}{number}.png")
            forms = (f"a picture of {left} and {right}", f"{left} {right}")
            lines += [f"{split}{number}.png,{form},{split}" for form in forms]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "pairs.csv"


def _shade(colour: str, chance: random.Random) -> tuple[int, ...]:
    return tuple(min(255, max(0, part + chance.randint(-20, 20))) for part in COLOURS[colour])
