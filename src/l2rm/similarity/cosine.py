"""The fast similarity: cosine of two pooled towers."""

from torch import Tensor

from l2rm.encoders.towers import l2_normalise
from l2rm.similarity.model import Encoded, RetrievalModel


class Cosine(RetrievalModel):
    """`s = cos(mean of regions, mean of words)`, each caption at its true length."""

    range = (-1.0, 1.0)

    def encode_images(self, images: Tensor) -> Encoded:
        with self.autocast():
            regions = self.image_tower(images)
        return Encoded(l2_normalise(regions.float().mean(1)))

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        with self.autocast():
            words = self.caption_tower(captions, lengths)
        return Encoded(l2_normalise(words.float().sum(1)))  # zero beyond a caption's length; l2 makes the sum the mean

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        return images.whole @ captions.whole.T

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        return (images.whole * captions.whole).sum(1)

    @property
    def pairs_stand_alone(self) -> bool:
        return True
