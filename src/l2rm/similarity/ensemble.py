"""Several networks that are trained together and answer together."""

import torch
from torch import Tensor, nn

from l2rm.similarity.model import Encoded, RetrievalModel


class Ensemble(RetrievalModel):
    """The mean of its members' scores; what they encode lies side by side in the last dimension.

    For methods that train two networks, which are measured, saved and searched with as one model.

    Args:
        members: of one configuration and one shape.

    Example:
        >>> from l2rm.similarity.model import build_model
        >>> from l2rm.similarity.settings import DataShape, ModelConfig
        >>> config = ModelConfig(similarity="cosine", embed_dim=8, caption_tower="bag")
        >>> pair = build_model(config, DataShape(image_dim=5, regions=1, vocabulary_size=9), networks=2)
        >>> pair.encode_images(torch.rand(3, 5)).whole.shape
        torch.Size([3, 16])
    """

    def __init__(self, members: list[RetrievalModel]) -> None:
        nn.Module.__init__(self)
        first = members[0]
        self.config, self.shape, self.precision, self.range = first.config, first.shape, first.precision, first.range
        self.vocabulary, self.reading = first.vocabulary, first.reading
        self.at_once, self.worth_keeping = first.at_once, first.worth_keeping
        self.networks = nn.ModuleList(members)

    @property
    def dim(self) -> int:
        """Of a member's joint space."""
        return self.members[0].dim

    @property
    def members(self) -> tuple[RetrievalModel, ...]:
        return tuple(member for member in self.networks if isinstance(member, RetrievalModel))

    def encode_images(self, images: Tensor) -> Encoded:
        return _side_by_side([member.encode_images(images) for member in self.members])

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        return _side_by_side([member.encode_captions(captions, lengths) for member in self.members])

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        parts = zip(self.members, self._split(images), self._split(captions), strict=True)
        return torch.stack([member.score(image, caption) for member, image, caption in parts]).mean(0)

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        parts = zip(self.members, self._split(images), self._split(captions), strict=True)
        return torch.stack([member.score_pairs(image, caption) for member, image, caption in parts]).mean(0)

    @property
    def pairs_stand_alone(self) -> bool:
        return all(member.pairs_stand_alone for member in self.members)

    @property
    def images_stand_alone(self) -> bool:
        return all(member.images_stand_alone for member in self.members)

    def _split(self, encoded: Encoded) -> list[Encoded]:
        """What each member encoded."""
        wholes = encoded.whole.chunk(len(self.networks), dim=-1)
        if encoded.local is None:
            return [Encoded(whole, None, encoded.lengths) for whole in wholes]
        parts = encoded.local.chunk(len(wholes), dim=-1)
        return [Encoded(whole, part, encoded.lengths) for whole, part in zip(wholes, parts, strict=True)]


def _side_by_side(parts: list[Encoded]) -> Encoded:
    local = None
    if parts[0].local is not None:
        local = torch.cat([part.local for part in parts if part.local is not None], dim=-1)
    return Encoded(torch.cat([part.whole for part in parts], dim=-1), local, parts[0].lengths)
