"""Trainable towers: features or words -> local vectors (regions, words) of the joint space."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from l2rm.data.vocabulary import PAD
from l2rm.encoders.linear import Linear
from l2rm.errors import InputError

NORM_FLOOR = 1e-8


def l2_normalise(x: Tensor, dim: int = -1) -> Tensor:
    """`x / (‖x‖₂ + 1e-8)` along `dim`: a zero vector stays zero."""
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / (length + NORM_FLOOR)


class RegionTower(nn.Module):
    """Region features to unit vectors of the joint space: `l2(W x + b)`, region by region.

    Also takes whole-image features (N, F), which then are images of one region.
    """

    def __init__(self, feature_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.project = Linear(feature_dim, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(N, R, F) or (N, F) -> (N, R, D)."""
        regions = images if images.dim() == 3 else images[:, None]
        return l2_normalise(self.project(regions))


class WordTower(nn.Module):
    """Words to unit vectors that know their context: embedding, dropout, bi-GRU (directions averaged), l2."""

    def __init__(self, vocabulary_size: int, word_dim: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(word_dim, embed_dim, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """(N, L) token ids padded with 0, (N,) lengths -> (N, L, D), zero beyond each caption's length.

        Raises:
            InputError: no lengths.
        """
        if lengths is None:
            raise InputError("captions: token ids come with the length of each caption; give lengths (M,)")
        words = self.dropout(self.embed(tokens))
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=tokens.shape[1])
        forward, backward = states.chunk(2, dim=-1)
        return l2_normalise(0.5 * (forward + backward))


class BagTower(nn.Module):
    """Words to vectors of the joint space one by one, without order: an embedding and dropout, nothing else.

    Word vectors keep their length, so that a word can weigh more than another in a mean. Fast, and enough for names.
    """

    def __init__(self, vocabulary_size: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, embed_dim, padding_idx=PAD)
        nn.init.uniform_(self.embed.weight, -0.01, 0.01)  # short beside a learned word, so that unseen ones keep quiet
        self.embed.weight.data[PAD] = 0
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(N, L) token ids padded with 0 -> (N, L, D), zero beyond each caption's length."""
        words: Tensor = self.dropout(self.embed(tokens))
        return words


class VectorTower(nn.Module):
    """Caption embeddings made elsewhere (CLIP and its kin) to unit vectors of the joint space: `l2(W x + b)`."""

    def __init__(self, feature_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.project = Linear(feature_dim, embed_dim)

    def forward(self, captions: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(N, F) -> (N, 1, D): a caption of one 'word'."""
        return l2_normalise(self.project(captions))[:, None]
