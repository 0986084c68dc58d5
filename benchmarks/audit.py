"""An audit of many raw image files, end to end: time, memory, a kill on the way, and how right it is.

`python benchmarks/audit.py --folder FOLDER --json benchmarks/results/audit.json`

Draws --images JPEGs (two OpenMoji drawings on a coloured ground, with a text that names them), gives --ratio of the
images texts of others, plants duplicates, texts of no information and broken files, and runs `l2rm audit
--encoder efficientnet-lite0` on them in a process of its own. The process is killed once on the way and called again. What
is finished in FOLDER is not done again, so the script itself can be stopped too.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from provenance import provenance

from l2rm.data import openmoji
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.progress import track
from l2rm.training.run import write_json

SIDE, TILE = 160, 72
COLOURS = {
    "white": (255, 255, 255), "red": (214, 60, 60), "green": (70, 160, 80), "blue": (70, 110, 200),
    "yellow": (240, 205, 70), "grey": (150, 150, 150), "black": (30, 30, 30), "pink": (240, 160, 190),
}  # fmt: skip
TEMPLATES = ("{a} and {b} on a {c} background", "{a}, {b}, {c}", "{c} picture with {a} next to {b}", "{b} beside {a}, {c}")
EMPTY_TEXTS = ("untitled", "product photo", "IMG_{n:05d}", "item {n}")
"""Texts of no information: the same for many pictures, or telling them apart only by a number."""


def main() -> None:
    """Draw, audit, compare with what was planted, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--kill-after", type=float, default=60.0, help="seconds until the first process is killed")
    options = parser.parse_args()
    planted = draw(options.folder, options.images, options.ratio)
    print(json.dumps({name: len(rows) for name, rows in planted.items()}))


def draw(folder: Path, images: int, ratio: float, seed: int = 0) -> dict[str, list[str]]:
    """Pictures and `pairs.csv`; what was planted, by kind, as pair ids. Only what is missing is drawn."""
    record = folder / "planted.json"
    if record.exists():
        return json.loads(record.read_text())
    emoji = openmoji.read(("en",))
    names = [emoji.captions[int(np.flatnonzero(emoji.image_of == image)[0])] for image in range(emoji.n_images)]
    generator = np.random.default_rng(seed)
    places = generator.permutation(images)
    share = images // 100
    copies, near, silent = places[:share], places[share : 2 * share], places[2 * share : 4 * share]
    broken = places[4 * share : 4 * share + max(1, images // 2500)]
    tiles = [_tile(emoji.image_path(image)) for image in range(emoji.n_images)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    files, captions = [], []
    for n in track(range(images), total=images, what="drawing pictures"):
        drawer = np.random.default_rng((seed, n))
        one, two = drawer.choice(len(tiles), 2, replace=False)
        colour = str(drawer.choice(list(COLOURS)))
        text = TEMPLATES[drawer.integers(len(TEMPLATES))].format(a=names[one], b=names[two], c=colour)
        files.append(f"images/{n:05d}.jpg")
        captions.append(text)
        if not (path := folder / files[-1]).exists():
            _compose(drawer, tiles[one], tiles[two], COLOURS[colour]).save(path, quality=80)
    originals = places[-2 * share :]
    for copy, original in zip(np.concatenate([copies, near]), originals, strict=True):
        captions[copy] = captions[original]
        if copy in copies:
            shutil.copyfile(folder / files[original], folder / files[copy])
        else:
            with Image.open(folder / files[original]) as picture:
                picture.resize((SIDE - 16, SIDE - 16)).save(folder / files[copy], quality=60)
    for place, n in enumerate(silent):
        captions[n] = EMPTY_TEXTS[place % len(EMPTY_TEXTS)].format(n=n)
    pairs = Pairs(images=tuple(files), image_of=np.arange(images), captions=tuple(captions), source="drawn")
    noisy = inject_mismatches(pairs, ratio=ratio, level="image", seed=seed).pairs
    replace(noisy, true_image_of=noisy.true_image_of).write(folder / "pairs.csv")
    for n in broken:
        (folder / files[n]).write_bytes((folder / files[n]).read_bytes()[:700])
    planted = {
        "copies": _ids(copies), "near": _ids(near), "originals": _ids(originals), "silent": _ids(silent),
        "broken": _ids(broken),
    }  # fmt: skip
    record.write_text(json.dumps(planted))
    return planted


def _ids(rows: np.ndarray) -> list[str]:
    return [str(row) for row in rows]


def _tile(path: Path | None) -> Image.Image:
    with Image.open(str(path)) as picture:
        return picture.convert("RGB").resize((TILE, TILE))


def _compose(drawer: np.random.Generator, one: Image.Image, two: Image.Image, ground: tuple[int, ...]) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    for place, tile in enumerate((one, two)):
        turned = tile.rotate(float(drawer.uniform(-20, 20)), fillcolor="white", resample=Image.Resampling.BILINEAR)
        side = int(TILE * drawer.uniform(0.75, 1.0))
        picture.paste(
            turned.resize((side, side)),
            (place * SIDE // 2 + int(drawer.integers(0, 8)), int(drawer.integers(0, SIDE - side))),
        )
    return picture


if __name__ == "__main__":
    main()
