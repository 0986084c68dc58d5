"""How much memory training and evaluation take, each measurement in a process of its own.

`python benchmarks/memory.py --json benchmarks/results/memory.json [--folder /tmp] [--only NAME]`

The file is written after every measurement, and one that it has already is not taken again (`--again` does); its
`seconds` are what it took on one core.

* training: images of 36 × 2,048 float16 numbers in a precomp folder made on the fly, cosine at small dimensions,
  batches of 128, a warm-up epoch, a division and an epoch of rematching. Ten times as many images for the same number
  of captions, so that what grows, grows by images; then five captions an image, as in published sets (warm-up only).
* evaluation: 5,000 images × 25,000 captions, exactly, SGR at small dimensions (8 regions, D = 16, S = 8, one graph
  step, captions of 1 to 3 words), with no encoded image or caption kept. These are small so that 125 million pairs take
  minutes.
* evaluation, published dimensions: as many images and captions at D = 1,024 and S = 256. Blocks are all alike, so a few
  of the 400 tell the memory of all of them.

Three figures are taken. A memory-mapped file that was read counts as resident as long as the system has no better use
for its pages, so resident memory says little. `anonymous_mib` is the highest of RssAnon, what the process has for
itself (looked at every 20 ms); `at_start_mib` is RssAnon once all of this is imported, before any data are there.
`resident_mib` is VmHWM, the highest of all resident memory, mapped pages included. (`ru_maxrss` of getrusage would be
the same, but starts from what the parent process had.) Reads /proc, so this runs on Linux only.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from provenance import provenance

from l2rm.data.features import Features
from l2rm.data.formats import read_splits
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.evaluation.metrics import evaluate_scores
from l2rm.evaluation.scores import Scores
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.model import build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.run import write_json
from l2rm.training.settings import TrainConfig
from l2rm.training.train import train

REGIONS = 36
SMALL = ModelConfig(embed_dim=32, similarity_dim=16, word_dim=32, min_word_count=1)
SMALLER = ModelConfig(embed_dim=16, similarity_dim=8, graph_steps=1, word_dim=32, min_word_count=1)
PIECE = 500
"""Images made at a time."""
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "full": {
        "training, 3,000 images, 30,000 captions": {"images": 3_000, "captions": 10, "dim": 2048},
        "training, 30,000 images, 30,000 captions": {"images": 30_000, "captions": 1, "dim": 2048},
        "training, 30,000 images, 150,000 captions": {"images": 30_000, "captions": 5, "dim": 2048, "rematching": 0},
        "evaluation": {"images": 5_000, "regions": 8, "dim": 64, "words": 3},
        "evaluation, published dimensions, 2 blocks": {"images": 5_000, "dim": 2048, "words": 16, "blocks": 2},
    },
    "tiny": {
        "training": {"images": 256, "captions": 2, "dim": 32},
        "evaluation": {"images": 40, "regions": 8, "dim": 16, "words": 3},
        "evaluation, 1 block": {"images": 20, "dim": 16, "words": 3, "blocks": 1},
    },
}


# ----------------------------------------------------------------------------------------------- memory of a process


def status(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {name}; this needs Linux")


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The figures of the module's docstring, for what happens inside the block; there when it has ended."""
    found = {"at_start_mib": status("RssAnon"), "anonymous_mib": 0.0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            found["anonymous_mib"] = max(found["anonymous_mib"], status("RssAnon"))

    began = time.perf_counter()
    observer = threading.Thread(target=look)
    observer.start()
    try:
        yield found
    finally:
        ended.set()
        observer.join()
    found["anonymous_mib"] = max(found["anonymous_mib"], status("RssAnon"))
    found |= {"resident_mib": status("VmHWM"), "seconds": time.perf_counter() - began}


# ------------------------------------------------------------------------------------------------------------- data


def write_features(path: Path, images: int, dim: int, regions: int = REGIONS) -> None:
    """Random float16 features; a piece of them is drawn, and written again and again."""
    free = shutil.disk_usage(path.parent).free
    needed = images * regions * dim * 2
    if free < 1.2 * needed:
        sys.exit(f"{path.parent}: {free >> 20} MiB free, {needed >> 20} MiB needed; choose another --folder")
    piece = np.random.default_rng(0).standard_normal((min(PIECE, images), regions, dim), dtype=np.float32)
    array = open_memmap(path, mode="w+", dtype=np.float16, shape=(images, regions, dim))
    for start in range(0, images, PIECE):
        array[start : start + PIECE] = piece[: images - start]
    array.flush()


def sentences(count: int, words: int) -> tuple[str, ...]:
    """Captions of 1 to `words` words, about 8,000 different ones."""
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, words + 1, size=count)
    return tuple(" ".join(f"word{word}" for word in generator.integers(8000, size=length)) for length in lengths)


