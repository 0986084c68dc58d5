"""Captions that say nothing of their picture: file names, numbers, and texts that stand on any picture alike."""

import os
import re

import numpy as np
from numpy.typing import NDArray

from l2rm.auditing.duplicate_captions import Found
from l2rm.data.pairs import Pairs
from l2rm.data.texts import normalised
from l2rm.data.vocabulary import TOKENISERS
from l2rm.evaluation.scores import Scores, checked_block

FEWEST = 8
"""Pictures that must share a text before it is tried whether it says anything of them."""
TRIED = 200
"""Captions of one text that are tried, at most."""
RIVALS = 500
"""Pictures that each of them is tried on, at most."""
_SURE = 2.33
"""Standard deviations above chance at which a text is taken to say something (1 % by chance alone)."""
_EXTENSION = re.compile(r"^\S+\.(?:jpe?g|png|gif|webp|bmp|tiff?|heic|avif|svg)$", re.IGNORECASE)
_CAMERA = re.compile(r"^[^\W\d_]{0,5}[-_ ]?\d{3,}(?:[-_. ]\d+)*$")
_CODE = re.compile(r"^(?=.*\d)[0-9a-f]{8,}(?:-[0-9a-f]{4,})*$", re.IGNORECASE)


def find_uninformative_captions(pairs: Pairs, scores: Scores, *, seed: int = 0) -> Found:
    """Which captions tell nothing about the picture that they are given.

    Two kinds, of no particular language:

    * no words at all (digits and punctuation), a file's name, or the code that a camera or a program gave: score 0;
    * a text that at least eight pictures share, digits aside ("Product 17", "Product 18": a template), and that fits
      its own pictures no better than others: the mean share of other pictures that score below the given one is not
      above one half by 2.33 standard errors. "red shoes" on many pictures of red shoes is no such text, whatever its
      frequency. The score is twice that share above one half, cut to [0, 1].

    The second kind is only as good as the similarity: one that reads nothing takes every frequent text for an empty
    one.

    Args:
        pairs: captions as words.
        scores: of all images and captions.
        seed: draws the pictures that a text is tried on.

    Returns:
        `(rows,)` whether it is so; `(rows,)` score in [0, 1]; `(rows,)` number of the text, −1 where there is no
        trouble.
    """
    score = np.ones(len(pairs))
    group = np.full(len(pairs), -1)
    templates: dict[str, int] = {}
    template_of = np.array([templates.setdefault(template(caption), len(templates)) for caption in pairs.captions])
    for row, caption in enumerate(pairs.captions):
        if is_file_name(caption, pairs.images[pairs.image_of[row]]):
            score[row], group[row] = 0.0, template_of[row]
    different = np.unique(np.stack([template_of, pairs.image_of]), axis=1)
    pictures = np.bincount(different[0], minlength=len(templates))
    generator = np.random.default_rng(seed)
    for number in np.flatnonzero(pictures >= FEWEST):
        rows = np.flatnonzero((template_of == number) & (group < 0))
        if len(rows) < FEWEST:
            continue
        below = _share_below(scores, pairs.image_of, np.sort(generator.permutation(rows)[:TRIED]), generator)
        mean = float(below.mean())
        if mean <= 0.5 + _SURE * np.sqrt(1 / 12 / len(below)):
            score[rows], group[rows] = np.clip(2 * mean - 1, 0.0, 1.0), number
    return group >= 0, score, group


def template(caption: str) -> str:
    """A caption with every number in it made the same.

    Example:
        >>> template("Product 17"), template("product #18!")
        ('product 0', 'product 0')
    """
    return re.sub(r"\d+", "0", normalised(caption))


def is_file_name(caption: str, image: str) -> bool:
    """Whether a caption has no words, or is the name of a file, or a camera's or a program's number.

    Example:
        >>> is_file_name("IMG_2041", "a.jpg"), is_file_name("photo.JPG", "a.jpg"), is_file_name("a dog", "a.jpg")
        (True, True, False)
    """
    text = caption.strip()
    if all(word.isdigit() for word in TOKENISERS["unicode"](text)):  # an emoji is a word
        return True
    file = os.path.basename(image)
    if text.casefold() in (file.casefold(), image.casefold()):
        return True
    return bool(_EXTENSION.match(text) or _CAMERA.match(text) or _CODE.match(text))


def _share_below(
    scores: Scores, image_of: NDArray[np.int64], rows: NDArray[np.int64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """For each caption the share of other pictures that score below its own, ties counting half."""
    rivals = np.sort(generator.permutation(scores.n_images)[:RIVALS])
    own_images = np.unique(image_of[rows])
    among = checked_block(scores, rivals, rows).float().cpu().numpy()
    own_block = checked_block(scores, own_images, rows).float().cpu().numpy()
    own = own_block[np.searchsorted(own_images, image_of[rows]), np.arange(len(rows))]
    other = rivals[:, None] != image_of[rows][None, :]
    below = ((among < own) + 0.5 * (among == own)) * other
    share: NDArray[np.float64] = below.sum(0) / np.maximum(1, other.sum(0))
    return share
