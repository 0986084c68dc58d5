"""A model's scores of all images against all captions of some pairs, block by block, in memory that does not grow."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.batches import Batches
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.encoders.towers import l2_normalise
from l2rm.errors import InputError
from l2rm.similarity.model import Encoded, RetrievalModel, evaluating

ENCODE_CHUNK = 512
KEPT_BYTES = 2**27
"""Encoded images, or encoded captions, that are kept at most; of more, those of a block are encoded for the block."""


class ModelScores:
    """Scores in evaluation mode. Each image and caption is encoded once, where all of them fit into memory.

    Of larger data sets (5,000 images of 36 × 1,024 numbers are 0.7 GB, their 25,000 captions more than 1 GB) a block's
    images and captions are encoded as it is asked for; those of the block before are kept. So whoever walks a block
    after the other along the images, the captions staying the same, has captions encoded once.

    Args:
        model: its mode is left as it was.
        pairs: with features.
        keep: bytes of encoded images, and of encoded captions, that may be kept; None: as many as the model says.

    Example:
        >>> scores = ModelScores(model, pairs)  # doctest: +SKIP
        >>> evaluate_scores(scores, pairs.image_of).rsum  # doctest: +SKIP
        312.4
    """

    @torch.no_grad()
    def __init__(self, model: RetrievalModel, pairs: Pairs, *, keep: int | None = None) -> None:
        self.model = model
        keep, at_once = model.worth_keeping if keep is None else keep, min(ENCODE_CHUNK, model.at_once)
        batches = Batches(pairs, model.vocabulary, next(model.parameters()).device)
        with evaluating(model):
            self._images = _Encodings(
                lambda index: model.encode_images(batches.images(index)), pairs.n_images, keep, at_once
            )
            self._captions = _Encodings(
                lambda rows: model.encode_captions(*batches.captions(rows)), len(pairs), keep, at_once
            )

    @property
    def n_images(self) -> int:
        """Distinct images."""
        return len(self._images)

    @property
    def n_captions(self) -> int:
        """Captions, one a row of the pairs."""
        return len(self._captions)

    @torch.no_grad()
    def encoded_images(self, images: NDArray[np.int64]) -> Encoded:
        """Some of the images, encoded."""
        with evaluating(self.model):
            return self._images.take(images)

    @torch.no_grad()
    def encoded_captions(self, captions: NDArray[np.int64]) -> Encoded:
        """Some of the captions, encoded."""
        with evaluating(self.model):
            return self._captions.take(captions)

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Scores (len(images), len(captions))."""
        with evaluating(self.model), torch.no_grad():
            return self.model.score(self.encoded_images(images), self.encoded_captions(captions))


