"""An index gives what the model gives, whatever was added and removed since."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import l2rm
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.search.encoding import fingerprint
from l2rm.search.index import Index
from l2rm.search.queries import Query
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.scoring import ModelScores

from .conftest import ENCODER, draw, random_model


@pytest.fixture
def index(drawn: Pairs, model: RetrievalModel, tmp_path: Path) -> Index:
    return Index.build(drawn, model, out=tmp_path / "index", encoder=ENCODER)


def scores_of(model: RetrievalModel, pairs: Pairs) -> np.ndarray:
    return ModelScores(model, pairs).block(np.arange(pairs.n_images), np.arange(len(pairs))).numpy()


def test_all_four_ways(index: Index, model: RetrievalModel, drawn: Pairs) -> None:
    S = scores_of(model, drawn)
    tolerance = 1e-5 if model.config.similarity == "cosine" else 2e-3  # regions are kept as float16
    for caption in (0, 31, 118):
        hits = index.search_text(drawn.captions[caption], k=drawn.n_images)
        assert sorted(hit.id for hit in hits) == list(range(drawn.n_images))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        np.testing.assert_allclose([hit.score for hit in hits], S[[hit.id for hit in hits], caption], atol=tolerance)
        same = index.search_text(drawn.captions[caption], k=3, target="caption")
        assert same[0].captions == (drawn.captions[caption],) or same[0].score == pytest.approx(same[1].score, abs=1e-5)
        assert same[0].score == pytest.approx(1, abs=1e-5)
    for image in (0, 17, 59):
        hits = index.search_image(drawn.image_path(image), k=len(drawn))  # type: ignore[arg-type]
        np.testing.assert_allclose([hit.score for hit in hits], S[image, [hit.id for hit in hits]], atol=tolerance)
        assert all(hit.image == drawn.image_of[hit.id] for hit in hits)
        again = index.search_image(drawn.image_path(image).read_bytes(), k=2, target="image")  # type: ignore[union-attr]
        assert (again[0].name, again[0].score) == (drawn.images[image], pytest.approx(1, abs=1e-5))
        like = index.search_item("image", image, k=drawn.n_images)
        assert image not in [hit.id for hit in like]
        assert len(like) == drawn.n_images - 1
        captions = index.search_item("image", image, k=5, target="caption")
        np.testing.assert_allclose(
            [hit.score for hit in captions], S[image, [hit.id for hit in captions]], atol=tolerance
        )


def test_a_shortlist_is_scored_by_the_model(drawn: Pairs, tmp_path: Path) -> None:
    model = random_model("sgr")
    index = Index.build(drawn, model, out=tmp_path / "index")
    S = scores_of(model, drawn)
    (hits,) = index.search([Query(text=drawn.captions[4])], k=3, shortlist=10)
    np.testing.assert_allclose([hit.score for hit in hits], S[[hit.id for hit in hits], 4], atol=2e-3)
    (best,) = index.search([Query(text=drawn.captions[4])], k=3, shortlist=60)
    assert best[0].id == S[:, 4].argmax() or best[0].score == pytest.approx(S[:, 4].max(), abs=2e-3)


def test_batches_are_single_answers(index: Index, drawn: Pairs) -> None:
    queries = [Query(text="red dog"), Query(image=3), Query(text="moon"), Query(caption=7)]
    together = index.search(queries, k=4)
    for query, hits in zip(queries, together, strict=True):
        alone = index.search([query], k=4)[0]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone], atol=1e-5)


def test_add_remove_compact_is_a_rebuild(index: Index, model: RetrievalModel, drawn: Pairs, tmp_path: Path) -> None:
    more = draw(tmp_path / "more", 9, first=100)
    assert index.add(more) == 0
    assert index.remove(images=["picture 3.png", 5], captions=[0]) == (2, 5)
    with pytest.raises(InputError, match=r"picture 3\.png: no image"):
        index.remove(images=["picture 3.png"])
    assert 3 not in index.items["image"]

    kept = drawn.take([row for row in range(len(drawn)) if row // 2 not in (3, 5) and row != 0])
    wanted = {
        kept.images[image]: score
        for image, score in enumerate(scores_of(model, kept)[:, kept.captions.index(drawn.captions[20])])
    }
    for state in ("changed", "opened again", "compact"):
        if state == "opened again":
            index = Index(index.folder)
        elif state == "compact":
            index.compact()
            assert len(list((index.folder / "segments").iterdir())) == 1
            assert not list(index.folder.glob("removed-*"))
        assert (len(index.items["image"]), len(index.items["caption"])) == (67, 133)
        found = {hit.name: hit.score for hit in index.search_text(drawn.captions[20], k=100)}
        assert found.keys() == {*kept.images, *more.images}
        for name, score in wanted.items():
            assert found[name] == pytest.approx(score, abs=2e-3)
        hit = index.search_image(more.image_path(2), target="image", k=1)[0]  # type: ignore[arg-type]
        assert (hit.name, hit.id, hit.captions) == (more.images[2], 62, more.captions[4:6])


def test_adding_what_is_there_replaces_it(index: Index, drawn: Pairs) -> None:
    again = drawn.take([8, 9, 10])
    assert index.add(again) == 2
    assert (len(index.items["image"]), len(index.items["caption"])) == (60, 119)
    hits = [hit for hit in index.search_text("red", k=60) if hit.name == "picture 5.png"]
    assert [hit.captions for hit in hits] == [(drawn.captions[10],)]
    assert hits[0].id == 61


def test_another_model_is_refused(index: Index, drawn: Pairs, model: RetrievalModel, tmp_path: Path) -> None:
    assert Index(index.folder, model=model).search_text("red", k=1) == index.search_text("red", k=1)
    other = random_model(("two " if len(model.members) == 2 else "") + model.config.similarity)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    assert (
        fingerprint(other)
        != fingerprint(model)
        == fingerprint(random_model(("two " if len(model.members) == 2 else "") + model.config.similarity))
    )
    with pytest.raises(InputError, match="was made by model") as refused:
        Index(index.folder, model=other)
    assert "\n" not in str(refused.value)
    shutil.copytree(index.folder, tmp_path / "tampered")
    l2rm_model = Index.build(drawn, other, out=tmp_path / "other")
    shutil.copy(l2rm_model.folder / "model/model.safetensors", tmp_path / "tampered/model/model.safetensors")
    with pytest.raises(InputError, match="was made by model"):
        Index(tmp_path / "tampered").search_text("red")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_without_a_model(dtype: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images, captions = generator.normal(size=(30, 8)), generator.normal(size=(60, 8))
    pairs = Pairs(
        images=tuple(map(str, range(30))),
        image_of=np.arange(30).repeat(2),
        captions=tuple(map(str, range(60))),
        features=Features(array=images),
        caption_features=Features(array=captions),
    )
    index = Index.build(pairs, out=tmp_path / "index", dtype=dtype)
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (images, captions)]
    hits = index.search_vector(unit[1][7], k=30)
    wanted = np.sort(unit[0] @ unit[1][7])[::-1]
    np.testing.assert_allclose([hit.score for hit in hits], wanted, atol=1e-5 if dtype == "float32" else 2e-3)
    assert index.search_item("caption", 7, k=1)[0].id == hits[0].id
    with pytest.raises(InputError, match="without a model"):
        index.search_text("red")
    with pytest.raises(InputError, match="not 8 finite numbers"):
        index.search_vector(np.full(8, np.nan))
    with pytest.raises(InputError, match="not 8 finite numbers"):
        index.search_vector(np.zeros(7))


@pytest.mark.parametrize("broken", ["images", "captions"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(broken: str, value: float, tmp_path: Path) -> None:
    for name in ("images", "captions"):
        vectors = np.ones((4, 8), dtype=np.float32)
        vectors[2, 3] = value if name == broken else 1
        np.save(tmp_path / f"{name}.npy", vectors)
    pairs = Pairs.read(f"{tmp_path}/images.npy,{tmp_path}/captions.npy")
    with pytest.raises(InputError, match=rf"{broken}\.npy: row 2 \(from 0\) has a NaN or infinite value"):
        Index.build(pairs, out=tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(), "nothing is given"),
        (Query(text="a", image=1), "text, image is given"),
        (Query(image=60), "image:60: no such item"),
        (Query(caption=-1), "caption:-1: no such item"),
        (Query(picture=b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "does not decode"),
    ],
)
def test_queries_that_make_no_sense(query: Query, message: str, served_index: Index) -> None:
    with pytest.raises(InputError, match=message):
        served_index.search([query])
    with pytest.raises(InputError, match="ask for at least 1"):
        served_index.search_text("red", k=0)


def test_strange_words(served_index: Index) -> None:
    for text in ("", " ", "zzz unknown", "\x00", "🪁" * 3000, "a " * 10_000):
        assert len(served_index.search_text(text, k=2)) == 2


def test_what_is_no_index(tmp_path: Path, drawn: Pairs, cosine: RetrievalModel) -> None:
    with pytest.raises(InputError, match="no index"):
        Index(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(InputError, match="not the manifest"):
        Index(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/diary.txt").touch()
    with pytest.raises(InputError, match="something else"):
        Index.build(drawn, cosine, out=tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="something else"):
        Index.build(drawn, cosine, out=tmp_path / "file")
    index = Index.build(drawn, cosine, out=tmp_path / "good")
    content = json.loads((index.folder / "index.json").read_text())
    (index.folder / "index.json").write_text(json.dumps({**content, "dim": 5}))
    with pytest.raises(InputError, match="do not belong together"):
        Index(index.folder)


@pytest.mark.parametrize(
    ("manifest", "other", "message"),
    [('{"a": 1}', None, "has no index.json"), ('{"a": 1}', "mine.txt", "mine.txt"), (None, "mine.txt", "mine.txt")],
)
def test_only_an_index_is_replaced(
    manifest: str | None, other: str | None, message: str, drawn: Pairs, cosine: RetrievalModel, tmp_path: Path
) -> None:
    folder = tmp_path / "site"
    if manifest is None:
        Index.build(drawn, cosine, out=folder)
    else:
        folder.mkdir()
        (folder / "index.json").write_text(manifest)
    if other is not None:
        (folder / other).write_text("keep")
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    with pytest.raises(InputError, match=message):
        Index.build(drawn, cosine, out=folder)
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before


def test_a_changed_index_is_replaced(drawn: Pairs, cosine: RetrievalModel, tmp_path: Path) -> None:
    index = Index.build(drawn, cosine, out=tmp_path / "index")
    index.remove(images=[3])
    assert (index.folder / ".lock").exists()
    assert len(Index.build(drawn, cosine, out=tmp_path / "index").items["image"]) == 60


def test_the_current_folder_is_not_replaced(
    drawn: Pairs, cosine: RetrievalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "..", str(tmp_path / "here")):
        with pytest.raises(InputError, match="current folder"):
            Index.build(drawn, cosine, out=out)
    assert Index.build(drawn, cosine, out="../here/index").search_text("red", k=1)


def test_a_failed_build_leaves_the_old_index(
    served_index: Index, drawn: Pairs, cosine: RetrievalModel, tmp_path: Path
) -> None:
    index = Index.build(drawn, cosine, out=tmp_path / "index")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    broken = Pairs(images=drawn.images, image_of=drawn.image_of, captions=drawn.captions)
    with pytest.raises(InputError, match="no image features"):
        Index.build(broken, cosine, out=tmp_path / "index")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert l2rm.Index(index.folder).search_text("red", k=1)
