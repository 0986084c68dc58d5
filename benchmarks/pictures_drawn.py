"""Picture files whose texts say what is on them, with everything wrong that an audit looks for planted among them."""

import csv
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from l2rm.data import openmoji
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.progress import track

SIDES = (240, 400)
"""Width and height of a picture in pixels are drawn between these."""
COLOURS = {
    "white": (255, 255, 255), "red": (214, 60, 60), "green": (70, 160, 80), "blue": (70, 110, 200),
    "yellow": (240, 205, 70), "grey": (150, 150, 150), "black": (30, 30, 30), "pink": (240, 160, 190),
}  # fmt: skip
TEMPLATES = (
    "{a} and {b} on a {c} background",
    "{a}, {b}, {c}",
    "{c} picture with {a} next to {b}",
    "{b} beside {a}, {c}",
)
PIECE = 200
"""Pictures that a process draws at a time."""
EMPTY_TEXTS = ("untitled", "product photo", "IMG_{n:05d}", "item {n}")
"""Texts of no information: the same for many pictures, or telling them apart only by a number."""


def draw(folder: Path, images: int, ratio: float, seed: int = 0) -> dict[str, list[str]]:
    """Pictures and `pairs.csv`; what was planted, by kind, as pair ids. Only what is missing is drawn."""
    record = folder / "planted.json"
    if record.exists():
        planted: dict[str, list[str]] = json.loads(record.read_text())
        return planted
    emoji = openmoji.read(("en",))
    names = [emoji.captions[int(np.flatnonzero(emoji.image_of == image)[0])] for image in range(emoji.n_images)]
    places = np.random.default_rng(seed).permutation(images)
    share = images // 100
    copies, near, silent = places[:share], places[share : 2 * share], places[2 * share : 4 * share]
    broken = places[4 * share : 4 * share + max(1, images // 2500)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files, captions = [f"images/{n:05d}.jpg" for n in range(images)], []
    for n in range(images):
        _, (one, two), colour, template = _plan(seed, n, emoji.n_images)
        captions.append(TEMPLATES[template].format(a=names[one], b=names[two], c=colour))
    pieces = [np.arange(start, min(start + PIECE, images)) for start in range(0, images, PIECE)]
    drawings = [str(emoji.image_path(image)) for image in range(emoji.n_images)]
    with ProcessPoolExecutor(initializer=_load_tiles, initargs=(drawings,)) as pool:
        work = pool.map(partial(_draw_piece, folder, seed), pieces)
        for _ in track(work, total=len(pieces), what="drawing pictures"):
            pass
    originals = places[-2 * share :] if share else places[:0]
    for copy, original in zip(np.concatenate([copies, near]), originals, strict=True):
        captions[copy] = captions[original]
        if copy in copies:
            shutil.copyfile(folder / files[original], folder / files[copy])
        else:
            with Image.open(folder / files[original]) as picture:
                picture.resize((picture.width * 9 // 10, picture.height * 9 // 10)).save(
                    folder / files[copy], quality=60
                )
    for place, n in enumerate(silent):
        captions[n] = EMPTY_TEXTS[place % len(EMPTY_TEXTS)].format(n=n)
    pairs = Pairs(images=tuple(files), image_of=np.arange(images), captions=tuple(captions), source="drawn")
    inject_mismatches(pairs, ratio=ratio, level="image", seed=seed).pairs.write(folder / "pairs.csv")
    for n in broken:
        (folder / files[n]).write_bytes((folder / files[n]).read_bytes()[:700])
    planted = {
        "copies": _ids(copies), "near": _ids(near), "originals": _ids(originals), "silent": _ids(silent),
        "broken": _ids(broken),
    }  # fmt: skip
    record.write_text(json.dumps(planted))
    return planted


def first_rows(table: Path, rows: int, out: Path) -> Path:
    """The first rows of a table of drawn pictures as a table of its own, beside the same pictures."""
    with table.open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))[: rows + 1]
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return out


def _ids(rows: np.ndarray) -> list[str]:
    return [str(row) for row in rows]


def _plan(seed: int, n: int, drawings: int) -> tuple[np.random.Generator, np.ndarray, str, int]:
    """What is on picture `n`: two drawings, the colour of the ground, and how the text says so."""
    drawer = np.random.default_rng((seed, n))
    pair = drawer.choice(drawings, 2, replace=False)
    return drawer, pair, str(drawer.choice(list(COLOURS))), int(drawer.integers(len(TEMPLATES)))


TILES: list[Image.Image] = []
"""Of a process that draws."""


def _load_tiles(drawings: list[str]) -> None:
    for drawing in drawings:
        with Image.open(drawing) as picture:
            TILES.append(picture.convert("RGB").resize((SIDES[1] // 2, SIDES[1] // 2)))


def _draw_piece(folder: Path, seed: int, rows: np.ndarray) -> None:
    for n in rows:
        if not (path := folder / f"images/{n:05d}.jpg").exists():
            drawer, (one, two), colour, _ = _plan(seed, n, len(TILES))
            picture = _compose(drawer, TILES[one], TILES[two], COLOURS[colour])
            picture.save(beside := path.with_suffix(".part"), format="JPEG", quality=int(drawer.integers(60, 95)))
            beside.replace(path)


def _compose(drawer: np.random.Generator, one: Image.Image, two: Image.Image, ground: tuple[int, ...]) -> Image.Image:
    """Two drawings side by side or one above the other, each turned and scaled, on a ground with some noise."""
    width, height = (int(side) for side in drawer.integers(*SIDES, size=2))
    grain = drawer.integers(0, 25, size=(height // 8, width // 8, 1), dtype=np.int16)
    texture = np.clip(np.array(ground, dtype=np.int16) - grain, 0, 255).astype(np.uint8)
    picture = Image.fromarray(texture).resize((width, height), Image.Resampling.BILINEAR)
    across = width >= height
    room = min(max(width, height) // 2, min(width, height))
    for place, tile in enumerate((one, two)):
        side = int(room * drawer.uniform(0.75, 1.0))
        turned = tile.resize((side, side)).rotate(
            float(drawer.uniform(-20, 20)), fillcolor="white", resample=Image.Resampling.BILINEAR
        )
        start = place * max(width, height) // 2 + int(drawer.integers(0, max(width, height) // 2 - side + 1))
        beside = int(drawer.integers(0, min(width, height) - side + 1))
        picture.paste(turned, (start, beside) if across else (beside, start))
    return picture
