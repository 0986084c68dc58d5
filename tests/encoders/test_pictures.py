"""Pixels that are decoded when they are asked for."""

import logging
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from l2rm.data.pairs import Pairs
from l2rm.encoders.pictures import Pictures, pictured
from l2rm.encoders.pretrained import Reading
from l2rm.errors import InputError

pytest.importorskip("transformers", reason="the extra hf (transformers) is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory, tiny_clip: ModuleType) -> Reading:
    return Reading.open(tiny_clip.save_model(tmp_path_factory.mktemp("base"), "clip"))


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    for number in range(6):
        Image.new("RGB", (20, 30), (40 * number, 9, 200)).save(tmp_path / f"{number}.jpg")
    return Pairs(
        images=tuple(f"{number}.jpg" for number in range(6)),
        image_of=np.arange(6),
        captions=("a dog",) * 6,
        image_root=tmp_path,
        source="made.csv",
    )


def features(pairs: Pairs) -> Pictures:
    assert isinstance(pairs.features, Pictures)
    return pairs.features


def test_a_batch_is_what_the_preprocessing_makes_of_each_file(pairs: Pairs, reading: Reading, tmp_path: Path) -> None:
    found = features(pictured(pairs, reading, progress=False).take([5, 1, 3]))
    assert found.shape == (3, 3, 256)
    batch = found.batch(np.array([2, 0, 2]))  # of views in the order of the table: images 1, 3, 5
    for row, number in enumerate((5, 1, 5)):
        expected = torch.from_numpy(reading.pixels(tmp_path / f"{number}.jpg"))
        assert torch.equal(batch[row].view(3, 16, 16), expected)


def test_a_picture_asked_for_twice_is_decoded_once(
    pairs: Pairs, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = features(pictured(pairs, reading, progress=False))
    asked: list[Path] = []
    decode = Reading.pixels

    def counted(self: Reading, path: Path) -> object:
        asked.append(path)
        return decode(self, path)

    monkeypatch.setattr(Reading, "pixels", counted)
    found.batch(np.array([4, 0, 4, 4]))
    assert len(asked) == 2


def test_bad_files_are_found_before_anything_is_learned(
    pairs: Pairs, reading: Reading, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (tmp_path / "2.jpg").read_bytes()
    (tmp_path / "2.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"row 3 \(pair 2\): .*2\.jpg does not decode"):
        pictured(pairs, reading, progress=False)
    with caplog.at_level(logging.WARNING):
        rest = pictured(pairs, reading, skip_bad=True, progress=False)
    assert [one.row for one in rest.left_out] == ["2"]
    assert len(features(rest)) == len(rest) == 5
    assert "left out" in caplog.text


def test_a_file_that_went_missing_is_an_input_error(pairs: Pairs, reading: Reading, tmp_path: Path) -> None:
    found = features(pictured(pairs, reading, progress=False))
    (tmp_path / "3.jpg").unlink()
    found.batch(np.array([0, 1]))
    with pytest.raises(InputError, match=r"3\.jpg: does not decode any more \(no such file\)"):
        found.batch(np.array([3]))


def test_other_files_under_the_same_names_have_another_digest(pairs: Pairs, reading: Reading, tmp_path: Path) -> None:
    found = features(pictured(pairs, reading, progress=False))
    before = found.digest()
    assert features(pictured(replace(pairs, features=None), reading, progress=False)).digest() == before
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "0.jpg", quality=100)
    assert found.digest() != before


def test_a_picture_far_longer_than_wide_takes_no_gigabytes(reading: Reading, tmp_path: Path) -> None:
    from l2rm.encoders.pretrained import _without_far_ends

    Image.new("RGB", (40_000, 2), (10, 20, 30)).save(tmp_path / "long.png")
    assert reading.pixels(tmp_path / "long.png").shape == (3, 16, 16)
    assert _without_far_ends(Image.new("RGB", (2, 400))).size == (2, 32)
    assert _without_far_ends(Image.new("RGB", (30, 20))).size == (30, 20)
