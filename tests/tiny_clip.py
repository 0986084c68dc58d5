"""A CLIP or a SigLIP of a few thousand random weights, saved on disk; and pictures in one colour each, with captions."""

from pathlib import Path

from PIL import Image

WORDS = ("red", "green", "blue", "dog", "cat", "a", "picture", "of", "dark", "light")
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
SHADES = {"dark": 90, "light": 230}


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
        processor = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        )
    else:
        config = transformers.SiglipConfig(text_config={**text, **ids}, vision_config=vision)
        model = transformers.SiglipModel(config)
        processor = transformers.models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil(
            size={"height": 16, "width": 16}
        )
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def draw(folder: Path, *, train: int = 48, others: int = 12) -> Path:
    """A table of pictures in one of six colours, two captions each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["image,caption,split"]
    kinds = [(shade, colour) for shade in SHADES for colour in COLOURS]
    for split, count in (("train", train), ("dev", others), ("test", others)):
        for number in range(count):
            shade, colour = kinds[number % len(kinds)]
            light = SHADES[shade] + number // len(kinds)
            name = f"{split}{number}.png"
            Image.new("RGB", (20, 30), tuple(light * part for part in COLOURS[colour])).save(folder / name)
            lines += [f"{name},a {shade} {colour} picture,{split}", f"{name},{shade} {colour},{split}"]
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "pairs.csv"
