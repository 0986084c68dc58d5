"""A cheap score that orders pairs nearly as an expensive model does: the first of two passes.

Shape suffixes: N images, R regions, M captions, L words, K short vectors.
"""

import torch
from torch import Tensor, nn

from l2rm.encoders.linear import Linear, product
from l2rm.similarity.model import Encoded
from l2rm.similarity.nodes import at_once

SHORT = 32
"""Dimension of the short vectors of regions and words."""
POOLED = 64
"""Dimension of the two vectors that stand for a whole image and a whole caption."""


AT_ONCE = 32
"""Captions that are scored at a time."""


class FirstPass(nn.Module):
    """`a(image)·b(caption) + Σ_words max_regions (A region)·(B word)`: what is learned of a model's order of pairs.

    `a` and `b` are linear in the whole vector and the mean local one. The sum over words of the best region is the
    late interaction of ColBERT (Khattab and Zaharia, SIGIR 2020), on vectors of 32 numbers. Takes what the model's
    encoders have made already; `l2rm.training.distil` trains it.

    Args:
        dim: dimension D of the model's joint space.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.image = Linear(2 * dim, POOLED)
        self.caption = Linear(2 * dim, POOLED)
        self.region = Linear(dim, SHORT)
        self.word = Linear(dim, SHORT)

    def shorten(self, encoded: Encoded) -> Encoded:
        """Encoded images or captions in short: whole ones (N, 64), regions or words (N, R or L, 32), padding zero."""
        assert encoded.local is not None
        local, lengths = encoded.local.float(), encoded.lengths
        if lengths is None:
            seen = torch.cat([encoded.whole.float(), local.mean(1)], 1)
            return Encoded(self.image(seen), self.region(local))
        counts = lengths.to(local.device)[:, None]
        seen = torch.cat([encoded.whole.float(), local.sum(1) / counts], 1)
        present = torch.arange(local.shape[1], device=local.device) < counts
        return Encoded(self.caption(seen), self.word(local) * present[..., None], lengths)

    def forward(self, images: Encoded, captions: Encoded) -> Tensor:
        """Scores (N, M) of encoded images and captions, with gradient: for a batch."""
        image, caption = self.shorten(images), self.shorten(captions)
        assert image.local is not None
        assert caption.local is not None
        return image.whole @ caption.whole.T + _best_regions(image.local, caption.local)

    @torch.no_grad()
    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        """The same without gradient, in little memory: for a whole data set."""
        return compare(self.shorten(images), self.shorten(captions))


@torch.no_grad()
def compare(images: Encoded, captions: Encoded) -> Tensor:
    """Scores (N, M) of what `FirstPass.shorten` made of images and captions."""
    assert images.local is not None
    assert captions.local is not None
    assert captions.lengths is not None
    S = product(images.whole, captions.whole)
    for block in captions.lengths.argsort().split(AT_ONCE):
        words = captions.local[block, : int(captions.lengths[block].max())]
        rows = max(1, at_once(words) // (images.local.shape[1] * words.shape[0] * words.shape[1]))
        S[:, block] += torch.cat([_best_regions(some, words) for some in images.local.split(rows)])
    return S


def _best_regions(region_NRK: Tensor, word_MLK: Tensor) -> Tensor:
    """`Σ_words max_regions region·word`, (N, M)."""
    (N, R, K), (M, L, _) = region_NRK.shape, word_MLK.shape
    found = region_NRK.reshape(-1, K) @ word_MLK.reshape(-1, K).T
    return found.view(N, R, M * L).amax(1).view(N, M, L).sum(2)
