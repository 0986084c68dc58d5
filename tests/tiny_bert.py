"""A sentence encoder of a few thousand random weights, saved on disk."""

import json
from pathlib import Path

WORDS = ("red", "green", "blue", "dog", "cat", "kite", "a", "picture", "of", "and")


def save_model(
    folder: Path, *, pooling: str = "mean_tokens", seed: int = 0, known: tuple[str, ...] = WORDS, dim: int = 16
) -> Path:
    """Write a BERT into `folder` with its tokenizer, and what sentence-transformers notes of its pooling."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(seed)
    words = ["<pad>", "<unk>", *known]
    reading = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    reading.pre_tokenizer = pre_tokenizers.Whitespace()
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=dim, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=reading, pad_token="<pad>", unk_token="<unk>")
    for part in (transformers.BertModel(config), tokenizer):
        part.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder
