"""Sample division of the training pairs: a loss each, a mixture over them, a match probability each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.batches import Batches, ahead, shuffled
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.rematching.division import BetaMixture
from l2rm.rematching.gaussian import GaussianMixture
from l2rm.rematching.objectives import pair_loss
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.model import RetrievalModel, evaluating


@dataclass(frozen=True, kw_only=True)
class Division:
    """`match_probability (rows,)` by a mixture of `losses (rows,)` (or p-values); `facts` are what the metrics tell."""

    losses: NDArray[np.float32]
    match_probability: NDArray[np.float32]
    facts: dict[str, Any]

    def statistics(self, threshold: float, is_mismatched: NDArray[np.bool_] | None) -> dict[str, Any]:
        """What the metrics tell of this division; with the truth, how far it is right and how pure the matched part."""
        matched = self.match_probability > threshold
        facts: dict[str, Any] = {
            "matched": int(matched.sum()),
            "mismatched": int((~matched).sum()),
            "estimated_ratio": float(1 - self.match_probability.mean()),
            **self.facts,
        }
        if is_mismatched is not None:
            facts["accuracy"] = float((matched != is_mismatched).mean())
            facts["purity"] = float((~is_mismatched[matched]).mean()) if matched.any() else None
        return facts


def divide(
    model: RetrievalModel,
    batches: Batches,
    config: RematchingConfig,
    *,
    batch_size: int,
    seed: tuple[int, ...],
    previous: NDArray[np.float32] | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Division:
    """Losses (`pair_losses`), then the mixture that `config` names.

    Args:
        model: what is to be asked; its mode is left as it was.
        batches: all training pairs.
        config: `margin`, `mixture`, `one_mode`, `estimator`, `monotone` and `smoothing` count here.
        batch_size: pairs a batch.
        seed: rules which pairs share a batch.
        previous: match probabilities of the division before, for `config.smoothing`.
        stop: called at every batch; may raise.

    Raises:
        InputError: a loss is not finite; names the pair.
    """
    losses = pair_losses(model, batches, margin=config.margin, batch_size=batch_size, seed=seed, stop=stop)
    mixture: BetaMixture | GaussianMixture
    if config.mixture == "gaussian":
        mixture = GaussianMixture.fit(losses, one_mode=config.one_mode)
        shapes = {"mean": mixture.mean.tolist(), "variance": mixture.variance.tolist()}
    else:
        mixture = BetaMixture.fit(losses, one_mode=config.one_mode, estimator=config.estimator)
        shapes = {"alpha": mixture.alpha.tolist(), "beta": mixture.beta.tolist()}
    probability = mixture.match_probability(losses, monotone=config.monotone).float().numpy()
    if previous is not None and config.smoothing:
        probability = config.smoothing * previous + (1 - config.smoothing) * probability
    probability = trusting(batches.pairs, probability)
    facts = {
        **shapes,
        "weight": mixture.weight.tolist(),
        "converged": mixture.converged,
        "degenerate": mixture.degenerate,
    }
    return Division(losses=losses.numpy(), match_probability=probability, facts=facts)


def trusting(pairs: Pairs, match_probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """The match probabilities, 1 where a person decided that the pair is matched."""
    return match_probability if pairs.trusted is None else np.where(pairs.trusted, np.float32(1), match_probability)


def pair_losses(
    model: RetrievalModel,
    batches: Batches,
    *,
    margin: float,
    batch_size: int,
    seed: tuple[int, ...],
    stop: Callable[[], None] = lambda: None,
) -> Tensor:
    """(rows,) losses on the CPU, in evaluation mode, over shuffled batches (the last, smaller one is kept).

    A pair left over alone joins the batch before it: without another pair to be told from, its loss would be 0. `stop`
    is called at every batch; it may raise.

    Raises:
        InputError: a loss is not finite; names the pair.
    """
    parts = shuffled(np.arange(len(batches)), batch_size, seed=seed, drop_last=False)
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [np.concatenate(parts[-2:])]
    losses = torch.empty(len(batches))
    with torch.no_grad(), evaluating(model), ahead(batches.batch, parts) as read:
        for batch in read:
            stop()
            S = model(batch.images, batch.captions, batch.lengths)
            losses[batch.rows] = pair_loss(S, margin).float().cpu()
    if not (finite := losses.isfinite()).all():
        row = int((~finite).nonzero()[0])
        raise InputError(
            f"{batches.pairs.source}: the model gives pair {batches.pairs.pair_ids[row]} (row {row + 1}) the loss "
            f"{float(losses[row])}; look at its features, or train with a smaller learning rate"
        )
    return losses
