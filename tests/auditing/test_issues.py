"""Duplicates and captions of no information, planted and found, and what is none of them left alone."""

import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from l2rm.auditing.duplicate_captions import find_duplicate_captions
from l2rm.auditing.issues import find_issues
from l2rm.auditing.near_duplicates import find_near_duplicates
from l2rm.auditing.uninformative import find_uninformative_captions, is_file_name, template
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.texts import normalised
from l2rm.evaluation.scores import MatrixScores


def table(*captions: str, image_of: list[int] | None = None) -> Pairs:
    given_to = np.arange(len(captions)) if image_of is None else np.array(image_of)
    return Pairs(
        images=tuple(f"{number}.png" for number in range(given_to.max() + 1)), image_of=given_to, captions=captions
    )


# ----------------------------------------------------------------------------------------------------------- captions


def test_the_same_words_on_different_images() -> None:
    pairs = table("A Dog.", "a  dog", "ein Hund", "a dog", "a cat", image_of=[0, 1, 2, 1, 0])
    found, score, group = find_duplicate_captions(pairs)
    assert found.tolist() == [True, True, False, True, False]
    assert score.tolist() == [0.5, 0.5, 1, 0.5, 1]
    assert len({group[0], group[1], group[3]}) == 1
    assert group[2] == group[4] == -1


def test_copies_of_one_picture_may_share_a_caption() -> None:
    pairs = table("a dog", "a dog", "a dog")
    assert not find_duplicate_captions(pairs, np.array([0, 0, 0]))[0].any()
    found, score, _ = find_duplicate_captions(pairs, np.array([0, 0, 1]))
    assert found.all()
    assert score.tolist() == [0.5] * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["x", "X!", "y", "é", "é", "…"]), st.integers(0, 3)), min_size=1))
def test_duplicates_are_those_of_a_plain_loop(rows: list[tuple[str, int]]) -> None:
    numbers = {image: place for place, image in enumerate(sorted({image for _, image in rows}))}
    pairs = table(*(text for text, _ in rows), image_of=[numbers[image] for _, image in rows])
    found, score, _ = find_duplicate_captions(pairs)
    for row, (text, _) in enumerate(rows):
        pictures = {image for other, image in rows if normalised(other) == normalised(text)}
        assert found[row] == (len(pictures) > 1)
        assert score[row] == pytest.approx(1 / len(pictures))


@pytest.mark.parametrize(
    "caption", ["IMG_0412", "DSC00012", "photo-12.jpeg", "1234", "–", "12:30", "9f86d081884c7d65", "a.PNG"]
)
def test_names_of_files_say_nothing(caption: str) -> None:
    assert is_file_name(caption, "folder/b.png")


@pytest.mark.parametrize(
    "caption", ["a dog", "Hund", "犬", "🎈", "iPhone 12", "room 101 of the hotel", "decade", "собака"]
)
def test_words_of_any_language_say_something(caption: str) -> None:
    assert not is_file_name(caption, "folder/b.png")


def test_a_frequent_text_that_fits_any_picture_says_nothing() -> None:
    """ "untitled" on 40 pictures and "red shoe" on 40 others, which fit those alone; 40 texts of their own."""
    generator = np.random.default_rng(0)
    captions = (
        [f"Photo {n}" for n in range(40)]
        + ["red shoe"] * 40
        + [f"thing {chr(97 + n % 26)}{'x' * (n // 26)}" for n in range(40)]
    )
    S = generator.normal(size=(120, 120))
    S[40:80, 40:80] += 2.0
    S[np.arange(80, 120), np.arange(80, 120)] += 3
    pairs = table(*captions)
    found, score, group = find_uninformative_captions(pairs, MatrixScores(S))
    assert found.tolist() == [True] * 40 + [False] * 80
    assert (score[:40] < 0.4).all()
    assert (score[40:] == 1).all()
    assert len(set(group[:40])) == 1
    assert template("Photo 3") == template("photo 77")


# ------------------------------------------------------------------------------------------------------------- images


