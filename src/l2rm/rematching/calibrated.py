"""The equivariant cost for a whole data set: learned from pairs that look matched, asked for candidates only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.rematching.candidates import Blocks, Candidates
from l2rm.rematching.equivariant import Context, EquivariantCost, known_pairs_loss

REFERENCE = 512
"""Images and captions that stand for all of them, at most, where one is held against the others."""
PLANTED = 0.1
"""Share of a lesson's images whose caption is there."""
_LESSONS, _STEPS, _RATE = 8, 200, 0.02
_AT_ONCE = 256

Integers = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Log-odds of matching, by a learned cost, in the place of similarities.

    The row of an image is its similarities to some captions in question, the column of a caption those to some images
    in question, both by sample: a cost that knows no batch size need not see all of them.

    Attributes:
        cost: learned from pairs that look matched.
        images: the row of each image in question; its items are in the order of `place`.
        place: `(all images,)` where an image stands in `images`; −1 for those that are not in question.
        sample: `(n,)`; the images that captions are held against.
        mean: of the similarities of the images and captions of both samples.
    """

    cost: EquivariantCost
    images: Context
    place: Integers
    sample: Integers
    mean: float

    @classmethod
    @torch.no_grad()
    def of(cls, cost: EquivariantCost, scores: Blocks, images: Integers, more: Integers, *, seed: int) -> Calibrated:
        """For captions in question, those of `scores`.

        Args:
            cost: learned.
            scores: images × captions in question.
            images: those in question.
            more: others that are asked about.
            seed: draws the samples.
        """
        generator = np.random.default_rng((seed, 37))
        sample = np.sort(generator.choice(images, min(REFERENCE, len(images)), replace=False))
        count = min(REFERENCE, scores.n_captions)
        captions = np.sort(generator.choice(scores.n_captions, count, replace=False))
        asked = np.union1d(images, more)
        place = np.full(scores.n_images, -1)
        place[asked] = np.arange(len(asked))
        S = scores.block(asked, captions).float().cpu()
        mean = float(S[torch.from_numpy(place[sample])].mean())
        return cls(cost=cost, images=Context.of(S, cost.tau), place=place, sample=sample, mean=mean)

    @torch.no_grad()
    def log_odds(self, scores: Blocks, similarity: Floats, image: NDArray[np.integer]) -> Floats:
        """Of each caption of `scores (q of them)` with images (q, k); −inf where the `similarity (q, k)` is that."""
        found = np.full(similarity.shape, -np.inf, dtype=np.float32)
        for start in range(0, len(similarity), _AT_ONCE):
            some = np.arange(start, min(start + _AT_ONCE, len(similarity)))
            s = torch.from_numpy(np.nan_to_num(similarity[some], neginf=0.0)).float()
            columns = Context.of(scores.block(self.sample, some).T.float().cpu(), self.cost.tau)
            rows = self.images.take(torch.from_numpy(self.place[image[some].ravel()]))
            centred = s - rows.mean.view_as(s) - columns.mean[:, None] + self.mean
            in_row = [part.view_as(s) for part in rows.features(s.reshape(-1, 1))]
            odds = self.cost.judged(self.cost.joined(s, centred, in_row, columns.features(s))).numpy()
            found[some] = np.where(np.isneginf(similarity[some]), -np.inf, odds)
        return found

    def candidates(self, scores: Blocks, found: Candidates) -> Candidates:
        """The same candidates by log-odds, best first; `found` is of all captions of `scores`, in their order."""
        odds = self.log_odds(scores, found.scores, found.images)
        order = np.argsort(-odds, axis=1, kind="stable")
        images = np.take_along_axis(found.images, order, axis=1)
        return replace(found, images=images, scores=np.take_along_axis(odds, order, axis=1))


def learn_cost(scores: Blocks, own: Integers, images: Integers, *, tau: float, seed: int) -> EquivariantCost:
    """Learn an equivariant cost from captions whose image is known.

    A lesson is captions, as many images that are not theirs, and among these a tenth of their own: known matches, in
    rows and columns of which few have one, as among the suspects.

    Args:
        scores: images × captions that look matched.
        own: `(captions,)` their images.
        images: others, which are known not to be theirs.
        tau: temperature of the similarities.
        seed: draws the lessons.
    """
    generator = np.random.default_rng((seed, 31))
    cost = EquivariantCost(tau)
    size = min(REFERENCE // 2, len(own))
    lessons = []
    for _ in range(_LESSONS):
        some = generator.choice(len(own), size, replace=False)
        planted = generator.choice(some, max(1, int(PLANTED * size)), replace=False)
        foreign = np.setdiff1d(generator.choice(images, min(size, len(images)), replace=False), own[planted])
        rows = np.unique(np.append(foreign, own[planted]))
        S = scores.block(rows, some).detach().float().cpu()
        lessons.append((cost.features(S), torch.from_numpy(rows[:, None] == own[some][None, :]).float()))
    optimiser = torch.optim.Adam(cost.parameters(), lr=_RATE)
    for step in range(_STEPS):
        x, match = lessons[step % _LESSONS]
        loss = known_pairs_loss(cost.judged(x), match, 1 - match)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return cost
