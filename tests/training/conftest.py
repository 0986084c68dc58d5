import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("small_run.py")


@pytest.fixture(scope="session")
def small():
    """The module `small_run.py`."""
    specification = importlib.util.spec_from_file_location("small_run", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def finished(small, tmp_path_factory):
    """An uninterrupted run of l2rm on the small set; no test may change it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("finished") / "run"
    return small.train(small.small_train(), small.small_dev(), small.small_config(), out, progress=False)