def scene(seed: int, side: int = 96) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 255, size=(6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells, "RGB").resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures(tmp_path: Path) -> Pairs:
    """Twenty scenes; 20 is a copy of 0's file, 21 another size and quality of 1, 22 is broken."""
    for number in range(20):
        scene(number).save(tmp_path / f"{number}.jpg", quality=90)
    (tmp_path / "20.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    scene(1).resize((80, 80)).save(tmp_path / "21.jpg", quality=60)
    (tmp_path / "22.jpg").write_bytes(b"no picture")
    return Pairs(
        images=tuple(f"{number}.jpg" for number in range(23)),
        image_of=np.arange(23),
        captions=tuple(f"text {number}" for number in range(23)),
        image_root=tmp_path,
    )


def with_features(pairs: Pairs) -> Pairs:
    """Features of 20 kinds; those of the copies are close, and so are those of 5 and 6, which look otherwise."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(23, 16))
    vectors[20], vectors[21] = vectors[0], vectors[1] + 0.15
    vectors[6] = vectors[5] + 0.01
    return replace(pairs, features=Features(array=vectors.astype(np.float32)))


@pytest.mark.parametrize("featured", [False, True])
def test_copies_and_other_sizes_are_found(pictures: Pairs, featured: bool) -> None:
    found = find_near_duplicates(with_features(pictures) if featured else pictures)
    assert found is not None
    assert np.flatnonzero(found.is_issue).tolist() == [0, 1, 20, 21]
    assert found.group[0] == found.group[20] != found.group[1] == found.group[21]
    assert (found.score[[0, 1, 20, 21]] <= 0.1).all()
    assert found.score[[2, 3, 4]].min() > 0.1


def test_features_alone_find_what_is_next_to_the_same(pictures: Pairs) -> None:
    found = find_near_duplicates(replace(with_features(pictures), image_root=None))
    assert found is not None
    assert {0, 20, 5, 6} <= set(np.flatnonzero(found.is_issue).tolist()) <= {0, 20, 5, 6, 1, 21}


def test_nothing_to_compare(pictures: Pairs) -> None:
    assert find_near_duplicates(replace(pictures, image_root=None)) is None


def test_blocks_do_not_matter(pictures: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = with_features(pictures)
    whole = find_near_duplicates(pairs)
    monkeypatch.setattr("l2rm.auditing.near_duplicates.BLOCK", 3)
    parts = find_near_duplicates(pairs)
    assert whole is not None
    assert parts is not None
    np.testing.assert_array_equal(whole.is_issue, parts.is_issue)
    np.testing.assert_allclose(whole.score, parts.score, atol=1e-6)


@pytest.mark.parametrize("featured", [False, True])
def test_groups_are_those_of_a_plain_loop(featured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2rm.auditing.near_duplicates.BLOCK", 7)
    generator = np.random.default_rng(1)
    colours, kind = generator.integers(0, 200, size=(12, 3)), generator.integers(12, size=60)
    colours[1], colours[2] = colours[0] + 4, colours[0] + 8  # near one another in a row, the ends are not
    shades = colours[kind] + generator.integers(2, size=60)[:, None]
    for number, shade in enumerate(shades):
        Image.new("RGB", (16, 16), tuple(shade.tolist())).save(tmp_path / f"{number}.png")
    pairs = table(*map(str, range(60)))
    pairs = replace(pairs, images=tuple(f"{number}.png" for number in range(60)), image_root=tmp_path)
    vectors = generator.normal(size=(12, 16))
    vectors[1:3] = vectors[0]
    if featured:
        pairs = replace(pairs, features=Features(array=vectors[kind]))
    found = find_near_duplicates(pairs)
    assert found is not None
    near = np.sqrt(((shades[:, None] - shades[None]) ** 2).mean(-1)) / 255 <= 0.02
    if featured:
        near &= (vectors[kind][:, None] == vectors[kind]).all(axis=-1)
    reached = np.linalg.matrix_power(near.astype(float), 60) > 0
    first = reached.argmax(axis=1)
    np.testing.assert_array_equal(found.group, np.unique(first, return_inverse=True)[1])
    np.testing.assert_array_equal(found.is_issue, reached.sum(axis=1) > 1)


def test_a_thousand_copies_are_no_million_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2rm.auditing.near_duplicates.BLOCK", 64)
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(1000, 8)).astype(np.float32)
    vectors[::2][:400] = vectors[0]
    pairs = replace(table(*map(str, range(1000))), features=Features(array=vectors))
    tracemalloc.start()
    found = find_near_duplicates(pairs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert np.bincount(found.group)[0] >= 400
    assert peak < 2e6


def test_copies_of_a_file_are_not_compared(pictures: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures.image_root is not None
    for number in range(10):
        shutil.copy(pictures.image_root / "15.jpg", pictures.image_root / f"{number}.jpg")
    vectors = np.random.default_rng(0).normal(size=(23, 16))
    vectors[:10] = vectors[15]
    monkeypatch.setattr("l2rm.auditing.near_duplicates._thumbnails", None)
    found = find_near_duplicates(replace(pictures, features=Features(array=vectors)))
    assert found is not None
    assert np.flatnonzero(found.is_issue).tolist() == [*range(10), 15]


def test_copies_are_found_where_most_pictures_have_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 32)).repeat([4] * 30 + [1] * 10, axis=0)
    vectors *= np.random.default_rng(1).uniform(1, 9, size=(130, 1))
    found = find_near_duplicates(replace(table(*map(str, range(130))), features=Features(array=vectors)))
    assert found is not None
    np.testing.assert_array_equal(found.group, np.arange(40).repeat([4] * 30 + [1] * 10))


def test_issues_become_columns_and_groups(pictures: Pairs) -> None:
    captions = ("same words",) * 2 + pictures.captions[2:]
    pairs = replace(pictures, captions=captions)
    issues = find_issues(pairs, MatrixScores(np.eye(23)), find_near_duplicates(pairs))
    assert [issue.name for issue in issues] == ["duplicate_caption", "uninformative_caption", "near_duplicate_image"]
    for issue in issues:
        columns = issue.columns()
        assert list(columns) == [f"is_{issue.name}_issue", f"{issue.name}_score"]
        assert ((issue.score >= 0) & (issue.score <= 1)).all()
        assert ((issue.group >= 0) == issue.is_issue).all()
        grouped = issue.groups(limit=50)
        assert sorted(int(row) for rows in grouped for row in rows) == np.flatnonzero(issue.is_issue).tolist()


def test_names_that_we_made_up_are_no_captions(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.save(tmp_path / "i.npy", vectors)
    np.save(tmp_path / "c.npy", vectors)
    pairs = Pairs.read(f"{tmp_path / 'i.npy'},{tmp_path / 'c.npy'}")
    issues = find_issues(pairs, MatrixScores(vectors @ vectors.T), find_near_duplicates(pairs))
    assert [issue.name for issue in issues] == ["near_duplicate_image"]
