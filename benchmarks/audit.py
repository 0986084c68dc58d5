"""An audit of many raw image files, end to end: time, memory, two kills on the way, and how right it is.

`python benchmarks/audit.py --folder FOLDER --json benchmarks/results/audit.json [--images 50000] [--tiny]`

Draws --images JPEGs of 240 to 400 pixels a side (two OpenMoji drawings on a coloured ground, with a text that names
them), gives --ratio of the images texts of others, plants copies, texts of no information and broken files, and runs
`l2rm audit --encoder efficientnet-lite0` on them, a process of its own. It is killed (-9) in the middle of encoding, is
called again, is killed in the middle of cross-fitting, and is called again. What is finished in FOLDER is not done
again, so the script itself can be stopped, too.

Whether the result is what an audit that nobody killed finds is tried on the first --compared rows, once killed twice
and once not, both from nothing. Seconds of a stage are those between its first sign (a line on standard error, or a
file) and the next stage's; the audit writes a line every ten seconds, so they are rough. Memory is that of all its
processes; see `watching`. Linux only.
"""

import argparse
import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pictures_drawn import draw, first_rows
from provenance import provenance
from watching import Watch

from l2rm.data.pairs import Pairs
from l2rm.evaluation.detection import measure_detection
from l2rm.training.run import write_json

STAGES = ("encoding images", "comparing pictures", "comparing pixels", "learning to judge", "auditing")
"""What the audit says that it is doing, in this order."""
JUDGED = re.compile(r"(\d+) folds were judged before")


@dataclass(frozen=True)
class Place:
    """Where an audit reads and writes: a table, and a folder for its cache and its results."""

    table: Path
    work: Path

    @property
    def out(self) -> Path:
        return self.work / "audit"

    def encoded(self) -> int:
        """Images whose features are on the disk."""
        return sum(path.stat().st_size for path in (self.work / "cache" / "features").glob("*.stamps")) // 16

    def judged(self) -> int:
        """Folds of the cross-fit that are on the disk."""
        return len(list((self.work / "cache" / "crossfit").glob("*/*.safetensors")))