def write_precomp(folder: Path, size: dict[str, int]) -> Path:
    """A precomp folder with a train and a small dev split."""
    for split, images in (("train", size["images"]), ("dev", min(100, size["images"]))):
        write_features(folder / f"{split}_ims.npy", images, size["dim"])
        captions = [
            f"picture{row // size['captions'] % PIECE} {text}"  # something to learn, so that a division finds two kinds
            for row, text in enumerate(sentences(images * size["captions"], words=12))
        ]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


# ------------------------------------------------------------------------------------------------------ measurements


def measure_training(folder: Path, size: dict[str, int]) -> dict[str, Any]:
    """Warm-up, division, rematching."""
    config = TrainConfig(
        warmup_epochs=1,
        rematching_epochs=size.get("rematching", 1),
        batch_size=128,
        model=replace(SMALL, similarity="cosine"),
        lr=0.01,
        rematching=RematchingConfig(take="weight"),
        device="cpu",
    )
    with watched() as found:
        splits = read_splits(folder)
        noisy = inject_mismatches(splits["train"], ratio=0.4, level="image", seed=0)
        run = train(noisy.pairs, splits["dev"], config, folder / "run", progress=False)
    features = noisy.pairs.features
    assert features is not None
    return {
        "captions": len(noisy.pairs),
        "features_on_disk_mib": features.array.nbytes / 2**20,
        "steps": [line["steps"] for line in run.metrics],
        "rematched_from": [line["division"]["mismatched"] for line in run.metrics if line["division"]],
        **found,
    }


def measure_evaluation(folder: Path, size: dict[str, int]) -> dict[str, Any]:
    """All ranks; or, with `blocks`, the first so many blocks of them at the published dimensions."""
    regions = size.get("regions", REGIONS)
    write_features(folder / "ims.npy", size["images"], size["dim"], regions)
    torch.manual_seed(0)
    with watched() as found:
        captions = sentences(5 * size["images"], size["words"])
        pairs = Pairs(
            images=tuple(map(str, range(size["images"]))),
            image_of=np.arange(len(captions)) // 5,
            captions=captions,
            features=Features.open(folder / "ims.npy"),
        )
        vocabulary = Vocabulary.build(captions, min_count=1)
        shape = DataShape(image_dim=size["dim"], regions=regions, vocabulary_size=len(vocabulary))
        model = build_model(ModelConfig() if size["dim"] == 2048 else SMALLER, shape)
        model.vocabulary = vocabulary
        result: dict[str, Any] = {"captions": len(pairs)}
        if "blocks" in size:
            scores = ModelScores(model, pairs)
            result["blocks"] = len(list(islice(blocks(scores), size["blocks"])))
        else:
            metrics = evaluate_scores(ModelScores(model, pairs, keep=0), pairs.image_of)
            result["rsum"] = metrics.rsum
    return {**result, **found}


def blocks(scores: Scores) -> Iterator[torch.Tensor]:
    """Blocks of 256 images × 1,280 captions, as ranking asks for them."""
    for start in range(0, scores.n_images, 256):
        images = np.arange(start, min(start + 256, scores.n_images))
        yield scores.block(images, np.arange(5 * images[0], 5 * images[-1] + 5))


# --------------------------------------------------------------------------------------------------------- processes


def in_own_process(scale: str, name: str, parent: Path) -> dict[str, Any]:
    """One measurement, in a new process and a temporary folder below `parent`; the data are made by yet another one."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="l2rm-memory-") as folder:
        if name.startswith("training"):
            write_precomp(Path(folder), SIZES[scale][name])
        command = [sys.executable, __file__, "--scale", scale, "--measure", name, "--folder", folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{name}: the measuring process ended with status {done.returncode}")
        found: dict[str, Any] = json.loads(done.stdout)
        return {**SIZES[scale][name], **found}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where data are made")
    parser.add_argument("--tiny", dest="scale", action="store_const", const="tiny", default="full", help="in seconds")
    parser.add_argument("--only", default="", help="measurements whose names begin so")
    parser.add_argument("--again", action="store_true", help="take measurements anew that FILE has already")
    parser.add_argument("--scale", help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        measure = measure_training if options.measure.startswith("training") else measure_evaluation
        print(json.dumps(measure(options.folder, SIZES[options.scale][options.measure])))
        return
    source = provenance()
    known: dict[str, Any] = {}
    if options.json is not None and options.json.is_file():
        known = json.loads(options.json.read_text(encoding="utf-8"))["measurements"]
    for name in SIZES[options.scale]:
        if not name.startswith(options.only) or (name in known and not options.again):
            continue
        known[name] = in_own_process(options.scale, name, options.folder) | source
        told = ", ".join(f"{key} {known[name][key]:.0f}" for key in ("anonymous_mib", "resident_mib", "seconds"))
        print(f"{name}: {told}", flush=True)
        if options.json is not None:
            ordered = {key: known[key] for key in SIZES[options.scale] if key in known}
            write_json(options.json, {**source, "threads": 1, "measurements": ordered})


if __name__ == "__main__":
    main()
