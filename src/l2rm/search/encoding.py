"""What a model makes of words and pictures for the index: vectors to shortlist by, and scores to rank by."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.data.batches import Batches
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.encoders.image import ENCODERS, Encoder
from l2rm.encoders.pixels import UndecodableImageError, decode
from l2rm.encoders.pretrained import Reading
from l2rm.encoders.sentences import SentenceEncoder
from l2rm.encoders.towers import l2_normalise
from l2rm.errors import InputError
from l2rm.search.storage import Kind, roots_of
from l2rm.similarity.cosine import Cosine
from l2rm.similarity.model import Encoded, RetrievalModel, evaluating

AT_ONCE = 256
WORDS_AT_MOST = 512
"""Words of a query that are read; more say nothing more, and would let one query hold up the others."""


class ModelEncoder:
    """A model, and the encoder that made the features which it was trained on.

    A cosine model's vectors are its own, and their inner product is its score. SGR and SAF compare regions and words:
    there a vector is (whole, mean of the local ones), each of length 1/√2, which only shortlists; `rank` scores.

    Args:
        model: in evaluation mode from here on.
        encoder: {"name", "grid"} of what makes features of pictures; None where that is not known.
        caption_encoder: {"name", "checksum"} of what makes embeddings of captions, for a model that takes those.
    """

    def __init__(
        self,
        model: RetrievalModel,
        encoder: dict[str, Any] | None = None,
        caption_encoder: dict[str, str] | None = None,
    ) -> None:
        self.model = model.eval()
        self.encoder = encoder
        self._caption_encoder = caption_encoder
        self._network: Encoder | None = None

    @property
    def reads_words(self) -> bool:
        """Texts can be encoded: by the model's vocabulary, or by the encoder of its captions."""
        return self.model.vocabulary is not None or self._caption_encoder is not None

    @property
    def ranks(self) -> bool:
        """Vectors only shortlist."""
        return not isinstance(self.model.members[0], Cosine)

    @property
    def dim(self) -> int:
        """D of the vectors."""
        return self.whole_dim * (2 if self.ranks else 1)

    @property
    def whole_dim(self) -> int:
        """Dimension of a whole vector: of an ensemble, those of its networks side by side."""
        return self.model.dim * len(self.model.members)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Encoded:
        """Encode captions.

        Raises:
            InputError: the model reads caption embeddings, no words.
        """
        if not self.reads_words:
            raise InputError("text: this model reads caption embeddings, no words; search by a vector or an item")
        vocabulary = self.model.vocabulary
        if vocabulary is None:
            embedded = self._sentences(texts).half().float()  # as they are kept
            with evaluating(self.model):
                return self.model.encode_captions(embedded.to(self.device), None)
        ids = [vocabulary.encode(text) for text in texts]
        ids = [one if len(one) <= WORDS_AT_MOST else [*one[: WORDS_AT_MOST - 1], one[-1]] for one in ids]
        tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = torch.tensor(one)
        with evaluating(self.model):
            return self.model.encode_captions(tokens.to(self.device), torch.tensor([len(one) for one in ids]))

    @cached_property
    def _sentences(self) -> SentenceEncoder:
        assert self._caption_encoder is not None
        return SentenceEncoder(self._caption_encoder["name"], self.device, checksum=self._caption_encoder["checksum"])

    @torch.no_grad()
    def picture(self, content: bytes | Path) -> Encoded:
        """Encode one picture, from a file or from the bytes of one.

        Raises:
            InputError: it does not decode, or what made the features is not known.
        """
        if self.model.reading is not None:
            with evaluating(self.model):
                return self.model.encode_images(_pixels(self.model.reading, content).to(self.device))
        if self.encoder is None:
            raise InputError(
                "picture: this index was made from features, and what made them is unknown; search by words or an item"
            )
        if self._network is None:
            name = self.encoder["name"]
            if name not in ENCODERS:
                raise InputError(f"encoder: there is no {name!r}, which made this index's features")
            self._network = ENCODERS[name](grid=self.encoder["grid"], device=self.device)
        with _telling_what_does_not_decode(content):
            pixels = decode(content if isinstance(content, Path) else io.BytesIO(content), self._network.size)
        features = self._network(pixels[None]).half().float()  # as they are kept
        with evaluating(self.model):
            return self.model.encode_images(features.to(self.device))

    def vectors(self, encoded: Encoded, kind: Kind) -> NDArray[np.float32]:
        """(N, D) to search by."""
        whole = (
            encoded.whole.float() / len(self.model.members) ** 0.5
        )  # an ensemble's score is the mean of its members'
        if self.ranks:
            assert encoded.local is not None
            local = encoded.local.float()
            mean = local.mean(1) if kind == "image" else local.sum(1)
            whole = torch.cat([whole, l2_normalise(mean)], 1) / 2**0.5
        vectors: NDArray[np.float32] = whole.cpu().numpy()
        return vectors

    @torch.no_grad()
    def rank_images(
        self, query: Encoded, vectors: NDArray[np.float32], regions: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(N,) the model's scores of N images, given as the index keeps them, with one encoded caption."""
        with evaluating(self.model):
            return self.model.score(self.kept_images(vectors, regions), query)[:, 0].float().cpu().numpy()

    def kept_images(self, vectors: NDArray[np.float32], regions: NDArray[np.float32]) -> Encoded:
        """Encoded images from what the index keeps of them, (N, D) and (N, R, D')."""
        whole = torch.from_numpy(vectors[:, : self.whole_dim] * (2 * len(self.model.members)) ** 0.5)
        return Encoded(whole.to(self.device), torch.from_numpy(regions).to(self.device))

    @torch.no_grad()
    def rank_captions(self, query: Encoded, captions: Sequence[str]) -> NDArray[np.float32]:
        """(M,) the model's scores of one encoded image with M captions."""
        with evaluating(self.model):
            return self.model.score(query, self.texts(captions))[0].float().cpu().numpy()

    def rows(self, pairs: Pairs) -> "ModelRows":
        """The rows of a segment, encoded as they are written."""
        return ModelRows(self, pairs)


def caption_facts(name: str, model: RetrievalModel) -> dict[str, str]:
    """{"name", "checksum"} of a sentence encoder, a folder by its absolute path.

    Raises:
        InputError: there is none such, or the model does not take its embeddings.
    """
    if model.shape.caption_dim is None:
        raise InputError(f"caption encoder {name}: this model reads words; leave it out")
    network = SentenceEncoder(name)
    if network.dim != model.shape.caption_dim:
        raise InputError(
            f"caption encoder {name}: makes {network.dim} dimensions, and this model takes {model.shape.caption_dim}; "
            "give the one that it learned from"
        )
    return {"name": network.name, "checksum": network.checksum}


def _pixels(reading: Reading, content: bytes | Path) -> torch.Tensor:
    """(1, 3, H·W) of one picture, as a model reads it."""
    with _telling_what_does_not_decode(content):
        pixels = reading.pixels(content if isinstance(content, Path) else io.BytesIO(content))
    return torch.from_numpy(pixels).reshape(1, 3, -1)


@contextmanager
def _telling_what_does_not_decode(content: bytes | Path) -> Iterator[None]:
    try:
        yield
    except UndecodableImageError as error:
        told = content if isinstance(content, Path) else "picture"
        raise InputError(f"{told}: does not decode ({error}); give a JPEG, PNG, WebP, GIF, BMP or TIFF") from error


class ModelRows:
    """Pairs as `write_segment` takes them, encoded block by block."""

    def __init__(self, encoder: ModelEncoder, pairs: Pairs) -> None:
        self.names, self.captions, self.pair_ids = pairs.images, pairs.captions, pairs.pair_ids
        self.image_of, self.roots = pairs.image_of, roots_of(pairs)
        self._at_once = min(AT_ONCE, encoder.model.at_once)
        self._encoder, self._batches = encoder, Batches(pairs, encoder.model.vocabulary, encoder.device)

    @torch.no_grad()
    def image_vectors(self) -> Iterable[tuple[NDArray[np.float32], NDArray[np.float16] | None]]:
        for start in range(0, len(self.names), self._at_once):
            block = np.arange(start, min(start + self._at_once, len(self.names)))
            with evaluating(self._encoder.model):
                encoded = self._encoder.model.encode_images(self._batches.images(block))
            local = None
            if self._encoder.ranks and encoded.local is not None:
                local = encoded.local.half().cpu().numpy()
            yield self._encoder.vectors(encoded, "image"), local

    @torch.no_grad()
    def caption_vectors(self) -> Iterable[NDArray[np.float32]]:
        for start in range(0, len(self.captions), self._at_once):
            block = np.arange(start, min(start + self._at_once, len(self.captions)))
            with evaluating(self._encoder.model):
                encoded = self._encoder.model.encode_captions(*self._batches.captions(block))
            yield self._encoder.vectors(encoded, "caption")


def fingerprint(model: RetrievalModel) -> str:
    """A digest of all that decides a model's answers: its configuration, its weights, its vocabulary.

    Fields at their default are left out, so that a later version with one more field knows its older indexes.
    """
    digest = hashlib.sha256()
    words = [model.vocabulary.tokeniser, *model.vocabulary.words] if isinstance(model.vocabulary, Vocabulary) else None
    config = {
        one.name: value for one in fields(model.config) if (value := getattr(model.config, one.name)) != one.default
    }
    digest.update(json.dumps([config, asdict(model.shape), words], sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(
            value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if value.ndim
            else str(value.item()).encode()
        )
    return digest.hexdigest()
