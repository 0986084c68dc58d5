"""Captions vouch for one another: what trusted captions say of an image tells who else belongs to it.

Where captions went astray one by one, a caption's right image is given others, most of which are right. Its words are
like theirs, whatever a model makes of the picture. Where all captions of an image went astray together they agree as
well as ever, and this says nothing: the caller sees to that.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from l2rm.data.texts import word_weights
from l2rm.evaluation.scores import Scores, checked_block

PRIOR = 0.5
"""A trusted caption's worth of silence: one caption's words count less than several captions' that agree."""
SAMPLE = 1000
"""Images, and captions, by which the spread of the scores and of the words is measured."""
LEAST_SPREAD = 0.01
"""Where captions hardly share a word, the few that do are not made to stand out by more than this would make them."""
ROUNDING = 1e-5


@lru_cache(maxsize=1)
def unit_words(captions: tuple[str, ...]) -> csr_array:
    """TF-IDF vectors of length 1, (captions, words), float32; zeros for a caption without words that tell anything."""
    weights = word_weights(captions)
    lengths = np.sqrt(np.asarray(weights.multiply(weights).sum(1)).ravel())
    return csr_array(diags_array(1 / np.maximum(lengths, 1e-12)) @ weights).astype(np.float32)


class WordedScores:
    """A model's scores, and how far a caption's words are those of an image's other captions.

    `s(i, c) + strength · (σ_s / σ_t) · t(i, c)`, where `t` is the mean cosine of the words of c and of each caption
    that i is given, c itself left out, weighed by `trust`; half a caption that shares no word is added to the mean. A
    caption that is its image's only one has the mean over all images there, which speaks neither for the pair nor
    against it. The standard deviations σ are over images and captions drawn at random, `σ_t` at least 0.01.

    Args:
        scores: of the model.
        words: (captions, words), as of `unit_words`.
        image_of: (captions,) the image each caption is given.
        trust: (captions,) in [0, 1]; how far each is believed to belong there.
        strength: how much the words count beside the scores.

    Raises:
        InputError: a score among those drawn is NaN.

    Example:
        >>> from l2rm.evaluation.scores import MatrixScores
        >>> words = unit_words(("red kite", "a red kite", "old man", "an old man"))
        >>> given = np.array([0, 0, 1, 1])
        >>> misled = MatrixScores(np.array([[0.1, 0.1, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]]))
        >>> worded = WordedScores(misled, words, given, np.ones(4), strength=2.0)
        >>> worded.block(np.arange(2), np.arange(4)).argmax(0).tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self,
        scores: Scores,
        words: csr_array,
        image_of: NDArray[np.int64],
        trust: NDArray[np.floating],
        *,
        strength: float,
    ) -> None:
        self._scores, self._words, self._image_of = scores, words, image_of
        trust = np.asarray(trust, dtype=np.float32)
        given = csr_array((trust, (image_of, np.arange(len(image_of)))), (scores.n_images, len(image_of)))
        self._said, self._heard = csr_array(given @ words), np.asarray(given.sum(1)).ravel() + np.float32(PRIOR)
        itself = trust * np.asarray(words.multiply(words).sum(1)).ravel()
        heard = self._heard[image_of]
        others = np.asarray(self._said[image_of].multiply(words).sum(1)).ravel() - itself
        elsewhere = (words @ ((1 / self._heard) @ self._said) - itself / heard) / scores.n_images
        own = np.where(heard - trust > PRIOR + ROUNDING, others / np.maximum(heard - trust, PRIOR), elsewhere)
        self._own = np.where(own > ROUNDING, own, 0.0)  # what should be 0 is a difference of two sums
        self._factor = 0.0
        generator = np.random.default_rng(0)
        images, captions = (generator.permutation(count)[:SAMPLE] for count in (scores.n_images, scores.n_captions))
        if strength and (spread := float(self._likeness(images, captions).std())) > 0:
            drawn = checked_block(scores, images, captions).float()
            spread_of_scores = float(drawn[drawn.isfinite()].std(correction=0))
            self._factor = strength * spread_of_scores / max(spread, LEAST_SPREAD)

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
        likeness: NDArray[np.float32] = (self._said[images] @ self._words[captions].T).toarray()
        likeness /= self._heard[images, None]
        row, column = np.nonzero(images[:, None] == self._image_of[captions])
        likeness[row, column] = self._own[captions[column]]
        return likeness
