"""The fast similarity: cosine of two pooled towers."""

from torch import Tensor

from l2rm.encoders.towers import l2_normalise
from l2rm.similarity.model import Encoded, RetrievalModel
from l2rm.similarity.pooling import GeneralisedPooling
from l2rm.similarity.settings import DataShape, ModelConfig


class Cosine(RetrievalModel):
    """`s = cos(pooled regions, pooled words)`, each caption at its true length.

    By `config.pooling`: `mean` of the towers' vectors, which are of unit length for regions and for words in context;
    `gpo`, a `GeneralisedPooling` each of projected regions and of words; `raw`, the projected mean of an image's raw
    features, which images pooled already (N, F) give just as well as their regions (N, R, F).
    """

    range = (-1.0, 1.0)

    def __init__(self, config: ModelConfig, shape: DataShape) -> None:
        super().__init__(config, shape)
        if config.pooling == "gpo":
            self.region_pooling = GeneralisedPooling()
            self.word_pooling = GeneralisedPooling()

    def encode_images(self, images: Tensor) -> Encoded:
        if self.config.pooling == "raw" and images.dim() == 3:
            images = images.mean(1)
        with self.autocast():
            if self.config.pooling == "gpo":
                regions = self.image_tower.project(images if images.dim() == 3 else images[:, None])
            else:
                regions = self.image_tower(images)
        if self.config.pooling == "gpo":
            return Encoded(l2_normalise(self.region_pooling(regions.float())))
        return Encoded(l2_normalise(regions.float().mean(1)))

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        with self.autocast():
            words = self.caption_tower(captions, lengths)
        if self.config.pooling == "gpo":
            counted = None if self.shape.caption_dim is not None else lengths
            return Encoded(l2_normalise(self.word_pooling(words.float(), counted)))
        return Encoded(l2_normalise(words.float().sum(1)))  # zero beyond a caption's length; l2 makes the sum the mean

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        return images.whole @ captions.whole.T

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        return (images.whole * captions.whole).sum(1)

    @property
    def pairs_stand_alone(self) -> bool:
        return True
