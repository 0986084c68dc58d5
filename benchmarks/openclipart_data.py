"""OpenClipart as Debian packs it: pictures, the titles in their metadata, and what their file names say of the titles.

The pictures are in the public domain; some ten years of people drew them and typed, copied or forgot their titles. File
names were given apart from titles, so they check them: a title *fits* when it shares a word with the file's name.
"""

import re
import subprocess
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nltk.stem import PorterStemmer
from numpy.typing import NDArray

from l2rm.auditing.near_duplicates import find_near_duplicates
from l2rm.data.pairs import Pairs
from l2rm.encoders.image import encode
from l2rm.encoders.pixels import opened
from l2rm.errors import InputError

PACKAGES = ("openclipart-png", "openclipart-svg")
CREDIT = (
    "Clip art: the Open Clip Art Library (openclipart.org), by its many authors, dedicated to the public domain; "
    "packed by Debian as openclipart-png and openclipart-svg"
)
CLASSES = ("fits", "stale", "generic", "alone", "unchecked")
"""What a title is. fits: shares a word with the file's name. stale: does not, but fits another file that has it (it was
left standing when a drawing was made from another). generic: files of two or more names have it, and it fits none or
fewer than one in fifty of them (a collection). alone: shares no word, and no file of another name has it: another
language, other words, or wrong. unchecked: the name holds no word."""
RARELY = 0.02
"""Share of its files below which a title that fits some is generic."""
_ANYTHING = (
    "the and for with from part clip art clipart cliparts svg png icon icons iconset theme collection set image "
    "picture drawing simple new untitled aiga plastik openclipart nicubunu flat etiquette lemon blueberry"
)
SAID_OF_ANYTHING = frozenset(_ANYTHING.split())
"""Words that do not count, in titles nor in names: what is said of any picture, and names of collections of icons."""
LEAST = 4
"""Letters from which on a word may be found inside another ("pantyhose" in "pantyhose10", "star" in "gramastar")."""

_WORK = re.compile(r"\{.*\}Work$")
_DUBLIN = "{http://purl.org/dc/elements/1.1/}"
_STEM = PorterStemmer().stem


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipArt:
    """A picture a row, in the order of `pairs.images`.

    Attributes:
        pairs: picture and title; names of pictures as under `png/`.
        names: the words of each file's name, to be searched with; "" where there are none.
        kinds: (rows,) of `CLASSES`.
        group: (rows,) pictures of one number are the same, or nearly; every row its own until `distinct` compares them.
        left_out: how many SVG files are no row, by reason.
    """

    pairs: Pairs
    names: tuple[str, ...]
    kinds: NDArray[np.str_]
    group: NDArray[np.int64]
    left_out: dict[str, int]

    def take(self, rows: NDArray[np.integer]) -> "ClipArt":
        """Some of the rows, in ascending order."""
        return replace(
            self,
            pairs=self.pairs.take(rows),
            names=tuple(self.names[row] for row in rows),
            kinds=self.kinds[rows],
            group=self.group[rows],
        )


def unpacked(folder: Path) -> Path:
    """Fetch both packages by apt-get into `folder` and unpack them there, unless that was done; where they lie."""
    done = folder / "unpacked"
    if not done.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
        beside = folder / "unpacking"
        for package in PACKAGES:
            (archive,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(archive), str(beside)], check=True)
        beside.rename(done)
    return done


def read(folder: Path) -> ClipArt:
    """The pictures of unpacked packages that have a title.

    An SVG file that is a link to another is no row. Pixels are those of the PNG file of the same name, else drawn from
    the SVG by resvg-py.

    Raises:
        InputError: no SVG files there.
    """
    root = next((path for path in (folder / "usr/share/openclipart", folder) if (path / "svg").is_dir()), None)
    files = sorted((root / "svg").rglob("*.svg")) if root else []
    if root is None or not files:
        raise InputError(f"{folder}: no svg/ with SVG files; give the folder that the packages are unpacked in")
    left_out = {"links": 0, "no title": 0}
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    for file in files:
        title, creators = _metadata(file)
        if file.is_symlink() or not title:
            left_out["links" if file.is_symlink() else "no title"] += 1
            continue
        name = file.relative_to(root / "svg").with_suffix("")
        _drawn(file, root / "png" / f"{name}.png")
        rows.append((f"{name}.png", title, name_words(name.name, creators)))
    titles = [title_words(title) for _, title, _ in rows]
    pairs = Pairs(
        images=tuple(image for image, _, _ in rows),
        image_of=np.arange(len(rows)),
        captions=tuple(title for _, title, _ in rows),
        image_root=root / "png",
        source="openclipart",
    )
    names = [words for _, _, words in rows]
    return ClipArt(
        pairs=pairs,
        names=tuple(" ".join(words) for words in names),
        kinds=kinds_of([title for _, title, _ in rows], titles, names),
        group=np.arange(len(rows)),
        left_out=left_out,
    )