def main() -> None:
    """Draw, audit, compare with what was planted, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for pictures, caches and results")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--compared", type=int, default=2_000, help="rows audited from nothing, killed and not")
    parser.add_argument("--ratio", type=float, default=0.4)
    parser.add_argument("--tiny", action="store_true", help="160 images, to try the script")
    options = parser.parse_args()
    images = 160 if options.tiny else options.images
    compared = min(images, options.compared)
    folder = options.folder / str(images)
    planted = draw(folder, images, options.ratio)
    table = folder / "pairs.csv"
    kept = _Kept(folder / "processes.json")
    whole = Place(table, folder / "whole")
    killed = kept.taken("whole", lambda: killed_twice(whole, images))
    few, few_killed = table, whole
    if compared < images:
        few = first_rows(table, compared, folder / "few.csv")
        few_killed = Place(few, folder / "few-killed")
        kept.taken("few, killed", lambda: killed_twice(few_killed, compared))
    not_killed = Place(few, folder / "few-whole")
    kept.taken("few, not killed", lambda: [ended(not_killed)])
    write_json(
        options.json,
        {
            "data": f"{images} drawn JPEGs of 240 to 400 pixels a side, {options.ratio:.0%} mismatched at image level",
            **provenance(),
            "nice": os.nice(0),
            "load_average": os.getloadavg()[1],
            "processes": killed,
            "seconds": round(sum(one["seconds"] for one in killed), 1),
            "cpu_seconds": round(sum(one["cpu_seconds"] for one in killed), 1),
            "private_mib": max(one["private_mib"] for one in killed),
            "proportional_mib": max(one["proportional_mib"] for one in killed),
            "stages": {name: sum(one["stages"].get(name, 0) for one in killed) for name in (*STAGES, "writing")},
            "stages_told_with_an_estimate": sorted({name for one in killed for name in one["estimated"]}),
            "same_as_not_killed": {"rows": compared, "same": same(few_killed, not_killed)},
            "report_mib": round((whole.out / "report.html").stat().st_size / 2**20, 2),
            **truth(whole, planted),
        },
    )
    print(options.json.read_text())


class _Kept:
    """What was measured, in a file: a script that was stopped does not do it again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def taken(self, name: str, measure: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        if name not in self._found:
            self._found[name] = measure()
            self._path.write_text(json.dumps(self._found))
        found: list[dict[str, Any]] = self._found[name]
        return found


def killed_twice(place: Place, images: int) -> list[dict[str, Any]]:
    """An audit killed in the middle of encoding and in that of cross-fitting: its three processes."""
    shutil.rmtree(place.work, ignore_errors=True)
    first = watched(place, kill=lambda: place.encoded() >= images // 2)
    second = watched(place, kill=lambda: place.judged() >= 4)
    assert [first["status"], second["status"]] == [-signal.SIGKILL, -signal.SIGKILL], (first, second)
    return [first, second, ended(place)]


def ended(place: Place) -> dict[str, Any]:
    """An audit that nobody kills."""
    found = watched(place)
    if found["status"] != 0:
        raise SystemExit("\n".join(found["told"]))
    return found


def watched(place: Place, *, kill: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Run an audit to its end, or kill it; what it took, and when each of its lines came."""
    command = [sys.executable, "-m", "l2rm", "audit", str(place.table), "--encoder", "efficientnet-lite0"]
    command += ["--skip-bad", "--out", str(place.out)]
    before = place.encoded(), place.judged()
    environment = os.environ | {"L2RM_CACHE": str(place.work / "cache"), "PYTHONUNBUFFERED": "1"}
    lines: list[tuple[float, str]] = []
    began = time.monotonic()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - began, line.rstrip()))
            print(f"{lines[-1][0]:7.0f} s  {lines[-1][1]}", file=sys.stderr, flush=True)

    reader = threading.Thread(target=read)
    reader.start()
    first_sign: dict[str, float] = {}
    with Watch(process.pid) as watch:
        while process.poll() is None:
            if place.encoded() > before[0]:
                first_sign.setdefault("encoding images", time.monotonic() - began)
            if kill():
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.05)
    reader.join()
    for when, line in lines:
        for stage in STAGES:
            if line.startswith(f"{stage}: "):
                first_sign.setdefault(stage, when)
    return {
        "status": process.returncode,
        **watch.facts(),
        "images_encoded": place.encoded() - before[0],
        "folds_at_start": before[1],
        "folds_taken_over": max((int(found[1]) for _, line in lines if (found := JUDGED.search(line))), default=0),
        "stages": durations(first_sign, lines, watch.seconds),
        "estimated": sorted({line.split(":")[0] for _, line in lines if re.search(r"\d+/\d+, about \d+ s left", line)}),
        "told": [line for _, line in lines][-12:],
    }


def durations(first_sign: dict[str, float], lines: list[tuple[float, str]], end: float) -> dict[str, float]:
    """Seconds of each stage that gave a sign, from there to the next."""
    ends = dict(first_sign)
    if summary := [when for when, line in lines if " suspected to be mismatched" in line]:
        ends["writing"] = summary[0]
    names = sorted(ends, key=lambda name: ends[name])
    times = [*(ends[name] for name in names), end]
    return {name: round(times[place + 1] - times[place], 1) for place, name in enumerate(names)}


def same(one: Place, other: Place) -> bool:
    """Whether two audits wrote the same table, bit by bit of every number."""
    tables = [pq.read_table(place.out / "audit.parquet") for place in (one, other)]
    return bool(tables[0].equals(tables[1]))


def truth(place: Place, planted: dict[str, list[str]]) -> dict[str, Any]:
    """The audit against what was planted: recall and precision of every kind, confidences, and the ratio."""
    table = pq.read_table(place.out / "audit.parquet").to_pydict()
    pairs = Pairs.read(place.table, skip_bad=True)
    assert pairs.is_mismatched is not None
    assert pairs.true_image_of is not None
    wrong_of = dict(zip(pairs.pair_ids, pairs.is_mismatched, strict=True))
    true_image = {name: pairs.images[image] for name, image in zip(pairs.pair_ids, pairs.true_image_of, strict=True)}
    given = dict(zip(table["pair_id"], table["image"], strict=True))
    is_mismatched = np.array([wrong_of[name] for name in table["pair_id"]])
    is_right = np.array([true_image[a] == b for a, b in zip(table["pair_id"], table["rematch_image"], strict=True)])
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
            "recall": len(wanted & flagged) / max(1, len(wanted)),
            "precision": len(wanted & flagged) / max(1, len(flagged)),
        }
    with (place.out / "left_out.csv").open(newline="") as file:
        left_out = len(list(csv.DictReader(file)))
    return {
        "truly_mismatched": float(is_mismatched.mean()),
        "broken": {"planted": len(planted["broken"]), "left_out": left_out},
        "detection": detection.to_dict(),
        "confidences_of_suspects": reliability(
            np.array(table["rematch_confidence"])[table["is_mismatched"]], is_right[table["is_mismatched"]]
        ),
        "decisions": {name: table["decision"].count(name) for name in ("keep", "rematch", "drop")},
        "flags": flags,
    }


def reliability(confidence: np.ndarray, is_right: np.ndarray) -> list[dict[str, float]]:
    """How often suggestions were right, by the confidence they were given."""
    edges = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)
    found = []
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            found.append(
                {"suggestions": int(inside.sum()), "mean_confidence": round(float(confidence[inside].mean()), 3),
                 "right": round(float(is_right[inside].mean()), 3)}
            )  # fmt: skip
    return found


if __name__ == "__main__":
    main()