class JoinedScores:
    """A model's scores of two sets of pairs: the second's images and captions are numbered on from the first's.

    Example:
        >>> both = JoinedScores(ModelScores(model, train), ModelScores(model, dev))  # doctest: +SKIP
        >>> both.n_images == train.n_images + dev.n_images  # doctest: +SKIP
        True
    """

    def __init__(self, first: ModelScores, second: ModelScores) -> None:
        self._first, self._second = first, second

    @property
    def n_images(self) -> int:
        """Images of both."""
        return self._first.n_images + self._second.n_images

    @property
    def n_captions(self) -> int:
        """Captions of both."""
        return self._first.n_captions + self._second.n_captions

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Scores (len(images), len(captions)); images and captions are of one set each, whichever that is."""
        of, start = self._set(images, self._first.n_images)
        encoded = of.encoded_images(images - start)
        of, start = self._set(captions, self._first.n_captions)
        with evaluating(of.model), torch.no_grad():
            return of.model.score(encoded, of.encoded_captions(captions - start))

    def _set(self, index: NDArray[np.int64], first: int) -> tuple[ModelScores, int]:
        """Whose these are, and where its numbers start."""
        if (index < first).all():
            return self._first, 0
        if (index < first).any():
            raise ValueError("a block of both sets; ask for one after the other")
        return self._second, first


class FeatureScores:
    """The cosine of embeddings that were made elsewhere, in one space for images and captions, as CLIP's are.

    Regions of an image are averaged first. Embeddings of which all fit into `keep` bytes are read once.

    Args:
        pairs: with `features` and `caption_features` of as many dimensions.
        keep: bytes of embeddings of images, and of captions, that may be kept.

    Raises:
        InputError: embeddings are missing, their dimensions differ, or they are not finite.

    Example:
        >>> from l2rm.data.features import Features
        >>> vectors = Features(array=np.eye(2, dtype=np.float32))
        >>> pairs = Pairs(images=("a", "b"), image_of=np.arange(2), captions=("x", "y"), features=vectors,
        ...               caption_features=vectors)
        >>> FeatureScores(pairs).block(np.arange(2), np.arange(2)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, pairs: Pairs, *, keep: int = 4 * KEPT_BYTES) -> None:
        images, captions = pairs.features, pairs.caption_features
        if images is None or captions is None:
            raise InputError(f"{pairs.source}: no embeddings of both images and captions; give images.npy,captions.npy")
        if images.dim != captions.dim:
            raise InputError(
                f"{pairs.source}: images have {images.dim} dimensions and captions {captions.dim}, so they are of "
                "no one space; learn a head on them (--head)"
            )
        images.check()
        captions.check()
        self._images = _Encodings(lambda index: _unit_vectors(images, index), len(images), keep, ENCODE_CHUNK)
        self._captions = _Encodings(lambda rows: _unit_vectors(captions, rows), len(captions), keep, ENCODE_CHUNK)

    @property
    def n_images(self) -> int:
        """Distinct images."""
        return len(self._images)

    @property
    def n_captions(self) -> int:
        """Captions, one a row of the pairs."""
        return len(self._captions)

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Scores (len(images), len(captions)) in [−1, 1]."""
        return self._images.take(images).whole @ self._captions.take(captions).whole.T


def _unit_vectors(features: Features, index: NDArray[np.int64]) -> Encoded:
    vectors = features.batch(index)
    return Encoded(l2_normalise(vectors.mean(1) if vectors.dim() == 3 else vectors))


class _Encodings:
    """All images, or all captions: encoded from the start, or when asked for where they are more than `keep` bytes."""

    def __init__(self, encode: Callable[[NDArray[np.int64]], Encoded], total: int, keep: int, at_once: int) -> None:
        self._encode, self._total, self._at_once = encode, total, at_once
        self._all = self._encoded(np.arange(total), keep)
        self._last: tuple[NDArray[np.int64], Encoded] | None = None

    def __len__(self) -> int:
        return self._total

    def take(self, index: NDArray[np.int64]) -> Encoded:
        """The items at `index`. The same ones asked for once more are the same to the last bit."""
        if self._all is not None:
            return self._all.take(torch.from_numpy(index))
        if self._last is None or not np.array_equal(index, self._last[0]):
            self._last = None  # its memory is free before the next take theirs
            encoded = self._encoded(index)
            assert encoded is not None
            self._last = index.copy(), encoded
        return self._last[1]

    def _encoded(self, index: NDArray[np.int64], most: int | None = None) -> Encoded | None:
        """The items at `index`, encoded; None as soon as they are more than `most` bytes."""
        parts: list[Encoded] = []
        for start in range(0, len(index), self._at_once):
            parts.append(self._encode(index[start : start + self._at_once]))
            if most is not None and _bytes(parts) > most:
                return None
        return joined(parts)


def _bytes(parts: list[Encoded]) -> int:
    """What the parts take when joined."""
    count = sum(map(len, parts))
    items = [parts[0].whole[0]]
    if parts[0].local is not None:
        items.append(max((part.local[0] for part in parts if part.local is not None), key=len))
    return count * sum(item.nbytes for item in items)


def joined(parts: list[Encoded]) -> Encoded:
    """One after the other, words padded to the longest caption of all."""
    if len(parts) == 1:
        return parts[0]
    local = None
    if parts[0].local is not None:
        pieces = [part.local for part in parts if part.local is not None]
        longest = max(piece.shape[1] for piece in pieces)
        local = pieces[0].new_zeros(sum(map(len, pieces)), longest, pieces[0].shape[2])
        start = 0
        for piece in pieces:
            local[start : start + len(piece), : piece.shape[1]] = piece
            start += len(piece)
    lengths = None
    if parts[0].lengths is not None:
        lengths = torch.cat([part.lengths for part in parts if part.lengths is not None])
    return Encoded(torch.cat([part.whole for part in parts]), local, lengths)
