"""`in2r`: suspects learn from the trusted neighbours of their own kind (Liu et al., IN2R, ICML 2026)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l2rm.data.batches import Batch, Batches
from l2rm.encoders.towers import l2_normalise
from l2rm.errors import InputError
from l2rm.rematching.objectives import max_violation, symmetric_cross_entropy
from l2rm.similarity.model import RetrievalModel
from l2rm.training.methods.method import Taught
from l2rm.training.methods.ncr import Ncr
from l2rm.training.processes import several
from l2rm.training.settings import TrainConfig

Vectors = tuple[Tensor, Tensor]
"""Of images and of captions, each (n, D)."""


class In2r(Ncr):
    """Intra-modal neighbours. Two dual encoders, of the same weights at first, divide for each other as those of `ncr`.

    - *consistency*: every pair is encoded twice, with dropout of the image's features, too. Each image is to find
      its other view among those of the batch, and so is each caption;
    - *memory*: the vectors of the pairs that a network was last taught and that the other trusts more than it trusts
      its matched pairs on average;
    - *rectifying*: a suspect image finds its nearest images in the other network's memory; a refiner, attention among
      the captions of these, makes one vector, which the image learns from in the place of its caption; and the other
      way round.

    Left out of the published code: vectors less the mean of their batch, as models here answer without a batch. Other
    captions of the same image are no negatives of its second view.
    """

    def __init__(self, model: RetrievalModel, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        if several():  # vectors, which it learns from, would be of one process's share of a batch
            raise InputError("method: in2r trains in one process; leave torchrun out, or take another method")
        first, second = model.members
        second.load_state_dict(first.state_dict())  # so that the vectors of one mean something to the other
        self.to_captions, self.to_images = (
            nn.ModuleList(Refiner(model.dim) for _ in model.members).to(batches.device) for _ in range(2)
        )
        self.refiners = nn.ModuleList([self.to_captions, self.to_images])
        self.refiner_optimiser = torch.optim.Adam(self.refiners.parameters(), lr=config.lr)
        self.state |= {
            "memory": torch.zeros(2, 2, config.in2r.memory, model.dim, device=batches.device),
            "remembered": [0, 0],
        }

    def objective(self, epoch: int) -> str:
        return "symmetric_cross_entropy" if self.stage(epoch) == "warm-up" else "max_violation"

    def set_learning_rate(self, factor: float) -> None:
        for group in self.refiner_optimiser.param_groups:
            group["lr"] = self.config.lr * factor

    def learn(self, epoch: int, *batches: Batch | None) -> Taught:
        members, matched, suspects = (0, 1), batches[:2], batches[2:]
        trusted = [self._from_matched_pairs(epoch, *one) for one in zip(members, matched, strict=True)]
        terms = {"matched": torch.stack(trusted).mean()}
        if self.stage(epoch) == "warm-up":
            return Taught(loss=torch.stack(trusted).sum(), terms={"loss": terms["matched"]})
        doubted = [
            self._from_neighbours(member, suspect)
            for member, suspect in zip(members, suspects, strict=True)
            if suspect is not None and self.state["remembered"][1 - member] >= self.config.in2r.neighbours
        ]
        if doubted:
            terms["rectified"] = torch.stack(doubted).mean()
        return Taught(loss=torch.stack(trusted + doubted).sum(), terms=terms)

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"refiners": self.refiners, "refiner_optimiser": self.refiner_optimiser}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state | {"memory": state["memory"].to(self.batches.device)})

    def _learns_from_suspects(self, epoch: int) -> bool:
        return True

    def _encode(self, member: int, batch: Batch) -> Vectors:
        """Unit vectors; another view each time, by dropout of features, and of words by their tower."""
        model, dropout = self.model.members[member], self.config.model.dropout
        captions = F.dropout(batch.captions, dropout) if batch.captions.is_floating_point() else batch.captions
        images = model.encode_images(F.dropout(batch.images, dropout))
        return images.whole, model.encode_captions(captions, batch.lengths).whole

    def _from_matched_pairs(self, epoch: int, member: int, batch: Batch | None) -> Tensor:
        assert batch is not None
        images, captions = self._encode(member, batch)
        other_images, other_captions = self._encode(member, batch)
        same = batch.image_ids[:, None] == batch.image_ids[None, :]
        same.fill_diagonal_(False)
        between = images @ captions.T
        within = (images @ other_images.T).masked_fill(same, -1.0), captions @ other_captions.T
        if self.stage(epoch) == "warm-up":
            tau = self.config.rematching.tau
            return torch.stack([symmetric_cross_entropy(S, tau=tau) for S in (between, *within)]).sum()
        self._remember(member, batch, (images, captions))
        margin, intra = self.config.rematching.margin, self.config.in2r.margin
        return max_violation(between, margin) + sum(max_violation(S, intra) for S in within)

    @torch.no_grad()
    def _remember(self, member: int, batch: Batch, vectors: Vectors) -> None:
        """Put the vectors of the pairs that are trusted most into the network's memory, over the oldest ones."""
        assert batch.weights is not None
        told = self.state["match_probability"][1 - member]
        usual = told[told > self.config.rematching.matched_above].mean()
        chosen = (batch.weights > usual.to(batch.weights)).nonzero().squeeze(1)[-self.config.in2r.memory :]
        memory, start = self.state["memory"][member], self.state["remembered"][member]
        places = torch.arange(start, start + len(chosen), device=memory.device) % memory.shape[1]
        for part, of in zip(memory, vectors, strict=True):
            part[places] = of[chosen].to(part)
        self.state["remembered"][member] = start + len(chosen)

    def _from_neighbours(self, member: int, batch: Batch) -> Tensor:
        """What suspects learn of the other network's memory: their images first, then their captions."""
        count = min(self.state["remembered"][1 - member], self.config.in2r.memory)
        images, captions = self.state["memory"][1 - member][:, :count]
        image, caption = self._encode(member, batch)
        losses = [
            self._rectified(image, images, captions, self.to_captions[member]),
            self._rectified(caption, captions, images, self.to_images[member]),
        ]
        return self.config.in2r.weight * torch.stack(losses).sum()

    def _rectified(self, asking: Tensor, alike: Tensor, partners: Tensor, refiner: nn.Module) -> Tensor:
        """The loss of (B, D) vectors against what the partners of their nearest in memory make; the refiner learns."""
        nearest = (asking.detach() @ alike.T).topk(self.config.in2r.neighbours, dim=1).indices
        prototypes = refiner(partners[nearest])
        tau = self.config.rematching.tau
        self.refiner_optimiser.zero_grad()
        symmetric_cross_entropy(asking.detach() @ prototypes.T, tau=tau).backward()
        self.refiner_optimiser.step()
        return symmetric_cross_entropy(asking @ prototypes.detach().T, tau=tau)


class Refiner(nn.Module):
    """One unit vector for the few (B, k, D) that are near each other: attention among them, then their mean.

    Example:
        >>> Refiner(8)(torch.rand(3, 5, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(self, dim: int, *, heads: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads if dim % heads == 0 else 1, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, k, D) -> (B, D)."""
        heard, _ = self.attention(vectors, vectors, vectors, need_weights=False)
        return l2_normalise(self.norm(vectors + self.dropout(heard)).mean(1))
