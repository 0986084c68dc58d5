import pytest
import torch


@pytest.fixture(scope="session")
def small(script):
    """The module `small_run.py`."""
    return script("tests/training/small_run.py")


@pytest.fixture(scope="session")
def finished(small, tmp_path_factory):
    """An uninterrupted run of l2rm on the small set; no test may change it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    return small.train(small.small_train(), small.small_dev(), small.small_config(), out, progress=False)
