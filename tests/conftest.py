"""What tests share: scripts as modules; for the command line, tiny data and a run trained on them once."""

import importlib.util
import signal
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a busy machine fails nothing
settings.load_profile("patient")
settings.register_profile("fuzz", max_examples=5000, deadline=None, print_blob=True)  # `make fuzz`

if threading.current_thread() is threading.main_thread():  # a shell's background jobs are started deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = ("red", "blue", "dog", "cat", "kite", "sea", "tree", "car", "sun", "moon")
TINY = [
    "--quiet",
    "--batch-size=16",
    "--warmup-epochs=1",
    "--rematching-epochs=1",
    "--lr=0.002",
    "--model.embed-dim=16",
    "--model.word-dim=8",
    "--model.similarity-dim=8",
    "--model.min-word-count=1",
    "--model.dropout=0",
]


def write_precomp(folder: Path, *, images: int = 40, captions: int = 2, regions: int = 3, dim: int = 16) -> Path:
    """A precomp folder whose regions are words, and whose captions name them."""
    generator = np.random.default_rng(0)
    meaning = generator.normal(size=(len(WORDS), dim))
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", images), ("dev", 10), ("test", 10)):
        words = generator.integers(len(WORDS), size=(count, regions))
        features = meaning[words] + 0.1 * generator.normal(size=(count, regions, dim))
        np.save(folder / f"{split}_ims.npy", features.astype(np.float32))
        lines = [" ".join(WORDS[word] for word in row) for row in words for _ in range(captions)]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    return folder


@cache
def load_script(path: str) -> ModuleType:
    """The module of a file that belongs to no package, by its path in the repository; it may import its neighbours."""
    file = Path(__file__).parents[1] / path
    specification = importlib.util.spec_from_file_location(file.stem, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(file.parent))
        specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """`script("benchmarks/golden_curves.py")`: the module of that file, the same one for all tests."""
    return load_script


@pytest.fixture
def one_thread(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, which is quickest for tiny models, and a cache of one's own."""
    import torch

    monkeypatch.setenv("L2RM_CACHE", str(tmp_path_factory.mktemp("cache")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_clip() -> ModuleType:
    """`tests/tiny_clip.py`."""
    return load_script("tests/tiny_clip.py")


@pytest.fixture(scope="session")
def precomp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_precomp(tmp_path_factory.mktemp("data") / "precomp")


@pytest.fixture
def make_precomp() -> Callable[..., Path]:
    return write_precomp


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a model that trains in a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def index(precomp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from l2rm.cli import main

    out = tmp_path_factory.mktemp("index") / "image_40.npy"
    assert main(["corrupt", str(precomp), "--ratio", "0.4", "--level", "image", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def trained(precomp: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must leave it as it is."""
    from l2rm.cli import main

    patch = pytest.MonkeyPatch()
    patch.setenv("L2RM_CACHE", str(tmp_path_factory.mktemp("cache")))
    out = tmp_path_factory.mktemp("runs") / "sgr"
    assert main(["train", str(precomp), "--out", str(out), "--mismatch", str(index), *TINY]) == 0
    patch.undo()
    return out
