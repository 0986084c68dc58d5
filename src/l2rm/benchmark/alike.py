"""How alike a caption and an image's own captions are: what a rematch is worth short of the true partner."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from l2rm.data.pairs import Pairs
from l2rm.data.texts import word_weights
from l2rm.errors import InputError


class CaptionLikeness:
    """Cosine of a caption's TF-IDF words and those of an image's own captions together, the caption itself left out.

    An image that shares no caption with the one that a caption belongs to can still show what the caption says; this
    measures how far. Words are split as models split them.

    Args:
        pairs: captions as words, with their truth.

    Raises:
        InputError: captions are embeddings, or the truth is not known.
    """

    def __init__(self, pairs: Pairs) -> None:
        if pairs.caption_features is not None or pairs.true_image_of is None:
            raise InputError(f"{pairs.source}: likeness is measured by words, and needs the true images")
        self._captions = word_weights(pairs.captions)
        self._true_image_of = pairs.true_image_of
        known = np.flatnonzero(pairs.true_image_of >= 0)
        owners = (np.ones(len(known)), (pairs.true_image_of[known], known))
        self._images = (sparse.csr_array(owners, (pairs.n_images, len(pairs))) @ self._captions).tocsr()

    def __call__(self, rows: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) in [0, 1]: of the captions in `rows` and one image each; 0 where either has no words."""
        caption = self._captions[rows]
        own = sparse.diags_array((self._true_image_of[rows] == images).astype(np.float64))
        image = self._images[images] - own @ caption
        product = np.asarray(caption.multiply(image).sum(1)).ravel()
        lengths = [np.sqrt(np.asarray(part.multiply(part).sum(1)).ravel()) for part in (caption, image)]
        length = lengths[0] * lengths[1]
        likeness: NDArray[np.float64] = np.divide(product, length, out=np.zeros(len(rows)), where=length > 1e-12)
        return likeness
