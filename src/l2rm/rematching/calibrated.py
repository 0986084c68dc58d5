"""The equivariant cost for a whole data set: learned from pairs that look matched, asked for candidates only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.rematching.candidates import Blocks, Candidates
from l2rm.rematching.equivariant import Context, EquivariantCost, known_pairs_loss

REFERENCE = 512
"""Images and captions that stand for all of them, at most, where one is held against the others."""
PLANTED = 0.1
"""Share of a lesson's images whose caption is there."""
_LESSONS, _STEPS, _RATE = 8, 200, 0.02
_AT_ONCE = 256

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Log-odds of matching, by a learned cost, in the place of similarities.

    The row of an image is its similarities to some captions in question, the column of a caption those to some images
    in question, by sample: a cost that knows no batch size need not see all of them.

    Attributes:
        cost: learned from pairs that look matched.
        images: the row of each image in question; its items are in the order of `place`.
        place: `(all images,)` where an image stands in `images`; −1 for those that are not in question.
        mean: of the similarities of the images and captions of both samples.
    """

    cost: EquivariantCost
    images: Context
    place: Integers
    mean: float

    @torch.no_grad()
    def log_odds(self, similarity: Tensor, image: Integers, captions: Context) -> Tensor:
        """Of captions (q,) with images (q, k): `similarity` and `image` are of that shape, `captions` has q items."""
        found = torch.empty_like(similarity)
        for start in range(0, len(similarity), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            s = similarity[some]
            rows = self.images.take(torch.from_numpy(self.place[image[some]].ravel()))
            columns = captions.take(torch.arange(start, start + len(s)))
            centred = s - rows.mean.view_as(s) - columns.mean[:, None] + self.mean
            in_row = [part.view_as(s) for part in rows.features(s.reshape(-1, 1))]
            found[some] = self.cost.combined(s, centred, in_row, columns.features(s))
        return found


def learn_cost(scores: Blocks, captions: Integers, own: Integers, images: Integers, *, tau: float, seed: int) -> EquivariantCost:
    """Learn an equivariant cost from captions whose image is known.

    A lesson is captions, as many images that are not theirs, and among these a tenth of their own: known matches, in
    rows and columns of which few have one, as among the suspects.

    Args:
        scores: images × captions.
        captions: `(c,)` which look matched.
        own: `(c,)` their images.
        images: others, which are known not to be theirs.
        tau: temperature of the similarities.
        seed: draws the lessons.
    """
    generator = np.random.default_rng((seed, 31))
    size = min(REFERENCE // 2, len(captions))
    lessons = []
    for _ in range(_LESSONS):
        some = generator.choice(len(captions), size, replace=False)
        planted = generator.choice(some, max(1, int(PLANTED * size)), replace=False)
        foreign = np.setdiff1d(generator.choice(images, min(size, len(images)), replace=False), own[planted])
        rows = np.unique(np.append(foreign, own[planted]))
        S = scores.block(rows, captions[some]).detach().float().cpu()
        lessons.append((S, torch.from_numpy(rows[:, None] == own[some][None, :]).float()))
    cost = EquivariantCost(tau)
    optimiser = torch.optim.Adam(cost.parameters(), lr=_RATE)
    for step in range(_STEPS):
        S, match = lessons[step % _LESSONS]
        loss = known_pairs_loss(cost.log_odds(S), match, 1 - match)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return cost
