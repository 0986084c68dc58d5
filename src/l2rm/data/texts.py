"""Which captions say the same, word for word, and how much each of their words tells."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from l2rm.data.vocabulary import TOKENISERS


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
