"""`l2rm`: the suspects are rematched (Han et al., CVPR 2024)."""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from l2rm.data.batches import Batch, Batches
from l2rm.rematching.cost import LinearCost
from l2rm.rematching.equivariant import EquivariantCost
from l2rm.rematching.memory import Memory
from l2rm.rematching.step import RematchingStep
from l2rm.rematching.transport import TransportPlan
from l2rm.similarity.model import RetrievalModel
from l2rm.training.lesson import Lesson
from l2rm.training.methods.divided import Divided
from l2rm.training.methods.method import MISMATCHED, ORDER, Step, Taught
from l2rm.training.settings import TrainConfig


class Rematch(Divided):
    """After the warm-up, beside every batch of matched pairs one of suspects, which a transport plan rematches."""

    def __init__(self, model: RetrievalModel, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        settings = config.rematching
        equivariant = settings.cost == "equivariant"
        cost = EquivariantCost(settings.tau) if equivariant else LinearCost(config.batch_size)
        self.cost: nn.Module = cost.to(batches.device)
        self.cost_lr = settings.equivariant_lr if equivariant else settings.cost_lr
        self.cost_optimiser = torch.optim.Adam(self.cost.parameters(), lr=self.cost_lr)
        self.step = RematchingStep(model, self.cost, self.cost_optimiser, config.rematching)
        pairs = batches.pairs
        queue = np.random.default_rng((config.seed, len(pairs))).integers(pairs.n_images, size=self._queue_extra)
        self.state |= {
            "queue": torch.from_numpy(queue).to(batches.device),
            "rematch_image": torch.full((len(pairs),), -1, device=batches.device),
            "rematch_share": torch.zeros(len(pairs), device=batches.device),
            "memory_ids": torch.zeros(0, dtype=torch.long, device=batches.device),
            "memory": torch.zeros(0, config.model.embed_dim, device=batches.device),
        }

    @property
    def later_stage(self) -> str:
        return "rematching"

    @property
    def _queue_extra(self) -> int:
        return max(0, self.config.rematching.queue_size - self.config.batch_size)

    def set_learning_rate(self, factor: float) -> None:
        for group in self.cost_optimiser.param_groups:
            group["lr"] = self.cost_lr * factor

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        if self.stage(epoch) == "warm-up":
            return self.full_pass(self.everything(), epoch)
        size = self.config.batch_size
        matched, mismatched = self.divided()
        if self.config.rematching.steps == "matched":
            batches = matched.batches(size, seed=self.seed(epoch, ORDER))
        else:
            batches = matched.steps(size, self.steps_of_all(epoch), seed=self.seed(epoch, ORDER))
        suspects: Iterator[Lesson | None] = repeat(None)
        if len(np.unique(self.batches.pairs.image_of[mismatched])) > 1:  # else there is nothing to exchange
            suspects = Lesson(rows=mismatched).cycled(size, seed=self.seed(epoch, MISMATCHED))
        return zip(batches, suspects, strict=False), len(batches)

    def learn(self, epoch: int, *batches: Batch | None) -> Taught:
        if self.stage(epoch) == "warm-up":
            return super().learn(epoch, *batches)
        matched, suspects = batches
        assert matched is not None
        memory = None
        if self.config.rematching.memory:
            memory = Memory(ids=self.state["memory_ids"], vectors=self.state["memory"])
        result = self.step(self.batches, matched, suspects, self.state["queue"], matched.weights, memory)
        if result.memory is not None:
            self.state |= {"memory_ids": result.memory.ids, "memory": result.memory.vectors}
        facts: dict[str, float | Tensor] = {}
        if suspects is not None:
            facts["skipped"] = float(result.plan is None)
            self.state["queue"] = torch.cat([suspects.image_ids, self.state["queue"]])[: self._queue_extra]
        if suspects is not None and result.plan is not None and result.candidates is not None:
            facts |= self._remember(suspects.rows, result.candidates, result.plan)
        return Taught(loss=result.loss, terms=result.terms, facts=facts)

    def _remember(self, rows: NDArray[np.int64], candidates: Tensor, plan: TransportPlan) -> dict[str, float | Tensor]:
        """Keep for each rematched caption the image that most of it went to, and the share that did."""
        share, row = plan.matrix.max(0)
        index = torch.from_numpy(rows).to(share.device)
        self.state["rematch_image"][index] = torch.where(share > 0, candidates[row], -1)
        self.state["rematch_share"][index] = (share * plan.matrix.shape[1]).float()
        return {
            "mass": plan.mass,
            "unconverged": float(not plan.converged),
            "marginal_error": plan.marginal_error,
            "iterations": plan.iterations,
        }

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"cost": self.cost, "cost_optimiser": self.cost_optimiser}

    def restore(self, state: dict[str, Any]) -> None:
        state = {**self.state, **state}  # what was saved before there was a memory has none
        for name in ("queue", "rematch_image", "rematch_share", "memory_ids", "memory"):
            state[name] = state[name].to(self.batches.device)
        super().restore(state)

    def rematches(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self.state["rematch_image"].cpu().numpy(), self.state["rematch_share"].cpu().numpy()
