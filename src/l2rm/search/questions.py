"""What requests and answers of the service look like."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from l2rm.errors import InputError
from l2rm.search.index import SHORTLIST, Index
from l2rm.search.queries import Hit, Query
from l2rm.search.storage import Kind

ID_LIMIT = 2**62


class Target(StrEnum):
    """What to look among."""

    images = "images"
    captions = "captions"


KIND_OF: dict[Target, Kind] = {Target.images: "image", Target.captions: "caption"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may ask for.

    Attributes:
        k: results a query.
        text: characters of a query.
        queries: in a batch.
        vectors: in a body of vectors.
        upload_bytes: of any body.
        seconds: for receiving and answering a request.
        shortlist: items that SGR and SAF score.
    """

    k: int = 200
    text: int = 2000
    queries: int = 256
    vectors: int = 1024
    upload_bytes: int = 16 * 2**20
    seconds: float = 30.0
    shortlist: int = SHORTLIST


class Question(BaseModel):
    """One of `text`, `image`, `caption` and `vector`, and what to look among."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(None, min_length=1, max_length=2000, description="Words")
    image: int | None = Field(None, ge=0, lt=ID_LIMIT, description="The id of an image: what is like it")
    caption: int | None = Field(None, ge=0, lt=ID_LIMIT, description="The id of a caption: what is like it")
    vector: list[float] | None = Field(None, max_length=65536, description="A vector in the space of the index")
    target: Target = Target.images
    k: int = Field(10, ge=1, le=200, description="Results")

    def check(self, limits: Limits) -> None:
        """Refuse what `limits` do not allow.

        Raises:
            InputError: too many results, or too long a text.
        """
        if self.k > limits.k or len(self.text or "") > limits.text:
            raise InputError(f"query: at most {limits.k} results and {limits.text} characters")

    def query(self) -> Query:
        """What the index is asked."""
        with np.errstate(over="ignore"):  # infinite, and refused for that
            vector = None if self.vector is None else np.array(self.vector, dtype=np.float64).astype(np.float32)
        return Query(text=self.text, image=self.image, caption=self.caption, vector=vector)


class BatchQuestion(BaseModel):
    """Several questions."""

    model_config = ConfigDict(extra="forbid")

    queries: list[Question] = Field(min_length=1, max_length=256)


class Result(BaseModel):
    """An item that was found."""

    kind: str
    id: int
    score: float
    image: int = Field(description="The id of the picture: its own, or that of the caption")
    name: str
    captions: list[str]


class Found(BaseModel):
    """Results, best first."""

    results: list[Result]
    seconds: float


class Batched(BaseModel):
    """Results of each query."""

    results: list[list[Result]]
    seconds: float


class FoundVectors(BaseModel):
    """Ids and scores of each vector's results; an id of -1 where there are fewer."""

    ids: list[list[int]]
    scores: list[list[float | None]]


class ItemFacts(BaseModel):
    """An image."""

    id: int
    name: str
    captions: list[str]


class Facts(BaseModel):
    """What an index holds, and what may be asked of it."""

    images: int
    captions: int
    dimensions: int
    model: str | None
    by_words: bool
    by_picture: bool
    approximate: dict[str, Any]
    max_text: int
    max_upload_bytes: int

    @classmethod
    def of(cls, index: Index, limits: Limits) -> "Facts":
        """The facts of an index."""
        manifest = index.manifest
        return cls(
            images=len(index.items["image"]),
            captions=len(index.items["caption"]),
            dimensions=manifest.dim,
            model=None if manifest.fingerprint is None else manifest.fingerprint[:12],
            by_words=index.by_words,
            by_picture=manifest.encoder is not None,
            approximate=manifest.approximate,
            max_text=limits.text,
            max_upload_bytes=limits.upload_bytes,
        )


class Problem(BaseModel):
    """What is wrong with a request, in one line."""

    detail: str


def as_dict(hit: Hit) -> dict[str, Any]:
    """A hit as the service answers it."""
    return {
        "kind": hit.kind,
        "id": hit.id,
        "score": hit.score,
        "image": hit.image,
        "name": hit.name,
        "captions": hit.captions,
    }
