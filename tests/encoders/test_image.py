"""`encode` with a stand-in encoder whose features can be computed by hand."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from l2rm.data.pairs import Pairs
from l2rm.encoders import filling
from l2rm.encoders import image as image_module
from l2rm.encoders.image import encode
from l2rm.errors import InputError


class MeanColour:
    """The mean colour of each cell; counts the images that it has seen."""

    name = "mean-colour"
    version = 1
    size = 12
    dim = 3
    max_grid = 4
    seen = 0

    def __init__(self, *, grid: int, device: torch.device | str = "cpu") -> None:
        self.grid = grid

    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        type(self).seen += len(pixels)
        cell = self.size // self.grid
        cells = pixels.reshape(len(pixels), self.grid, cell, self.grid, cell, 3).mean(axis=(2, 4))
        return torch.from_numpy(cells.reshape(len(pixels), -1, 3).astype(np.float32))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("L2RM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(image_module.ENCODERS, MeanColour.name, MeanColour)
    monkeypatch.setattr(MeanColour, "seen", 0)
    return


def made(folder: Path, count: int = 10, captions: int = 2) -> Pairs:
    """Images whose colour is their number, with `captions` captions each."""
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (6, 6), (i, 2 * i, 3 * i)).save(folder / f"{i}.png")
    rows = count * captions
    return Pairs(
        images=tuple(f"{i}.png" for i in range(count)),
        image_of=np.arange(rows) // captions,
        captions=tuple(f"caption {row}" for row in range(rows)),
        image_root=folder,
        source="made.csv",
    )


def colours(pairs: Pairs) -> list[int]:
    assert pairs.features is not None
    batch = pairs.features.batch(np.arange(pairs.n_images))
    assert (batch == batch[:, :1]).all()
    assert torch.equal(batch[:, 0, 1], 2 * batch[:, 0, 0])
    return [int(value) for value in batch[:, 0, 0]]


def test_each_image_gets_its_features_once(tmp_path: Path) -> None:
    pairs = made(tmp_path / "images")
    encoded = encode(pairs, encoder="mean-colour", grid=2, progress=False)
    assert encoded.features is not None
    assert encoded.features.shape == (10, 4, 3)
    assert encoded.features.array.dtype == np.float16
    assert isinstance(encoded.features.array, np.memmap)
    assert colours(encoded) == list(range(10))
    assert encoded.captions == pairs.captions
    assert MeanColour.seen == 10


def test_only_new_and_changed_images_are_encoded_again(tmp_path: Path) -> None:
    pairs = made(tmp_path / "images")
    train, dev = pairs.take(np.arange(8, 20)), pairs.take(np.arange(12))
    assert colours(encode(train, encoder="mean-colour", grid=2, progress=False)) == list(range(4, 10))
    assert colours(encode(dev, encoder="mean-colour", grid=2, progress=False)) == list(range(6))
    assert MeanColour.seen == 10, "images 4 and 5 were known"
    Image.new("RGB", (6, 6), (50, 100, 150)).save(tmp_path / "images" / "3.png")
    os.utime(tmp_path / "images" / "3.png", ns=(5, 5))
    assert colours(encode(pairs, encoder="mean-colour", grid=2, progress=False)) == [0, 1, 2, 50, 4, 5, 6, 7, 8, 9]
    assert MeanColour.seen == 11
    encode(pairs, encoder="mean-colour", grid=3, progress=False)
    assert MeanColour.seen == 21, "another grid has its own features"


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "STORE_EVERY", 4)
    pairs = made(tmp_path / "images", count=40)
    encode_all = MeanColour.__call__

    def stopping(self: MeanColour, pixels: NDArray[np.uint8]) -> torch.Tensor:
        if pixels.max() >= 3 * 20:
            raise KeyboardInterrupt
        return encode_all(self, pixels)

    monkeypatch.setattr(MeanColour, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode(pairs, encoder="mean-colour", grid=1, progress=False)
    monkeypatch.setattr(MeanColour, "__call__", encode_all)
    MeanColour.seen = 0
    assert colours(encode(pairs, encoder="mean-colour", grid=1, progress=False)) == list(range(40))
    assert MeanColour.seen <= 24, "20 images were done; at most one write of 4 was lost"


def test_an_undecodable_image_is_named_with_its_row(tmp_path: Path) -> None:
    pairs = made(tmp_path / "images")
    (tmp_path / "images" / "6.png").write_text("no image")
    with pytest.raises(InputError) as error:
        encode(pairs, encoder="mean-colour", grid=1, progress=False)
    message = str(error.value)
    assert message.startswith("made.csv: row 13 (pair 12): ")
    assert "6.png does not decode (not an image" in message
    assert "--skip-bad" in message
    assert "\n" not in message
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(InputError, match=r"row 5 .*2\.png does not decode \(No such file"):
        encode(pairs, encoder="mean-colour", grid=1, progress=False)


def test_skip_bad_leaves_rows_out_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = made(tmp_path / "images", count=30)
    bad = [0, 7, *range(8, 29)]
    for i in bad:
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    (tmp_path / "images" / "7.png").unlink()
    with caplog.at_level(logging.WARNING, logger="l2rm"):
        encoded = encode(pairs, encoder="mean-colour", grid=1, progress=False, skip_bad=True)
    kept = [i for i in range(30) if i not in bad]
    assert colours(encoded) == kept
    assert encoded.images == tuple(f"{i}.png" for i in kept)
    assert encoded.pair_ids == tuple(str(row) for i in kept for row in (2 * i, 2 * i + 1))
    assert len(caplog.messages) == 21
    assert "row 15 (pair 14)" in caplog.messages[1]
    assert caplog.messages[-1].startswith("made.csv: 3 more images")


def test_no_image_left_is_an_error(tmp_path: Path) -> None:
    pairs = made(tmp_path / "images", count=3)
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"made\.csv: no image decodes"):
        encode(pairs, encoder="mean-colour", grid=1, progress=False, skip_bad=True)


def test_wrong_arguments(tmp_path: Path) -> None:
    pairs = made(tmp_path / "images", count=2)
    with pytest.raises(InputError, match=r"'clip'; choose from efficientnet-lite0"):
        encode(pairs, encoder="clip")
    for grid in (0, 5):
        with pytest.raises(InputError, match="choose 1 to 4"):
            encode(pairs, encoder="mean-colour", grid=grid)
    with pytest.raises(InputError, match="has no file to encode"):
        encode(Pairs(images=("0",), image_of=np.array([0]), captions=("a",)), encoder="mean-colour", grid=1)
    assert not (tmp_path / "cache").exists()


def test_one_file_under_two_names(tmp_path: Path) -> None:
    made(tmp_path / "images", count=2)
    pairs = Pairs(
        images=("1.png", "./1.png", "0.png"),
        image_of=np.arange(3),
        captions=("a", "b", "c"),
        image_root=tmp_path / "images",
    )
    assert colours(encode(pairs, encoder="mean-colour", grid=1, progress=False)) == [1, 1, 0]


def test_a_broken_file_under_two_names(tmp_path: Path) -> None:
    made(tmp_path / "images", count=2)
    (tmp_path / "images" / "bad.png").write_text("no image")
    pairs = Pairs(
        images=("bad.png", "1.png", "./bad.png", "0.png"),
        image_of=np.arange(4),
        captions=("a", "b", "c", "d"),
        image_root=tmp_path / "images",
    )
    for _ in range(2):
        found = encode(pairs, encoder="mean-colour", grid=1, skip_bad=True, progress=False)
        assert colours(found) == [1, 0]
        assert [one.row for one in found.left_out] == ["0", "2"]


def test_the_number_of_threads_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    encode(made(tmp_path / "images"), encoder="mean-colour", grid=1, progress=False)
    assert torch.get_num_threads() == before
