"""The fast similarity: cosine of two pooled towers."""

from torch import Tensor

from l2rm.encoders.towers import l2_normalise
from l2rm.similarity.model import Encoded, RetrievalModel


class Cosine(RetrievalModel):
    """`s = cos(mean of regions, mean of words)`, each caption at its true length."""

    range = (-1.0, 1.0)

    def encode_images(self, images: Tensor) -> Encoded:
        return Encoded(l2_normalise(self.image_tower(images).mean(1)))

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        # words beyond a caption's length are zero, and l2 makes the sum the mean
        return Encoded(l2_normalise(self.caption_tower(captions, lengths).sum(1)))

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        return images.whole @ captions.whole.T
