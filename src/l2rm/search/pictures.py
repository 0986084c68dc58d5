"""Pictures in and out of the service: uploads are checked before they are decoded, files leave re-encoded only."""

import io
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image, ImageOps

from l2rm.data.packed import open_file
from l2rm.encoders.pixels import on_white
from l2rm.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
"""What is decoded: raster images alone. No SVG or EPS, which are programs."""
MAX_PIXELS = 40_000_000
SIZES = (160, 320, 640, 1280)
_BROKEN = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError),
    *(ZeroDivisionError, MemoryError, Image.DecompressionBombError),
)


def check_upload(content: bytes) -> None:
    """Refuse what is no raster image, or one that would unpack to too much; nothing is decoded yet.

    Raises:
        InputError: says why.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
    except _BROKEN as error:
        raise InputError("picture: not an image that can be read; give a JPEG, PNG, WebP, GIF, BMP or TIFF") from error
    if width * height > MAX_PIXELS:
        raise InputError(f"picture: {width} × {height} pixels are too many; give at most {MAX_PIXELS // 10**6} million")


def thumbnail(path: Path, size: int) -> bytes:
    """A WebP of at most `size` pixels a side, made of the pixels alone: nothing else of the file passes.

    Raises:
        InputError: there is no such file, or it does not decode.
    """
    try:
        with open_file(path) as file, Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{path.name}: too many pixels to show")
            picture.draft("RGB", (2 * size, 2 * size))
            small = on_white(ImageOps.exif_transpose(picture))
            small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    except _BROKEN as error:
        raise InputError(f"{path.name}: cannot be shown") from error
    file = io.BytesIO()
    small.save(file, format="WEBP", quality=82, method=2)
    return file.getvalue()


class Thumbnails:
    """The last thumbnails that were made, up to a number of bytes."""

    def __init__(self, budget: int = 64 * 2**20) -> None:
        self._budget, self._held = budget, 0
        self._kept: OrderedDict[tuple[Path, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, size: int) -> bytes:
        """The thumbnail of a file; `thumbnail` says what it raises."""
        key = path, size
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = thumbnail(path, size)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._held += len(made)
            while self._held > self._budget:
                _, oldest = self._kept.popitem(last=False)
                self._held -= len(oldest)
        return made
