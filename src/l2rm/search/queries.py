"""What an index is asked, and what it answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from l2rm.search.storage import Kind

if TYPE_CHECKING:
    from l2rm.similarity.model import Encoded


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is looked for; exactly one of the fields.

    Attributes:
        text: words.
        picture: a file, or the bytes of one.
        image, caption: the id of an item: what is like it, itself left out.
        vector: (D,) in the space of the index, taken as if it were of the other kind than what is looked for.
    """

    text: str | None = None
    picture: "bytes | Path | None" = None
    image: int | None = None
    caption: int | None = None
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One result.

    Attributes:
        kind, id: which item.
        score: the model's score of it, or the inner product where vectors are compared.
        image: the id of the picture (its own, or that of the caption).
        name: the picture's name.
        captions: of an image, the first few that it was given; of a caption, its text.
    """

    kind: Kind
    id: int
    score: float
    image: int
    name: str
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A query as vector; with what a model needs to rank by; and the item to be left out."""

    vector: NDArray[np.float32]
    kind: Kind | None
    encoded: "Encoded | None" = None
    itself: int | None = None
