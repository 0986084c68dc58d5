import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from l2rm.auditing.pictures import thumbnail
from l2rm.auditing.thumbnails import small_webp
from l2rm.encoders.pixels import UndecodableImageError, decode, told_if_broken


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_a_square_rgb_image_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(decode(saved(Image.fromarray(pixels), tmp_path / "a.png"), 8), pixels)


def test_nothing_is_cut_off(tmp_path: Path) -> None:
    wide = np.zeros((10, 100, 3), dtype=np.uint8)
    wide[:, :50] = 200
    pixels = decode(saved(Image.fromarray(wide), tmp_path / "a.png"), 20)
    assert (pixels[:, :8] == 200).all()
    assert (pixels[:, 12:] == 0).all()


def test_transparency_shows_white(tmp_path: Path) -> None:
    for mode, clear, half in (("RGBA", (0, 0, 0, 0), (0, 0, 0, 128)), ("LA", (0, 0), (0, 128))):
        assert (decode(saved(Image.new(mode, (4, 4), clear), tmp_path / f"{mode}.png"), 4) == 255).all()
        assert abs(int(decode(saved(Image.new(mode, (4, 4), half), tmp_path / f"{mode}h.png"), 4)[0, 0, 0]) - 127) <= 1


def test_transparent_palette_colour_shows_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    pixels = decode(saved(image, tmp_path / "a.png", transparency=1), 4)
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert pixels[2, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((4, 4, 3), dtype=np.uint8)
    upright[0, 0], upright[0, 3], upright[3, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # How the sensor stores what orientation n turns upright (EXIF 2.3, tag 274: where row 0 and column 0 are).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(path, 4), upright)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("L", 90, "png", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("I;16", 257 * 90, "png", (90, 90, 90)),
        ("I;16", 257 * 90, "tif", (90, 90, 90)),
        ("I", 257 * 90, "tif", (90, 90, 90)),
        ("F", 0.5, "tif", (128, 128, 128)),
        ("F", 90.0, "tif", (90, 90, 90)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
    ],
)
def test_other_kinds_of_image(tmp_path: Path, mode: str, colour: float, suffix: str, expected: tuple[int, ...]) -> None:
    path = saved(Image.new(mode, (3, 3), colour), tmp_path / f"a.{suffix}")
    assert decode(path, 5)[2, 2].tolist() == list(expected)


def test_cmyk_jpeg_and_large_jpeg(tmp_path: Path) -> None:
    cmyk = saved(Image.new("CMYK", (64, 64), (0, 255, 255, 0)), tmp_path / "cmyk.jpg", quality=95)
    red = decode(cmyk, 16)[8, 8].astype(int)
    assert red[0] > 220
    assert red[1:].max() < 40
    large = np.zeros((900, 1200, 3), dtype=np.uint8)
    large[:, 600:] = 255
    pixels = decode(saved(Image.fromarray(large), tmp_path / "large.jpg"), 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels[:, :6].max() < 10
    assert pixels[:, 10:].min() > 245


@given(width=st.integers(1, 40), height=st.integers(1, 40), mode=st.sampled_from(["RGB", "RGBA", "P", "L", "I;16"]))
@settings(max_examples=30, deadline=None)
def test_any_size_becomes_the_square(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, mode: str
) -> None:
    path = saved(Image.new(mode, (width, height)), tmp_path_factory.mktemp("any") / "a.png")
    pixels = decode(path, 7)
    assert pixels.shape == (7, 7, 3)
    assert pixels.dtype == np.uint8


def bomb(path: Path, side: int) -> Path:
    """A PNG whose header promises side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_does_not_decode_says_why(tmp_path: Path) -> None:
    whole = saved(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), tmp_path / "a.png"
    )
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(whole.read_bytes()[:3000])
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    folder = tmp_path / "folder.png"
    folder.mkdir()
    reasons = {
        tmp_path / "none.png": "no such file",
        text: "not an image",
        empty: "not an image",
        truncated: "truncated",
        folder: "directory",
        bomb(tmp_path / "bomb.png", 11_000): "11000 × 11000 pixels are too many",
        bomb(tmp_path / "megabomb.png", 60_000): "exceeds limit",
    }
    for path, reason in reasons.items():
        with pytest.raises(UndecodableImageError, match=reason) as error:
            decode(path, 8)
        assert "\n" not in str(error.value)
        assert str(tmp_path) not in str(error.value), "the caller names the file"


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_broken_avif_does_not_decode(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / "a.avif")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(RuntimeError), Image.open(path) as picture:
        picture.load()
    with pytest.raises(UndecodableImageError, match="decode"):
        decode(path, 8)
    assert thumbnail(path) is None
    with pytest.raises(UndecodableImageError):
        small_webp(path, 8)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Failed to decode image: Out of memory")])
def test_memory_that_runs_out_says_nothing_about_the_file(error: Exception) -> None:
    with pytest.raises(MemoryError), told_if_broken():
        raise error
