"""Captions vouch for one another: what trusted captions say of an image tells who else belongs to it.

Where captions went astray one by one, a caption's right image is given others, most of which are right. Its words are
like theirs, whatever a model makes of the picture. Where all captions of an image went astray together they agree as
well as ever, and this says nothing: the caller sees to that.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from l2rm.data.texts import word_weights
from l2rm.evaluation.scores import Scores

PRIOR = 0.5
"""A trusted caption's worth of silence: one caption's words count less than several captions' that agree."""
SAMPLE = 1000
"""Images, and captions, by which the spread of the scores and of the words is measured."""


def unit_words(captions: tuple[str, ...]) -> csr_array:
    """TF-IDF vectors of length 1, (captions, words), float32; zeros for a caption without words that tell anything."""
    weights = word_weights(captions)
    lengths = np.sqrt(np.asarray(weights.multiply(weights).sum(1)).ravel())
    return csr_array(diags_array(1 / np.maximum(lengths, 1e-12)) @ weights).astype(np.float32)


class WordedScores:
    """A model's scores, and how far a caption's words are those of an image's other captions.

    `s(i, c) + strength · (σ_s / σ_t) · t(i, c)`, where `t` is the mean cosine of the words of c and of each caption
    that i is given, c itself left out, weighed by `trust`; half a caption that shares no word is added to the mean. The
    standard deviations σ are over images and captions drawn at random.

    Args:
        scores: of the model.
        words: (captions, words), as of `unit_words`.
        image_of: (captions,) the image each caption is given.
        trust: (captions,) in [0, 1]; how far each is believed to belong there.
        strength: how much the words count beside the scores.
        seed: draws the images and captions for the standard deviations.

    Example:
        >>> from l2rm.evaluation.scores import MatrixScores
        >>> words = unit_words(("a red kite", "the red kite", "old man", "the old man"))
        >>> given = np.array([0, 0, 1, 1])
        >>> alike = WordedScores(MatrixScores(np.eye(2).repeat(2, 1)), words, given, np.ones(4), strength=1.0)
        >>> bool((alike.block(np.arange(2), np.arange(4)).argmax(0).numpy() == given).all())
        True
    """

    def __init__(
        self,
        scores: Scores,
        words: csr_array,
        image_of: NDArray[np.int64],
        trust: NDArray[np.floating],
        *,
        strength: float,
        seed: int = 0,
    ) -> None:
        self._scores, self._words, self._image_of = scores, words, image_of
        self._trust = np.asarray(trust, dtype=np.float32)
        given = csr_array((self._trust, (image_of, np.arange(len(image_of)))), (scores.n_images, len(image_of)))
        self._said, self._heard = csr_array(given @ words), np.asarray(given.sum(1)).ravel()
        self._factor = 0.0
        generator = np.random.default_rng(seed)
        drawn = (generator.permutation(count)[:SAMPLE] for count in (scores.n_images, scores.n_captions))
        images, captions = drawn
        if strength and (spread := float(self._likeness(images, captions).std())) > 0:
            self._factor = strength * float(scores.block(images, captions).float().std(correction=0)) / spread

    @property
    def n_images(self) -> int:
        """Images."""
        return self._scores.n_images

    @property
    def n_captions(self) -> int:
        """Captions."""
        return self._scores.n_captions

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> torch.Tensor:
        """Scores (len(images), len(captions))."""
        scores = self._scores.block(images, captions)
        if not self._factor:
            return scores
        return scores + self._factor * torch.from_numpy(self._likeness(images, captions)).to(scores)

    def _likeness(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> NDArray[np.float32]:
        """`t` of the module: (len(images), len(captions))."""
        words, trust, given = self._words[captions], self._trust[captions], self._image_of[captions]
        likeness = (self._said[images] @ words.T).toarray() / (self._heard[images] + PRIOR)[:, None]
        itself = trust * np.asarray(words.multiply(words).sum(1)).ravel()
        others = np.asarray(self._said[given].multiply(words).sum(1)).ravel() - itself
        own = others / np.maximum(self._heard[given] - trust + PRIOR, PRIOR)
        found: NDArray[np.float32] = np.where(images[:, None] == given, own, likeness).astype(np.float32)
        return found
