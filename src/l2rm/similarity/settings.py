"""The configuration of a retrieval model. Imports no torch, so that the command line answers at once."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What the retrieval model is made of; dimensions that the data decide are in `DataShape`."""

    similarity: Literal["cosine", "sgr", "saf", "clip"] = "sgr"
    """cosine: two pooled towers, fast. sgr: similarity graph reasoning over regions and words, accurate. saf: the
    same words and regions, filtered by attention; SGRAF is the mean of a run of each. clip: a whole CLIP
    or SigLIP, fine-tuned from pixels."""
    caption_tower: Literal["gru", "bag"] = "gru"
    """How captions given as words are read. gru: in order, each word in its context. bag: word by word, much faster."""
    pooling: Literal["mean", "gpo", "raw"] = "mean"
    """How regions become an image, and words a caption (cosine). mean: of unit vectors of the joint space. gpo: learned
    weights of the largest, second largest, … value of each dimension. raw: as mean, but an image is the mean of its
    features as they are, which is taken once, before training: many times faster."""
    embed_dim: int = 1024
    """Dimension D of the joint space."""
    word_dim: int = 300
    """Dimension of a word embedding (gru)."""
    similarity_dim: int = 256
    """Dimension of a similarity vector (sgr, saf)."""
    graph_steps: int = 3
    """Steps of graph reasoning (sgr)."""
    dropout: float = 0.4
    """Dropout of words (and, in sgr and saf, of the gates)."""
    encoder: str = ""
    """The pretrained model to fine-tune (clip): a folder that save_pretrained wrote, or OWNER/MODEL on the hub."""
    finetune: Literal["lora", "full"] = "lora"
    """What of it learns (clip). lora: small matrices beside its frozen weights. full: all weights."""
    lora_rank: int = 16
    """Rank of the matrices (lora)."""
    lora_alpha: float = 32.0
    """What they add is multiplied with lora_alpha / lora_rank."""
    checkpointing: bool = False
    """Compute activations again in the backward pass (clip): slower, in less memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What products are computed in; weights, norms, softmax over regions and scores stay float32. bfloat16: faster
    where the processor or card has it."""
    min_word_count: int = 4
    """Words seen less often in train and dev become <unk>."""
    tokeniser: Literal["unicode", "wordpunct", "published"] = "unicode"
    """unicode: words of any language, CJK by character. wordpunct: \\w+|[^\\w\\s]. published: Treebank rules."""


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """What the data decide about a model."""

    image_dim: int
    """Dimension of an image's features."""
    regions: int
    """Regions an image; 1 for whole-image features."""
    vocabulary_size: int | None = None
    """Words known; None where captions are given as embeddings."""
    caption_dim: int | None = None
    """Dimension of a caption embedding; None where captions are words."""
