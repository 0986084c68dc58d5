"""Mismatches put in on purpose: injected at random, or read from published index files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from l2rm.data.features import read_array
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.files import written_whole

Level = Literal["image", "caption", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mismatched:
    """Pairs some of which are mismatched, and what is known about that.

    Attributes:
        pairs: `image_of` is the image that each caption is given, `true_image_of` its own.
        is_mismatched: (rows,) whether the two differ.
        ratio: Share of the images (level "image") or of the captions that are mismatched, as asked for or as measured.
        level: "image" where all captions of an image go together, "caption" where single ones do, "none" without any.
        seed: What the random numbers came from; None for an index file.
    """

    pairs: Pairs
    is_mismatched: NDArray[np.bool_]
    ratio: float
    level: Level
    seed: int | None = None


def inject_mismatches(pairs: Pairs, *, ratio: float, level: Literal["image", "caption"], seed: int) -> Mismatched:
    """Permute images among a random part of the pairs, so that none of them keeps its own.

    At image level `round(ratio * images)` images are chosen, and all captions of one are given another (the protocol of
    L2RM, RCL, DECL); at caption level `round(ratio * captions)` single captions are, and each is given the image of
    another one, never its own (NCR, BiCro). Numbers under the two protocols are not comparable.

    Raises:
        InputError: A ratio outside [0, 1), another level, a ratio that chooses a single item or none, pairs that are
            mismatched already, or captions of too few images to exchange.

    Example:
        >>> pairs = Pairs(images=("a", "b", "c", "d"), image_of=np.arange(4), captions=("1", "2", "3", "4"))
        >>> noisy = inject_mismatches(pairs, ratio=0.5, level="image", seed=0)
        >>> int(noisy.is_mismatched.sum())
        2
    """
    if level not in ("image", "caption"):
        raise InputError(f"level: {level!r} is none; choose image or caption")
    if not 0 <= ratio < 1:
        raise InputError(f"ratio: {ratio} is outside [0, 1); give the share of {level}s to mismatch, such as 0.4")
    _refuse_mismatched(pairs)
    rng = np.random.default_rng(seed)
    owners = np.arange(pairs.n_images) if level == "image" else pairs.image_of
    count = round(ratio * len(owners))
    if ratio > 0 and count < 2:
        raise InputError(f"ratio: {ratio} of {len(owners)} {level}s is {count}, and a mismatch needs two; raise it")
    given = owners.copy()
    chosen = _choose(owners, count, rng)
    given[chosen] = _exchange(owners[chosen], rng)
    return _mismatched(pairs, given[pairs.image_of] if level == "image" else given, ratio, level, seed)


def read_index(path: str | Path, pairs: Pairs) -> Mismatched:
    """Mismatch pairs by a published index file: a .npy of integers, the image (from 0) that each caption is given.

    A file with one entry an image, as RCL publishes them, gives all captions of image i image `index[i]`.

    Raises:
        InputError: Not a .npy of integers in one dimension, another length, an image that does not exist, or pairs
            that are mismatched already.
    """
    path = Path(path)
    index = read_array(path)
    _refuse_mismatched(pairs)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise InputError(f"{path}: {index.dtype} of shape {index.shape}; an index file is a list of whole numbers")
    captions_of = np.bincount(pairs.image_of, minlength=pairs.n_images)
    per_image = len(index) == pairs.n_images < len(pairs) and len(set(captions_of)) == 1
    if len(index) != len(pairs) and not per_image:
        raise InputError(
            f"{path}: {len(index)} entries for {len(pairs)} captions of {pairs.n_images} images in {pairs.source}; "
            "give the index file of these captions"
        )
    wrong = np.flatnonzero((index < 0) | (index >= pairs.n_images))
    if len(wrong):
        raise InputError(
            f"{path}:entry {wrong[0]} (from 0): image {index[wrong[0]]}, but {pairs.source} has images 0 to "
            f"{pairs.n_images - 1}; give the index file of these captions"
        )
    given = (index[pairs.image_of] if per_image else index).astype(np.int64)
    is_mismatched = given != pairs.image_of
    level = recognise_level(replace(pairs, image_of=given, true_image_of=pairs.image_of))
    if level == "image":
        ratio = len(np.unique(pairs.image_of[is_mismatched])) / pairs.n_images
    else:
        ratio = float(is_mismatched.mean())
    return _mismatched(pairs, given, ratio, level, seed=None)


def write_index(path: str | Path, mismatched: Mismatched) -> None:
    """Write the image that each caption is given, as a published index file: .npy, int64, one entry a caption."""
    with written_whole(path) as beside, beside.open("wb") as file:
        np.save(file, mismatched.pairs.image_of)


def recognise_level(pairs: Pairs) -> Level:
    """At which level pairs of known truth are mismatched.

    "image" where all captions of an image were given one and the same image, and those given an image are all matched
    or all mismatched; with one caption an image there is no telling, and it is "image" too.

    Raises:
        InputError: The truth is not known.
    """
    is_mismatched = pairs.is_mismatched
    if is_mismatched is None or pairs.true_image_of is None:
        raise InputError(
            f"{pairs.source}: which pairs are mismatched is not known; give an index file or a true_image column"
        )
    if not is_mismatched.any():
        return "none"
    known = pairs.true_image_of >= 0
    together = _determines(pairs.true_image_of[known], pairs.image_of[known]) and _determines(
        pairs.image_of, is_mismatched.astype(np.int64)
    )
    return "image" if together else "caption"


def _determines(cause: NDArray[np.int64], effect: NDArray[np.int64]) -> bool:
    """Whether equal causes always have equal effects."""
    both = cause * (effect.max(initial=0) + 1) + effect
    return len(np.unique(both)) == len(np.unique(cause))


def _choose(owners: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose `count` places at random, no more than half of them of one owner, or else they cannot be exchanged."""
    order = rng.permutation(len(owners))
    grouped = np.argsort(owners[order], kind="stable")
    sizes = np.unique(owners, return_counts=True)[1]
    nth_of_owner = np.empty(len(owners), dtype=np.int64)
    nth_of_owner[grouped] = np.arange(len(owners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = order[nth_of_owner < count // 2][:count]
    if len(chosen) < count:
        raise InputError(
            f"ratio: {count} captions cannot exchange images, as too many belong to one of {len(sizes)} images; "
            "lower the ratio, or mismatch at image level"
        )
    return chosen


def _exchange(owners: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Permute `owners` at random such that no place keeps its own; none may have more than half of the places.

    A place i that got its own owner a back swaps with a random j that neither belongs to a nor was given a. At most n/2
    places belong to a, as many were given a, and i itself is both, so n/2 + n/2 - 1 places at most are ruled out: some
    j is always left, and the swap leaves i and j both right.
    """
    given = rng.permutation(owners)
    for i in np.flatnonzero(given == owners):
        if given[i] == owners[i]:  # an earlier swap may have put it right
            j = rng.choice(np.flatnonzero((owners != owners[i]) & (given != owners[i])))
            given[i], given[j] = given[j], given[i]
    return given


def _mismatched(pairs: Pairs, given: NDArray[np.int64], ratio: float, level: Level, seed: int | None) -> Mismatched:
    noisy = replace(pairs, image_of=given, true_image_of=pairs.image_of)
    return Mismatched(pairs=noisy, is_mismatched=given != pairs.image_of, ratio=ratio, level=level, seed=seed)


def _refuse_mismatched(pairs: Pairs) -> None:
    if pairs.is_mismatched is not None and pairs.is_mismatched.any():
        raise InputError(
            f"{pairs.source}: mismatched already (columns is_mismatched, true_image); give the original pairs"
        )
