"""Rematching a large data set: seconds and memory of the candidate search and of sparse partial transport.

`python benchmarks/rematch.py --json FILE [--images 40000] [--captions-per-image 5] [--candidates 64] [--dim 256]`

The embeddings are synthetic: images lie around 2,000 centres (`image = centre + normal`), each caption near its image
(`caption = image + noise * normal`), everything of unit variance in each of the dimensions. All captions are taken as
mismatched, each image has room for as many as it truly has, and the mass is 90 % of the captions. Two kinds, by noise:
"clear" (1.5), where most captions find their image, and "vague" (8), where captions compete for images.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from l2rm.rematching.candidates import EmbeddingScores, nearest_images
from l2rm.rematching.dataset import sparse_transport
from l2rm.training.run import write_json

NOISE = {"clear": 1.5, "vague": 8.0}


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--captions-per-image", type=int, default=5)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--reg", type=float, nargs="*", default=[0.05, 0.01])
    parser.add_argument("--kinds", choices=list(NOISE), nargs="*", default=list(NOISE))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        **provenance(),
        "images": options.images,
        "captions": options.images * options.captions_per_image,
        "candidates": options.candidates,
        "dim": options.dim,
        "threads": options.threads,
        "rows": [],
    }
    for kind in options.kinds:
        for row in measure(kind, options):
            result["rows"].append(row)
            print(json.dumps(row), flush=True)
            write_json(options.json, result)


def measure(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each reg, over one candidate search."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(options.images), options.captions_per_image)
    centres = rng.standard_normal((2000, options.dim), dtype=np.float32)
    images = centres[rng.integers(2000, size=options.images)]
    images += rng.standard_normal(images.shape, dtype=np.float32)
    captions = images[truth] + NOISE[kind] * rng.standard_normal((len(truth), options.dim), dtype=np.float32)
    clock = Clock()
    found = nearest_images(EmbeddingScores(images, captions), candidates=options.candidates)
    search = clock.read()
    place, image, score = found.cells
    rows = []
    for reg in options.reg:
        clock = Clock()
        plan = sparse_transport(
            place,
            image,
            -score,
            weights=np.ones(len(truth)),
            capacities=np.full(options.images, float(options.captions_per_image)),
            mass=0.9 * len(truth),
            reg=reg,
        )
        transport = clock.read()
        rows.append(
            {
                "kind": kind,
                "reg": reg,
                "cells": len(score),
                **{f"search_{name}": value for name, value in search.items()},
                **{f"transport_{name}": value for name, value in transport.items()},
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "iterations": plan.iterations,
                "converged": plan.converged,
                "marginal_error": plan.marginal_error,
                "mass": plan.mass,
                "hit1_nearest": float((found.images[:, 0] == truth).mean()),
                "hit1_plan": float((plan.partner == truth).mean()),
                "mean_confidence": float(plan.confidence.mean()),
            }
        )
    return rows


class Clock:
    """Seconds on the wall and seconds of all processors."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Since the beginning."""
        return {
            "seconds": round(time.perf_counter() - self.wall, 1),
            "cpu_seconds": round(time.process_time() - self.cpu, 1),
        }


if __name__ == "__main__":
    main()
