"""The configuration of a training run. Imports no torch, so that the command line answers at once."""

from dataclasses import dataclass, field
from typing import Literal

from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.settings import ModelConfig
from l2rm.training.methods.settings import CrclConfig, In2rConfig, NcrConfig

Method = Literal["l2rm", "plain", "oracle", "warmup", "division", "ncr", "crcl", "in2r"]
Objective = Literal["auto", "mean_violation", "infonce", "symmetric_cross_entropy", "two_stage"]

CANDIDATES: dict[str, tuple[Objective, ...]] = {
    "plain": ("mean_violation", "infonce", "symmetric_cross_entropy"),
    "oracle": ("mean_violation", "infonce", "symmetric_cross_entropy", "two_stage"),
}
"""What `objective="auto"` tries; the best on dev is kept."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; what it is made of and how it rematches are in `model` and `rematching`."""

    method: Method = "l2rm"
    """l2rm: warm-up, then rematching. plain: every pair taken as matched. oracle: truly matched pairs only, as many
    gradient steps. warmup: the warm-up objective all the way. division: as l2rm, but suspects are dropped. ncr: two
    networks divide for each other and soften margins. crcl: active complementary loss, self-refined over rounds.
    in2r: two networks, suspects learn from the trusted neighbours of their image and of their caption."""
    objective: Objective = "auto"
    """What plain and oracle learn by. auto: try each in turn and keep the best on dev. two_stage: symmetric cross
    entropy for the warm-up epochs, then the hardest triplet."""
    warmup_epochs: int = 5
    """Passes over all pairs before the first sample division."""
    rematching_epochs: int = 35
    """Epochs after the warm-up; each method spends them in its own way."""
    batch_size: int = 128
    """Pairs a batch."""
    lr: float = 2e-4
    """Learning rate of the model (Adam)."""
    lr_rise_steps: int = 0
    """Steps in which the learning rate rises to lr where training begins; for weights that were learned before."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the model's matrices (AdamW); 0: Adam, as published."""
    decay_every: int = 15
    """Learning rates fall to a tenth every so many epochs after the warm-up."""
    clip: float = 2.0
    """Gradients are clipped to this global norm."""
    seed: int = 0
    """Rules initial weights, order of batches, dropout, and the split of data that come without one."""
    device: str = "auto"
    """auto: a CUDA GPU, else Apple's, else the CPU; or a torch device such as cuda:1."""
    save_seconds: float = 60.0
    """A run is saved for --resume at the end of every epoch, and within one after this many seconds."""
    model: ModelConfig = field(default_factory=ModelConfig)
    rematching: RematchingConfig = field(default_factory=RematchingConfig)
    ncr: NcrConfig = field(default_factory=NcrConfig)
    crcl: CrclConfig = field(default_factory=CrclConfig)
    in2r: In2rConfig = field(default_factory=In2rConfig)

    @property
    def epochs(self) -> int:
        """All epochs of the run."""
        return self.warmup_epochs + self.rematching_epochs

    @property
    def networks(self) -> int:
        """Networks that the method trains; they answer as one, by the mean of their scores."""
        return 2 if self.method in ("ncr", "in2r") else 1

    def learning_rate_factor(self, epoch: int) -> float:
        """What the learning rates are multiplied with in `epoch` (from 0)."""
        return float(0.1 ** (max(0, epoch - self.warmup_epochs) // self.decay_every))
