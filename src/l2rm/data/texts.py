"""Which captions say the same, word for word, and how much each of their words tells."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from l2rm.data.vocabulary import TOKENISERS

_MADE_UP = re.compile(r"caption \d+")


def made_up(row: int) -> str:
    """What stands for the caption of a row of which only an embedding is there."""
    return f"caption {row}"


def are_made_up(captions: Iterable[str]) -> bool:
    """Whether captions only stand for rows, so that nothing can be read from them.

    Example:
        >>> are_made_up([made_up(0), made_up(1)]), are_made_up(["a dog", "caption 7"])
        (True, False)
    """
    return all(_MADE_UP.fullmatch(caption) for caption in captions)


def text_numbers(captions: Iterable[str]) -> NDArray[np.int64]:
    """Number the texts in the order in which they first come; captions of the same words (`normalised`) share one.

    Example:
        >>> text_numbers(["A dog!", "a cat", "a  dog"]).tolist()
        [0, 1, 0]
    """
    texts: dict[str, int] = {}
    return np.array([texts.setdefault(normalised(caption), len(texts)) for caption in captions], dtype=np.int64)


def normalised(caption: str) -> str:
    """The words of a caption in the form in which captions are compared; a text without words stays as it is."""
    return " ".join(TOKENISERS["unicode"](caption)) or caption.strip()


def word_weights(captions: Sequence[str]) -> csr_array:
    """TF-IDF, (captions, different words): how often a caption has a word, times `log((1 + n) / (1 + with it))`.

    Words are split as models split them. (Spärck Jones, 1972.)

    Example:
        >>> word_weights(["a dog", "a cat"]).toarray().round(2).tolist()
        [[0.0, 0.41, 0.0], [0.0, 0.0, 0.41]]
    """
    ids: dict[str, int] = {}
    tokens = [[ids.setdefault(word, len(ids)) for word in TOKENISERS["unicode"](caption)] for caption in captions]
    lengths = np.array([len(one) for one in tokens], dtype=np.int64)
    rows = np.repeat(np.arange(len(tokens)), lengths)
    columns = np.fromiter((word for one in tokens for word in one), dtype=np.int64, count=lengths.sum())
    counts = csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(tokens), len(ids)))
    frequency = np.bincount(counts.indices, minlength=len(ids))
    return csr_array(counts.multiply(np.log((1 + len(tokens)) / (1 + frequency))))
