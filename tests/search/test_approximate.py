"""FAISS where there are many items: its recall is what it says, and changes are seen at once."""

from pathlib import Path

import numpy as np
import pytest

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.search.approximate import HELD_QUERIES
from l2rm.search.index import Index
from l2rm.search.nearest import overlap

pytest.importorskip("faiss", reason="the extra faiss brings it")


def clustered(count: int, dim: int = 16, *, first: int = 0) -> Pairs:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, dim))
    generator = np.random.default_rng(first + 1)
    images = centres[generator.integers(40, size=count)] + 0.4 * generator.normal(size=(count, dim))
    captions = images + 0.3 * generator.normal(size=images.shape)
    return Pairs(
        images=tuple(f"{first + number}.jpg" for number in range(count)),
        image_of=np.arange(count),
        captions=tuple(f"caption {number}" for number in range(count)),
        features=Features(array=images.astype(np.float32)),
        caption_features=Features(array=captions.astype(np.float32)),
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    out = tmp_path_factory.mktemp("many") / "index"
    return Index.build(clustered(3000), out=out, approximate_above=1000, recall=0.9)


def test_the_recall_told_is_the_recall_found(index: Index) -> None:
    facts = index.manifest.approximate["image"]
    assert facts["items"] == 3000
    assert 1 <= facts["probes"] < facts["lists"]
    drawn = np.random.default_rng(0).permutation(index.items["caption"].ids)[:HELD_QUERIES]
    queries = index.items["caption"].vectors(drawn)[1::2]
    _, found = index.items["image"].search(queries, 10)
    _, truth = index.items["image"].search(queries, 10, exact=True)
    assert overlap(found, truth) == pytest.approx(facts["recall"], abs=1e-4)
    assert facts["recall"] > 0.85
    unit = [index.items[kind].vectors(index.items[kind].ids) for kind in ("image", "caption")]
    np.testing.assert_array_equal(truth[:5], np.argsort(-(queries[:5] @ unit[0].T), axis=1, kind="stable")[:, :10])


def test_changes_are_seen(index: Index, tmp_path: Path) -> None:
    best = index.search_item("caption", 5, k=3)
    index.remove(images=[best[0].id])
    assert [hit.id for hit in index.search_item("caption", 9, k=2000)].count(best[0].id) == 0
    index.add(clustered(50, first=5000))
    there = index.items["image"].vector(3007)
    assert index.search_vector(there, k=1)[0].id == 3007
    opened = Index(index.folder)
    assert opened.search_vector(there, k=1)[0].name == "5007.jpg"
    opened.compact(recall=0.9)
    assert opened.manifest.approximate["image"]["items"] == 3049
    assert opened.search_vector(there, k=1)[0].id == 3007


def test_never_where_that_is_asked_for(tmp_path: Path) -> None:
    index = Index.build(clustered(300), out=tmp_path / "index", approximate_above=None)
    assert not index.manifest.approximate
    assert not list(index.folder.glob("*.faiss"))
