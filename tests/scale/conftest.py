"""Shards of embeddings with planted mismatches, and one small Ray for all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2rm.scale.engine import Engine, InProcess, OnRay, opened_engine

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


def write_shards(folder: Path, *, pairs: int = 2500, dim: int = 16, per_shard: int = 700, captions: int = 1) -> Path:
    """A fifth of the captions went astray; `captions` rows share an image."""
    generator = np.random.default_rng(0)
    images = np.repeat(generator.normal(size=(pairs // captions, dim)), captions, axis=0).astype(np.float32)
    texts = (images + 0.35 * generator.normal(size=images.shape)).astype(np.float32)
    astray = np.sort(generator.choice(pairs, pairs // 5, replace=False))
    source = np.arange(pairs)
    source[astray] = np.roll(astray, 1)
    texts = texts[source]
    names = np.array([f"{row // captions}.jpg" for row in range(pairs)])
    columns = {
        "image_embedding": pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), dim),
        "caption_embedding": pa.FixedSizeListArray.from_arrays(pa.array(texts.ravel()), dim),
        "image": pa.array(names),
        "caption": pa.array([f"words of {row}" for row in source]),
        "true_image": pa.array(names[source]),
    }
    table = pa.table(columns)
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, pairs, per_shard)):
        pq.write_table(table.slice(start, per_shard), folder / f"{number:03d}.parquet", row_group_size=256)
    return folder


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Path]:
    return write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture
def here() -> Engine:
    return InProcess()


@pytest.fixture(scope="session")
def on_ray() -> Iterator[OnRay]:
    pytest.importorskip("ray", reason="the extra ray is not installed")
    with opened_engine("ray", processes=1) as engine:
        assert isinstance(engine, OnRay)
        yield engine
