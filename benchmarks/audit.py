"""An audit of many raw image files, end to end: time, memory, a kill on the way, and how right it is.

`python benchmarks/audit.py --folder FOLDER --json benchmarks/results/audit.json`

Draws --images JPEGs (two OpenMoji drawings on a coloured ground, with a text that names them), gives --ratio of the
images texts of others, plants duplicates, texts of no information and broken files, and runs `l2rm audit
--encoder efficientnet-lite0` on them in a process of its own. The process is killed once on the way and called again.
What is finished in FOLDER is not done again, so the script itself can be stopped too.
"""

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from provenance import provenance

from l2rm.data import openmoji
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.evaluation.detection import measure_detection
from l2rm.progress import track
from l2rm.training.run import write_json

SIDE, TILE = 160, 72
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
    folder = options.folder / str(options.images)
    planted = draw(folder, options.images, options.ratio)
    command = [
        *(sys.executable, "-m", "l2rm", "audit", str(folder / "pairs.csv"), "--encoder", "efficientnet-lite0"),
        *("--skip-bad", "--out", str(folder / "audit")),
    ]
    environment = os.environ | {"L2RM_CACHE": str(folder / "cache")}
    record = folder / "processes.json"
    processes = json.loads(record.read_text()) if record.exists() else []
    if not processes:
        processes.append(watched(command, environment, folder / "first.log", kill_after=options.kill_after))
        record.write_text(json.dumps(processes))
    if processes[-1]["status"] != 0:
        processes.append(watched(command, environment, folder / "second.log"))
        record.write_text(json.dumps(processes))
    if processes[-1]["status"] != 0:
        raise SystemExit((folder / "second.log").read_text()[-2000:])
    found = compared(folder, planted)
    write_json(
        options.json,
        {
            "data": f"{options.images} drawn JPEGs of {SIDE} pixels, {options.ratio:.0%} mismatched at image level",
            **provenance(),
            "nice": os.nice(0),
            "load_average": os.getloadavg()[1],
            "processes": processes,
            "seconds": sum(one["seconds"] for one in processes),
            "cpu_seconds": sum(one["cpu_seconds"] for one in processes),
            "peak_mib": max(one["peak_mib"] for one in processes),
            "images_a_second_encoding": encoding_rate(processes),
            "report_mib": (folder / "audit" / "report.html").stat().st_size / 2**20,
            **found,
        },
    )
    print(options.json.read_text())


def watched(
    command: list[str], environment: dict[str, str], log: Path, *, kill_after: float | None = None
) -> dict[str, Any]:
    """Run a process to its end, or kill it; what it took, and when each of its lines of progress came."""
    began, peak, cpu = time.monotonic(), 0.0, 0.0
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "VmHWM" in status:
                peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) / 1024)
                ticks = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
                cpu = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
            if kill_after is not None and time.monotonic() - began > kill_after:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.5)
    return {
        "status": process.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(peak),
        "images_encoded": max(map(int, re.findall(r"encoding images: (\d+)/", log.read_text())), default=0),
        "told": log.read_text().splitlines()[-12:],
    }


def compared(folder: Path, planted: dict[str, list[str]]) -> dict[str, Any]:
    """The audit against what was planted: recall and precision of every kind, and the ratio."""
    table = pq.read_table(folder / "audit" / "audit.parquet").to_pydict()
    pairs = Pairs.read(folder / "pairs.csv", skip_bad=True)
    number = {name: place for place, name in enumerate(pairs.images)}
    truth = dict(zip(pairs.pair_ids, pairs.is_mismatched, strict=True))
    given = dict(zip(table["pair_id"], table["image"], strict=True))
    is_mismatched = np.array([truth[name] for name in table["pair_id"]])
    detection = measure_detection(np.array(table["match_probability"]), is_mismatched)
    copied = {f"images/{int(name):05d}.jpg" for kind in ("copies", "near", "originals") for name in planted[kind]}
    expected = {
        "near_duplicate_image": {pair for pair, image in given.items() if image in copied},
        "uninformative_caption": set(planted["silent"]) & set(given),
    }
    flags = {}
    for kind, wanted in expected.items():
        flagged = {pair for pair, flag in zip(given, table[f"is_{kind}_issue"], strict=True) if flag}
        flags[kind] = {
            "planted": len(wanted),
            "flagged": len(flagged),
            "recall": len(wanted & flagged) / len(wanted),
            "precision": len(wanted & flagged) / max(1, len(flagged)),
        }
    with (folder / "audit" / "left_out.csv").open(newline="") as file:
        left_out = len(list(csv.DictReader(file)))
    return {
        "images": len(number),
        "truly_mismatched": float(is_mismatched.mean()),
        "broken": {"planted": len(planted["broken"]), "left_out": left_out},
        "detection": detection.to_dict(),
        "flags": flags,
    }


def encoding_rate(processes: list[dict[str, Any]]) -> float:
    """Images a second, from the process that was killed while it encoded."""
    return processes[0]["images_encoded"] / processes[0]["seconds"]


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
