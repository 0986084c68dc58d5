"""Which captions say the same, word for word."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

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
