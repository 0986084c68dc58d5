"""The L2RM step: learn the cost, rematch the mismatched, learn from both."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2rm.data.batches import Batch, Batches
from l2rm.rematching import objectives
from l2rm.rematching.cost import COST_FLOOR, known_match_loss
from l2rm.rematching.settings import RematchingConfig
from l2rm.rematching.transport import TransportPlan, partial_transport
from l2rm.similarity.model import RetrievalModel


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step found: `loss` to be differentiated, its terms, the plan, and the images (ids) of the plan's rows."""

    loss: Tensor
    terms: dict[str, Tensor]
    plan: TransportPlan | None
    candidates: Tensor


class RematchingStep:
    """One step of L2RM on a matched and a mismatched batch (L2RM, CVPR 2024; the stages in the order of the paper).

    `loss = max_violation(S_matched) + symmetric_kl(S_mismatched, plan)`, the plan by masked partial transport at the
    learned cost. The queue holds images beyond the mismatched batch's own that captions may be rematched to.
    """

    def __init__(
        self, model: RetrievalModel, cost: nn.Module, cost_optimiser: torch.optim.Optimizer, config: RematchingConfig
    ) -> None:
        self.model = model
        self.cost = cost
        self.cost_optimiser = cost_optimiser
        self.config = config
        self.matched_objective = getattr(objectives, config.matched_objective)
        self.matched_parameter = {"margin": config.margin} if "violation" in config.matched_objective else {"tau": config.tau}

    def __call__(self, batches: Batches, matched: Batch, mismatched: Batch | None, queue: Tensor) -> StepResult:
        S = self.model(matched.images, matched.captions, matched.lengths)
        terms = {"matched": self.matched_objective(S, **self.matched_parameter)}
        if mismatched is None:  # nothing is suspect: the matched pairs teach alone
            return StepResult(loss=terms["matched"], terms=terms, plan=None, candidates=matched.image_ids)

        terms["cost"] = self.update_cost(matched)
        candidates = torch.cat([mismatched.image_ids, queue])
        images = torch.cat([mismatched.images, batches.images(queue.cpu().numpy())]) if len(queue) else mismatched.images
        S = self.model(images, mismatched.captions, mismatched.lengths)
        plan = self.rematch(S, candidates, mismatched.image_ids)
        terms["rematched"] = objectives.symmetric_kl(S, plan.matrix, self.config.tau)
        loss = terms["matched"] + self.config.rematch_weight * terms["rematched"]
        return StepResult(loss=loss, terms=terms, plan=plan, candidates=candidates)

    def update_cost(self, matched: Batch) -> Tensor:
        """Plant a few matched images among the rows and lower what the cost charges for their own captions."""
        most = max(1, int(self.config.planted * len(matched)))
        count = int(torch.randint(1, most + 1, ()))
        own = torch.randperm(len(matched))[:count].to(matched.images.device)
        planted = self.model.similarity(matched.images[own], matched.captions, matched.lengths)
        loss = known_match_loss(self.cost, planted, own)
        self.cost_optimiser.zero_grad()
        loss.backward()
        self.cost_optimiser.step()
        return loss.detach()

    @torch.no_grad()
    def rematch(self, S: Tensor, candidates: Tensor, given: Tensor) -> TransportPlan:
        """The plan from candidate images (rows) to captions (columns) that leaves no caption with its given image."""
        if self.config.forbid == "image":
            forbidden = candidates[:, None] == given[None, :]
        else:
            forbidden = torch.eye(*S.shape, dtype=torch.bool, device=S.device)
        return partial_transport(
            self.cost(S.detach()).clamp(min=COST_FLOOR),
            mass=self.config.mass,
            reg=self.config.reg,
            forbidden=forbidden,
            tolerance=self.config.tolerance,
            max_iterations=self.config.max_iterations,
        )
