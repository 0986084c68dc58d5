"""Low-rank adapters: what is learned of a large network is small matrices beside its frozen ones, by peft."""

import copy
from typing import Any

from torch import nn

from l2rm.errors import InputError


def add_adapters(model: nn.Module, *, rank: int, alpha: float) -> None:
    """Freeze a network and put an adapter beside every linear layer: `W x + (alpha / rank) B A x`, B zero at first.

    So the network says at first what it said before. A (rank, in) is drawn by torch's global generator; A and B alone
    have gradient. (Hu et al., "LoRA", ICLR 2022; beside all linear layers, as Dettmers et al., "QLoRA", 2023, advise.)

    Raises:
        InputError: peft is not installed.
    """
    peft = _import_peft()
    targets = _linear_layers(model)
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model)
    for name, weight in model.named_parameters():
        weight.requires_grad_("lora_" in name)


def merged(model: nn.Module) -> nn.Module:
    """A copy in which adapters are added into the weights that they stand beside, so that none are left."""
    whole = copy.deepcopy(model)
    for name, layer in list(whole.named_modules()):
        if hasattr(layer, "get_base_layer"):
            adapted: Any = layer
            adapted.merge()
            parent, _, own = name.rpartition(".")
            setattr(whole.get_submodule(parent), own, adapted.get_base_layer())
    return whole


def _linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers; torch's own attention reads the weights of its layers without calling them."""
    uncalled = {
        id(part)
        for attention in model.modules()
        if isinstance(attention, nn.MultiheadAttention)
        for part in attention.modules()
    }
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and id(part) not in uncalled]


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            f"model.finetune: peft cannot be imported ({error}); install the extra: pip install 'l2rm[finetune]', or "
            "give --model.finetune full"
        ) from error
    return peft
