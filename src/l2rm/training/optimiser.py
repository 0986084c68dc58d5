"""What takes the steps: Adam on the weights that learn, and how its learning rate goes."""

import torch
from torch import nn

from l2rm.training.settings import TrainConfig


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam; AdamW where there is a `weight_decay`, which spares biases and norms. Frozen weights are left alone.

    (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.)
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not config.weight_decay:
        return torch.optim.Adam(weights, lr=config.lr, fused=True)
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, config: TrainConfig, epoch: int, taken: int) -> None:
    """That of the next step, in an epoch (from 0), when so many were `taken` since the weights were fresh."""
    rise = min(1.0, (taken + 1) / config.lr_rise_steps) if config.lr_rise_steps else 1.0
    for group in optimiser.param_groups:
        group["lr"] = config.lr * config.learning_rate_factor(epoch) * rise
