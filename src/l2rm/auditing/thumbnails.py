"""Images for the review page: decoded within limits, made small, encoded anew."""

import io
from pathlib import Path

from PIL import Image

from l2rm.data.packed import open_file
from l2rm.encoders.pixels import UndecodableImageError, opened, told_if_broken

FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Kinds of image that are read. Not EPS or PDF, which Pillow hands to other programs."""


def small_webp(path: Path, side: int) -> bytes:
    """An image file, or a member of a tar file, of at most `side` pixels a side, as WebP without any metadata.

    Raises:
        UndecodableImageError: no such file, no image, one of another kind than `FORMATS`, or too many pixels.
    """
    try:
        known = [name for name in FORMATS if name in Image.OPEN or Image.init()]
        readable = [name for name in known if name in Image.OPEN]
        with told_if_broken(), open_file(path) as file, Image.open(file, formats=readable):
            pass
    except UndecodableImageError as error:
        raise UndecodableImageError("no image that is shown") from error
    picture = opened(path, side)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = io.BytesIO()
    picture.save(file, format="WEBP", quality=82, method=3)
    return file.getvalue()
