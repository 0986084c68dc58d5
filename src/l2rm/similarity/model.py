"""What every retrieval model is: two towers and a score."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from l2rm.data.vocabulary import Tokens
from l2rm.encoders.pretrained import Reading
from l2rm.encoders.towers import BagTower, RegionTower, VectorTower, WordTower
from l2rm.errors import InputError
from l2rm.similarity.settings import DataShape, ModelConfig


@dataclass(frozen=True)
class Encoded:
    """Images or captions in the joint space.

    `whole (N, D)`: one vector each. `local (N, R, D)`: regions, or words padded with zeros to the longest of the N
    captions; None where the score needs none. `lengths (N,)`: words a caption, on the CPU; None for images.
    """

    whole: Tensor
    local: Tensor | None = None
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.whole)

    def take(self, index: Tensor | slice) -> "Encoded":
        """The items at `index`."""
        on_cpu = index.cpu() if isinstance(index, Tensor) else index  # where the lengths are
        return Encoded(
            self.whole[index],
            None if self.local is None else self.local[index],
            None if self.lengths is None else self.lengths[on_cpu],
        )

    def detach(self) -> "Encoded":
        """The same without gradient."""
        return Encoded(self.whole.detach(), None if self.local is None else self.local.detach(), self.lengths)


class RetrievalModel(nn.Module, ABC):
    """A similarity of images and captions that can be learned.

    Subclasses give `encode_images`, `encode_captions`, `score`, `score_pairs`, and `range`, where their scores lie.
    """

    range: tuple[float, float]
    vocabulary: Tokens | None = None
    """How captions are read; None where captions are given as embeddings."""
    reading: Reading | None = None
    """How pictures are read, by a model that takes pixels; None by one that takes features."""
    at_once: int = 512
    """Images or captions to be encoded at a time, at most."""
    worth_keeping: int = 2**27
    """Bytes of encoded images, and of encoded captions, that are kept rather than encoded anew."""

    def __init__(self, config: ModelConfig, shape: DataShape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        self.precision = config.precision
        self.image_tower = RegionTower(shape.image_dim, config.embed_dim)
        self.caption_tower: WordTower | BagTower | VectorTower
        if shape.vocabulary_size is not None and config.caption_tower == "bag":
            self.caption_tower = BagTower(shape.vocabulary_size, config.embed_dim, config.dropout)
        elif shape.vocabulary_size is not None:
            self.caption_tower = WordTower(shape.vocabulary_size, config.word_dim, config.embed_dim, config.dropout)
        elif shape.caption_dim is not None:
            self.caption_tower = VectorTower(shape.caption_dim, config.embed_dim)
        else:
            raise ValueError("a DataShape needs vocabulary_size or caption_dim")

    def autocast(self) -> torch.autocast:
        """Products in bfloat16 inside the block, where `precision` says so; weights and scores stay as they are."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16")

    @property
    def dim(self) -> int:
        """D of the joint space."""
        return self.config.embed_dim

    @property
    def members(self) -> tuple["RetrievalModel", ...]:
        """The networks that it is made of: itself, unless it is an `Ensemble`."""
        return (self,)

    @abstractmethod
    def encode_images(self, images: Tensor) -> Encoded:
        """(N, R, F) or (N, F) features -> N encoded images."""

    @abstractmethod
    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        """(M, L) token ids with (M,) lengths, or (M, F) caption embeddings -> M encoded captions."""

    @abstractmethod
    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """All similarities of N images and M captions, (N, M)."""

    @abstractmethod
    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        """The similarity of each image and the caption at the same place, (P,), for models whose pairs stand alone."""

    @property
    @abstractmethod
    def pairs_stand_alone(self) -> bool:
        """Whether a pair's score is the same whatever else is scored with it, in the mode that the model is in."""

    @property
    def images_stand_alone(self) -> bool:
        """Whether an image is encoded the same whatever else is encoded with it, in the mode that the model is in."""
        return True

    def forward(self, images: Tensor, captions: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Similarities (N, M) with gradient, in the mode (training or evaluation) that the model is in."""
        return self.score(self.encode_images(images), self.encode_captions(captions, lengths))

    @torch.no_grad()
    def similarity(self, images: Tensor, captions: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Similarities (N, M) in evaluation mode, without gradient, on the model's device.

        Args:
            images: (N, R, F) or (N, F) features.
            captions: (M, L) token ids padded with 0, or (M, F) caption embeddings.
            lengths: (M,) words a caption, for token ids.

        Raises:
            InputError: token ids without lengths.

        Example:
            >>> model = build_model(ModelConfig(similarity="cosine", embed_dim=8),
            ...                     DataShape(image_dim=5, regions=4, vocabulary_size=9))
            >>> model.similarity(torch.rand(3, 4, 5), torch.ones(2, 6, dtype=torch.long), torch.tensor([6, 2])).shape
            torch.Size([3, 2])
        """
        if lengths is None and not captions.is_floating_point():
            raise InputError("captions: token ids come with the length of each caption; give lengths (M,)")
        device = next(self.parameters()).device
        if not len(images) or not len(captions):
            return torch.zeros(len(images), len(captions), device=device)
        with evaluating(self):
            return self.forward(images.to(device), captions.to(device), lengths)


class evaluating:  # noqa: N801 - reads as a phrase: `with evaluating(model):`
    """Evaluation mode inside the block, whatever mode the model was in after it."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.was_training = self.model.training
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was_training)


def build_model(
    config: ModelConfig, shape: DataShape, *, networks: int = 1, folder: Path | None = None
) -> RetrievalModel:
    """The model that `config` names, or an `Ensemble` of several, with fresh weights from torch's global generator.

    Fresh weights of a model to be fine-tuned (clip) are the pretrained ones.

    Args:
        config, shape: what it is made of.
        networks: how many, of one configuration.
        folder: where a model was saved whose weights will be loaded into this one; what clip reads by lies there.

    Raises:
        InputError: no similarity has that name, or a pretrained model cannot be loaded.
    """
    from l2rm.similarity.clip import Clip
    from l2rm.similarity.cosine import Cosine
    from l2rm.similarity.ensemble import Ensemble
    from l2rm.similarity.sgraf import SAF, SGR

    kinds: dict[str, Callable[[ModelConfig, DataShape], RetrievalModel]] = {
        "cosine": Cosine,
        "sgr": SGR,
        "saf": SAF,
        "clip": partial(Clip, folder=folder),
    }
    if config.similarity not in kinds:
        raise InputError(f"similarity: {config.similarity!r} is unknown; take one of {', '.join(kinds)}")
    members = [kinds[config.similarity](config, shape) for _ in range(networks)]
    return members[0] if networks == 1 else Ensemble(members)
