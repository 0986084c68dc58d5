"""The L2RM step: learn the cost, rematch the mismatched, learn from both."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from l2rm.data.batches import Batch, Batches
from l2rm.rematching import objectives
from l2rm.rematching.cost import COST_FLOOR, known_match_loss
from l2rm.rematching.equivariant import EquivariantCost, known_pairs_loss
from l2rm.rematching.few import few_pairs
from l2rm.rematching.memory import Memory, first_places, plan_from_many
from l2rm.rematching.settings import RematchingConfig
from l2rm.rematching.transport import TransportPlan, partial_transport
from l2rm.similarity.model import Encoded, RetrievalModel


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step found.

    `loss` to be differentiated; its `terms` by name (and what the cost update lowered); the `plan`, with `candidates`,
    the image (id) of each of its rows; both None where nothing was rematched. `memory`: what a next step may choose
    from besides.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    plan: TransportPlan | None = None
    candidates: Tensor | None = None
    memory: Memory | None = None


class RematchingStep:
    """One step of L2RM on a matched and a mismatched batch (L2RM, CVPR 2024; the stages in the order of the paper).

    As published, `loss = max_violation(S_matched) + symmetric_kl(S_mismatched, plan)`, the plan by masked partial
    transport at the learned cost. The queue (image ids) holds images beyond the mismatched batch's own that captions
    may be rematched to. A mismatched batch that cannot exchange as much as the plan should carry, because too many of
    its captions are given one image, is left out, and so is None: the matched pairs then teach alone.

    Example:
        >>> step = RematchingStep(model, cost, cost_optimiser, RematchingConfig())  # doctest: +SKIP
        >>> result = step(batches, matched, mismatched, queue)  # doctest: +SKIP
        >>> result.loss.backward()  # doctest: +SKIP
    """

    def __init__(
        self, model: RetrievalModel, cost: nn.Module, cost_optimiser: torch.optim.Optimizer, config: RematchingConfig
    ) -> None:
        self.model = model
        self.cost = cost
        self.cost_optimiser = cost_optimiser
        self.config = config
        self.matched_objective = objectives.named(config.matched_objective, margin=config.margin, tau=config.tau)

    def __call__(
        self,
        batches: Batches,
        matched: Batch,
        mismatched: Batch | None,
        queue: Tensor,
        weights: Tensor | None = None,
        memory: Memory | None = None,
    ) -> StepResult:
        """`weights (B,)`: how far each pair of `matched` is taken as matched; None: in full.

        With a `memory`, the plan chooses from its images, too, and every image can take a whole caption; the model
        learns from these cells by the captions alone.

        Raises:
            FloatingPointError: a loss or a similarity is not finite; the cost has not learned from it.
        """
        terms = {"matched": self.learn_matched(matched, weights)}
        if not terms["matched"].isfinite():
            raise FloatingPointError(f"the loss is {float(terms['matched'].detach())}")
        if mismatched is None:
            return StepResult(loss=terms["matched"], terms=terms, memory=memory)
        candidates = torch.cat([mismatched.image_ids, queue])
        forbidden = self.forbidden(candidates, mismatched.image_ids)
        if memory is None and capacity(forbidden) < self.config.mass:
            return StepResult(loss=terms["matched"], terms=terms)

        terms["cost"] = self.update_cost(matched, mismatched, weights)
        images = mismatched.images
        if len(queue):
            images = torch.cat([images, batches.images(queue.cpu().numpy())])
        encoded = self.model.encode_images(images)
        captions = self.model.encode_captions(mismatched.captions, mismatched.lengths)
        plan: TransportPlan | None
        if memory is None:
            S = finite(self.model.score(encoded, captions))
            plan = self.rematch(S, forbidden)
        else:
            candidates, encoded, memory = self._with_memory(candidates, encoded, memory)
            S = finite(self.model.score(encoded, captions))
            plan = self.rematch_from_many(S, self.forbidden(candidates, mismatched.image_ids))
            if plan is None:
                return StepResult(loss=terms["matched"], terms=terms, memory=memory)
        learn = objectives.symmetric_kl if self.config.targets == "rows" else objectives.transported
        terms["rematched"] = learn(S, plan.matrix, self.config.tau)
        loss = terms["matched"] + self.config.rematch_weight * terms["rematched"]
        return StepResult(loss=loss, terms=terms, plan=plan, candidates=candidates, memory=memory)

    def _with_memory(self, ids: Tensor, encoded: Encoded, memory: Memory) -> tuple[Tensor, Encoded, Memory]:
        """Each image of the batch once, then those of the memory; and the memory as it is for the next step."""
        vectors = encoded.whole
        first = first_places(ids)
        ids, vectors = ids[first], vectors[first]
        older = memory.without(ids)
        everything = torch.cat([vectors, older.vectors.to(vectors)]) if len(older) else vectors
        together = torch.cat([ids, older.ids.to(ids)])
        return together, Encoded(everything), memory.newer(ids, vectors, size=self.config.memory)

    def learn_matched(self, matched: Batch, weights: Tensor | None) -> Tensor:
        """What matched pairs teach; where that hangs on few pairs of images and captions, only those carry gradient."""
        objective = partial(self.matched_objective, weights=weights)
        images = self.model.encode_images(matched.images)
        captions = self.model.encode_captions(matched.captions, matched.lengths)
        if self.config.matched_objective == "max_violation" and self.model.pairs_stand_alone:
            return few_pairs(self.model, images, captions, objective)
        loss: Tensor = objective(self.model.score(images, captions))
        return loss

    def update_cost(self, matched: Batch, mismatched: Batch, weights: Tensor | None = None) -> Tensor:
        """Teach the cost by what is known: a few matched images, planted, and their captions; returns its loss.

        A linear cost learns that those cost nothing, as far as the `weights` of the matched batch take them as matched.
        An equivariant one learns to tell them, weighted so too, from the cells of images of the mismatched batch and
        captions of the matched one, as far as these are not given each other. The retrieval model is in evaluation mode
        meanwhile and learns nothing from this.

        Raises:
            FloatingPointError: a similarity is not finite; the cost has not learned from it.
        """
        most = max(1, int(self.config.planted * len(matched)))
        count = int(torch.randint(1, most + 1, ()))
        own = torch.randperm(len(matched))[:count].to(matched.images.device)
        if isinstance(self.cost, EquivariantCost):
            loss = self._known_pairs(self.cost, matched, mismatched, own[: len(mismatched)], weights)
        else:
            planted = self.model.similarity(matched.images[own], matched.captions, matched.lengths)
            loss = known_match_loss(self.cost, planted, own, weights)
        self.cost_optimiser.zero_grad()
        loss.backward()
        self.cost_optimiser.step()
        return loss.detach()

    def _known_pairs(
        self, cost: EquivariantCost, matched: Batch, mismatched: Batch, own: Tensor, weights: Tensor | None
    ) -> Tensor:
        """What the cost says of the mismatched batch's images, some replaced by those of `own`, and all captions."""
        rest = slice(len(own), None)
        images = torch.cat([matched.images[own], mismatched.images[rest]])
        ids = torch.cat([matched.image_ids[own], mismatched.image_ids[rest]])
        S = self.model.similarity(images, matched.captions, matched.lengths).float()
        if not S.isfinite().all():
            raise FloatingPointError("a similarity of the pairs that the cost learns from is not finite")
        given = (ids[:, None] == matched.image_ids[None, :]).to(S)
        known = given if weights is None else given * weights.to(S)
        return known_pairs_loss(cost.log_odds(S), known, 1 - given)

    def forbidden(self, candidates: Tensor, given: Tensor) -> Tensor:
        """Which cells (candidate images, captions) the plan may not use, for the images that captions are given."""
        if self.config.forbid == "image":
            return candidates[:, None] == given[None, :]
        if self.config.forbid == "nothing":
            return torch.zeros(len(candidates), len(given), dtype=torch.bool, device=given.device)
        return torch.eye(len(candidates), len(given), dtype=torch.bool, device=given.device)

    @torch.no_grad()
    def rematch(self, S: Tensor, forbidden: Tensor) -> TransportPlan:
        """The plan from candidate images (rows) to captions (columns), at the learned cost of `S`; no gradient."""
        return partial_transport(
            self.cost(S.detach()).clamp(min=COST_FLOOR),
            mass=self.config.mass,
            reg=self.config.reg,
            forbidden=forbidden,
            tolerance=self.config.tolerance,
            max_iterations=self.config.max_iterations,
        )

    @torch.no_grad()
    def rematch_from_many(self, S: Tensor, forbidden: Tensor) -> TransportPlan | None:
        """As `rematch`, from many more images than captions; None where nothing can be carried."""
        return plan_from_many(
            self.cost(S.detach()).clamp(min=COST_FLOOR),
            forbidden,
            mass=self.config.mass,
            reg=self.config.reg,
            tolerance=self.config.tolerance,
            max_iterations=self.config.max_iterations,
        )


def finite(S: Tensor) -> Tensor:
    """
    Raises:
        FloatingPointError: a similarity is not finite.
    """
    if not S.isfinite().all():
        raise FloatingPointError("a similarity of the pairs to rematch is not finite")
    return S


def capacity(forbidden: Tensor) -> float:
    """The mass that uniform rows and columns can exchange where images are forbidden to their own captions.

    The tightest cut keeps one image's rows with its captions: what reaches those captions comes from other rows, and
    what leaves those rows goes to other captions, `(1 − share of the rows) + (1 − share of the captions)`.

    Example:
        >>> round(capacity(torch.tensor([[True, True, False], [True, True, False], [False, False, True]])), 3)
        0.667
    """
    closed = forbidden.float()
    rows = closed.mean(0)
    captions = (closed.T @ closed > 0).float().mean(0)
    return float((2 - rows - captions).clamp(max=1).min())
