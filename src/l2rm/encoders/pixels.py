"""An image file becomes the RGB square that an encoder takes, whatever kind of image it is."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from l2rm.data.packed import open_file
from l2rm.errors import InputError

MAX_PIXELS = 100_000_000
"""Above this an image is refused unread: a few bytes of file can unpack to gigabytes (a decompression bomb)."""

# What Pillow's readers raise on broken files, found by kind of file; anything else is an error of ours.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    RuntimeError,  # AVIF
    struct.error,
    InputError,  # a tar file that was damaged since
    Image.DecompressionBombError,
)


class UndecodableImageError(Exception):
    """The file is no image that can be decoded; the message says why, without naming the file."""


def decode(path: Path | BinaryIO, size: int) -> NDArray[np.uint8]:
    """Decode an image file to RGB of `size` × `size`.

    The whole image is squeezed into the square (bicubic, antialiased), so that nothing is cut off. EXIF orientation is
    honoured; transparency is laid on white; palettes, grey, CMYK and 16-bit images are converted; of an animation the
    first frame is taken.

    Args:
        path: the file, which may lie in a tar file (`shards/0.tar/0.jpg`), or one that is open for reading.
        size: width and height of the result in pixels.

    Returns:
        (size, size, 3), 0 to 255.

    Raises:
        UndecodableImageError: no such file, not an image, truncated, or more than `MAX_PIXELS` pixels.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "grey.png"
        >>> Image.new("L", (3, 2), 7).save(path)
        >>> decode(path, 4)[0, 0].tolist()
        [7, 7, 7]
    """
    square = opened(path, size).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.array(square, dtype=np.uint8)


def opened(path: Path | BinaryIO, size: int) -> Image.Image:
    """An image file as an upright RGB picture, at least `size` pixels a side where the file has as many.

    Raises:
        UndecodableImageError: as `decode`.
    """
    with (
        told_if_broken(),
        open_file(path) if isinstance(path, Path) else nullcontext(path) as file,
        Image.open(file) as image,
    ):
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise UndecodableImageError(f"{width} × {height} pixels are too many")
        image.draft(None, (2 * size, 2 * size))  # JPEG: decodes at a fraction of its size where that is enough
        return on_white(ImageOps.exif_transpose(image))


@contextmanager
def told_if_broken() -> Iterator[None]:
    """A block that reads an image file by Pillow, in which a broken one is told as such.

    Raises:
        UndecodableImageError: says why.
        MemoryError: memory ran out, which says nothing about the file.
    """
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
            raise MemoryError(str(error)) from error
        raise UndecodableImageError(_why(error)) from error


def on_white(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB; where it is transparent, white shows through."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode)).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Grey values of 16 or 32 bits or floating point, scaled to 0…255: by their type's range, else by their own."""
    grey = values.astype(np.float64)
    if not np.isfinite(grey).all():
        raise ValueError("NaN or infinite grey values")
    low, high = float(grey.min()), float(grey.max())
    if mode.startswith("I;16") or (mode == "I" and low >= 0 and 255 < high <= 65535):
        grey /= 257
    elif mode == "F" and low >= 0 and high <= 1:
        grey *= 255
    elif low < 0 or high > 255:
        grey = (grey - low) * (255 / (high - low))
    return np.round(grey).astype(np.uint8)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
