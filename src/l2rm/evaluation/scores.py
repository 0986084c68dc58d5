"""Scores of images against captions, block by block: the one thing that ranking and auditing ask of a model."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from l2rm.errors import InputError


@runtime_checkable
class Scores(Protocol):
    """A matrix of similarities, images × captions, that is never needed whole. Higher means more alike.

    Whoever implements it decides what a block costs: a model embeds every image and caption once and then compares,
    a matrix is merely indexed. Blocks of one object share dtype and device, and a cell has the same value in every
    block that holds it (up to rounding).
    """

    @property
    def n_images(self) -> int:
        """Rows of the whole matrix."""
        ...

    @property
    def n_captions(self) -> int:
        """Columns of the whole matrix."""
        ...

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        """The scores of these images (int64 indices) and these captions: `(len(images), len(captions))`."""
        ...


class MatrixScores:
    """Scores that were computed elsewhere: an `(images, captions)` array, memory-mapped or not, or a tensor.

    Raises:
        InputError: the matrix has not two dimensions, or its numbers are not real.

    Example:
        >>> scores = MatrixScores(np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]]))
        >>> scores.n_images, scores.n_captions
        (2, 3)
        >>> scores.block(np.array([1]), np.array([0, 2])).tolist()
        [[0.2, 0.4]]
    """

    def __init__(self, matrix: np.ndarray | torch.Tensor) -> None:
        if matrix.ndim != 2:
            raise InputError(
                f"similarity matrix: its shape is {tuple(matrix.shape)}; give one of shape (images, captions)"
            )
        is_real = matrix.dtype.kind in "fiub" if isinstance(matrix, np.ndarray) else not matrix.is_complex()
        if not is_real:
            raise InputError(f"similarity matrix: {matrix.dtype} are not real numbers; save it as float32")
        self._matrix = matrix

    @property
    def n_images(self) -> int:
        """Rows of the matrix."""
        return int(self._matrix.shape[0])

    @property
    def n_captions(self) -> int:
        """Columns of the matrix."""
        return int(self._matrix.shape[1])

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        """These rows and columns, on the device of the matrix; floats as they are, whole numbers as float64."""
        if isinstance(self._matrix, torch.Tensor):
            rows = torch.as_tensor(images, device=self._matrix.device)
            columns = torch.as_tensor(captions, device=self._matrix.device)
            cells = self._matrix[rows[:, None], columns[None, :]]
            return cells if cells.is_floating_point() else cells.double()
        wanted: type[np.floating] = np.float16 if self._matrix.dtype == np.float16 else np.float32
        if self._matrix.dtype.kind != "f" or self._matrix.dtype.itemsize > 4:
            wanted = np.float64
        return torch.from_numpy(np.array(self._matrix[np.ix_(images, captions)], dtype=wanted))


class EnsembleScores:
    """The mean of several scores, block by block: SGRAF is the ensemble of an SGR and a SAF.

    Raises:
        InputError: no members, or members of different sizes.

    Example:
        >>> both = EnsembleScores([MatrixScores(np.array([[1.0, 0.0]])), MatrixScores(np.array([[0.0, 0.5]]))])
        >>> both.block(np.array([0]), np.array([0, 1])).tolist()
        [[0.5, 0.25]]
    """

    def __init__(self, members: Sequence[Scores]) -> None:
        if not members:
            raise InputError("ensemble: no members; give at least one run or similarity matrix")
        sizes = {(member.n_images, member.n_captions) for member in members}
        if len(sizes) > 1:
            listed = ", ".join(f"{images} × {captions}" for images, captions in sorted(sizes))
            raise InputError(f"ensemble: members score different data (images × captions: {listed}); use one data set")
        self._members = tuple(members)

    @property
    def n_images(self) -> int:
        """Images that every member scores."""
        return self._members[0].n_images

    @property
    def n_captions(self) -> int:
        """Captions that every member scores."""
        return self._members[0].n_captions

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        """The mean over the members of their blocks."""
        total = self._members[0].block(images, captions)
        for member in self._members[1:]:
            total = total + member.block(images, captions).to(total.device)
        return total / len(self._members)


class KeptScores:
    """Scores of a model, each computed once and then kept in memory: for ranking the same scores in several ways.

    What is kept takes 4 bytes a cell, from the beginning.

    Example:
        >>> scores = KeptScores(MatrixScores(np.array([[0.9, 0.1], [0.2, 0.8]])))
        >>> scores.block(np.array([1]), np.array([0, 1])).tolist() == scores.block(np.array([1]), np.arange(2)).tolist()
        True
    """

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self._known = np.full((scores.n_images, scores.n_captions), np.nan, dtype=np.float32)

    @property
    def n_images(self) -> int:
        """Rows of the whole matrix."""
        return self._scores.n_images

    @property
    def n_captions(self) -> int:
        """Columns of the whole matrix."""
        return self._scores.n_captions

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        """The block, from memory where all of it has been asked for before; float32 on the CPU."""
        cells = np.ix_(images, captions)
        block = self._known[cells]
        if np.isnan(block).any():
            block = self._scores.block(images, captions).float().cpu().numpy()
            self._known[cells] = block
        return torch.from_numpy(block)


class Stoppable:
    """Scores that call `stop`, which may raise, before every block."""

    def __init__(self, scores: Scores, stop: Callable[[], None]) -> None:
        self._scores, self._stop = scores, stop

    @property
    def n_images(self) -> int:
        """Rows of the whole matrix."""
        return self._scores.n_images

    @property
    def n_captions(self) -> int:
        """Columns of the whole matrix."""
        return self._scores.n_captions

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        """The block, unless `stop` raises."""
        self._stop()
        return self._scores.block(images, captions)


def checked_block(scores: Scores, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
    """`scores.block(images, captions)` without gradient; a score that is not a number is an error, never a rank.

    Raises:
        InputError: a score is NaN; the message names the first image and caption.
    """
    with torch.no_grad():
        block = scores.block(images, captions)
    if block.shape != (len(images), len(captions)):
        raise ValueError(f"block of shape {tuple(block.shape)} for {len(images)} images and {len(captions)} captions")
    bad = torch.isnan(block)
    if bool(bad.any()):
        row, column = (int(index) for index in bad.nonzero()[0])
        raise InputError(
            f"scores: NaN for image {int(images[row])} and caption {int(captions[column])}; "
            "check the features or the similarity matrix, or train with a smaller learning rate"
        )
    return block