def distinct(art: ClipArt, *, progress: bool = True) -> ClipArt:
    """The same with features, without pictures that do not decode or are blank, each picture once a title.

    Of pictures that are the same, or nearly (`find_near_duplicates`), those of one title count once: of 1,375 stars
    called "gramastar" a dozen can be told apart.
    """
    pairs = encode(art.pairs, grid=1, skip_bad=True, progress=progress)
    has = set(pairs.images)
    undecodable = len(art.pairs) - len(pairs)
    art = replace(art.take(np.array([row for row, image in enumerate(art.pairs.images) if image in has])), pairs=pairs)
    copies = find_near_duplicates(pairs, progress=progress)
    assert copies is not None
    first: dict[tuple[int, str], int] = {}
    for row, title in enumerate(pairs.captions):
        first.setdefault((int(copies.group[row]), title), row)
    rows = [row for row in first.values() if not _is_blank(pairs.image_path(row))]
    found = replace(art, group=copies.group).take(np.array(sorted(rows)))
    same = len(pairs) - len(first)
    blank = len(first) - len(rows)
    left_out = {**art.left_out, "do not decode": undecodable, "same picture and title": same, "blank": blank}
    return replace(found, left_out=left_out)


def _is_blank(path: Path | None) -> bool:
    assert path is not None
    return all(low == high for low, high in opened(path, 64).getextrema())


def words(text: str) -> tuple[str, ...]:
    """Lower-case words of three letters or more without accents; "JigsawRed_10" holds two."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return tuple(word for word in re.findall(r"[a-z]{3,}", plain) if word not in SAID_OF_ANYTHING)


def title_words(title: str) -> tuple[str, ...]:
    """The words of a title; "Clipart by NAME NAME - " in front says nothing of the picture."""
    return words(re.sub(r"^clipart by \w+ \w+ - ", "", title, flags=re.IGNORECASE))


def name_words(name: str, creators: str) -> tuple[str, ...]:
    """The words of a file's name without those of its author, who is often the end of it, cut short."""
    theirs = words(creators)
    return tuple(word for word in words(name) if not any(one.startswith(word) for one in theirs))


def share_a_word(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two texts have a word of one stem, or a stem of one, of four letters or more, is found in the other."""
    stems = [{_STEM(word) for word in text} for text in (one, other)]
    if stems[0] & stems[1]:
        return True
    joined = ["".join(one), "".join(other)]
    return any(len(stem) >= LEAST and stem in joined[1 - side] for side in (0, 1) for stem in stems[side])


def kinds_of(
    titles: Sequence[str], of_title: Sequence[tuple[str, ...]], of_name: Sequence[tuple[str, ...]]
) -> NDArray[np.str_]:
    """(rows,) of `CLASSES`, from titles as they are, their words and those of the files' names."""
    fits = [share_a_word(title, name) for title, name in zip(of_title, of_name, strict=True)]
    of_files: dict[str, list[bool]] = defaultdict(list)
    names: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for title, fit, name in zip(titles, fits, of_name, strict=True):
        of_files[title].append(fit)
        names[title].add(name)

    def kind(title: str, name: tuple[str, ...], fit: bool) -> str:
        if fit:
            return "fits"
        if not name:
            return "unchecked"
        if len(names[title]) == 1:
            return "alone"
        return "stale" if np.mean(of_files[title]) >= RARELY else "generic"

    return np.array([kind(*row) for row in zip(titles, of_name, fits, strict=True)])


def _metadata(file: Path) -> tuple[str, str]:
    """Title and authors, in the words of the file's Dublin Core."""
    work = next((one for one in ElementTree.parse(file).iter() if _WORK.match(one.tag)), None)
    if work is None:
        return "", ""
    title = (work.findtext(f"{_DUBLIN}title") or "").strip()
    people = [
        " ".join(text.strip() for text in part.itertext())
        for name in ("creator", "publisher", "rights")
        for part in work.findall(f"{_DUBLIN}{name}")
    ]
    return " ".join(title.split()), " ".join(people)


def _drawn(svg: Path, png: Path) -> None:
    """Draw a picture of which there is no PNG file."""
    if png.exists():
        return
    import resvg_py

    png.parent.mkdir(parents=True, exist_ok=True)
    drawn = resvg_py.svg_to_bytes(svg_path=str(svg), width=224, background="white")
    png.write_bytes(bytes(drawn))
