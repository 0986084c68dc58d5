"""Pictures of one colour each, their names, and models of random weights that read both."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.encoders.image import ENCODERS
from l2rm.search.index import Index
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.settings import DataShape, ModelConfig

COUNT = 60
WORDS = ("red", "blue", "dog", "cat", "kite", "sea", "tree", "car", "sun", "moon")


class Colours:
    """An encoder in no time: the colour in the middle of each quarter of a picture."""

    name: ClassVar[str] = "colours"
    version: ClassVar[int] = 1
    size: ClassVar[int] = 16
    dim: ClassVar[int] = 3
    max_grid: ClassVar[int] = 2

    def __init__(self, *, grid: int, device: torch.device | str = "cpu") -> None:
        self.grid = grid

    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        cells = pixels[:, 4::8, 4::8].astype(np.float32) / 255
        return torch.from_numpy(cells.reshape(len(pixels), 4, 3))


@pytest.fixture(scope="session", autouse=True)
def colours() -> Iterator[None]:
    ENCODERS["colours"] = Colours
    yield
    del ENCODERS["colours"]


def draw(folder: Path, count: int = COUNT, *, first: int = 0) -> Pairs:
    """Pictures of four random colours, two captions each of random words, and the features that `Colours` makes."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(first)
    cells = generator.integers(256, size=(count, 2, 2, 3), dtype=np.uint8)
    names = tuple(f"picture {first + number}.png" for number in range(count))
    for name, quarter in zip(names, cells, strict=True):
        Image.fromarray(quarter).resize((32, 32), Image.Resampling.NEAREST).save(folder / name)
    features = (cells.reshape(count, 4, 3) / np.float32(255)).astype(np.float16)
    captions = tuple(" ".join(generator.choice(WORDS, size=3)) + f" {first + row // 2}" for row in range(2 * count))
    return Pairs(
        images=names,
        image_of=np.arange(count).repeat(2),
        captions=captions,
        features=Features(array=features),
        image_root=folder,
        source="drawn",
    )


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return draw(tmp_path_factory.mktemp("drawn"))


def random_model(name: str) -> RetrievalModel:
    kind, networks = name.removeprefix("two "), 2 if name.startswith("two ") else 1
    config = ModelConfig(similarity=kind, embed_dim=16, word_dim=8, similarity_dim=8, min_word_count=1)  # type: ignore[arg-type]
    vocabulary = Vocabulary.build([" ".join(WORDS)], min_count=1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_model(
            config, DataShape(image_dim=3, regions=4, vocabulary_size=len(vocabulary)), networks=networks
        )
    model.vocabulary = vocabulary
    return model.eval()


@pytest.fixture(scope="session", params=["cosine", "sgr", "saf", "two sgr"])
def model(request: pytest.FixtureRequest) -> RetrievalModel:
    return random_model(request.param)


@pytest.fixture(scope="session")
def cosine() -> RetrievalModel:
    return random_model("cosine")


ENCODER = {"name": "colours", "grid": 2}


@pytest.fixture(scope="session")
def served_index(drawn: Pairs, cosine: RetrievalModel, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index that tests leave as it is."""
    return Index.build(drawn, cosine, out=tmp_path_factory.mktemp("index") / "index", encoder=ENCODER)
