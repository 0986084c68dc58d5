"""One text on several different pictures: generic captions, and rows that were copied down."""

import numpy as np
from numpy.typing import NDArray

from l2rm.data.pairs import Pairs
from l2rm.data.texts import text_numbers

Found = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]


def find_duplicate_captions(pairs: Pairs, image_group: NDArray[np.int64] | None = None) -> Found:
    """Which captions say word for word what the caption of another picture says.

    Case, punctuation, spaces and ways of writing one letter do not count (`text_numbers`). Copies of a picture are one
    picture: a photograph that is there twice, with its title twice, is a matter of near-duplicate images alone.

    Args:
        pairs: captions as words.
        image_group: (images,) pictures of one number are the same.

    Returns:
        `(rows,)` whether it is so; `(rows,)` score, 1 / the number of different pictures with the text; `(rows,)`
        number of the text, −1 where it stands alone.

    Example:
        >>> pairs = Pairs(images=("a", "b", "c"), image_of=np.arange(3), captions=("A dog!", "a  dog", "a cat"))
        >>> found, score, group = find_duplicate_captions(pairs)
        >>> found.tolist(), score.tolist()
        ([True, True, False], [0.5, 0.5, 1.0])
    """
    text_of = text_numbers(pairs.captions)
    pictures = pairs.image_of if image_group is None else image_group[pairs.image_of]
    different = np.unique(np.stack([text_of, pictures]), axis=1)
    count = np.bincount(different[0], minlength=int(text_of.max(initial=-1)) + 1)[text_of]
    return count > 1, 1.0 / count, np.where(count > 1, text_of, -1)
