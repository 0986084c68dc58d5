"""What a shortlist does to R@K: the cascade against exact scores, on a trained run and a split of its data.

`python benchmarks/cascade.py RUN --data DATA [--split dev] [--shares 0.1 0.2] [--precision bfloat16] --json FILE`
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from l2rm.data.batches import Batches
from l2rm.data.formats import read_pairs
from l2rm.evaluation.metrics import evaluate_scores
from l2rm.evaluation.scores import MatrixScores
from l2rm.similarity.cascade import cascade
from l2rm.training.run import load_run, write_json


@torch.no_grad()
def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.1, 0.2, 0.4])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], nargs="*", default=["float32"])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    pairs = read_pairs(options.data, split=options.split)
    model = load_run(options.run).model.eval()
    batches = Batches(pairs, model.vocabulary, next(model.parameters()).device)
    result: dict[str, Any] = {**provenance(), "split": options.split, "images": pairs.n_images, "captions": len(pairs)}
    result["rows"] = []
    for precision in options.precision:
        model.precision = precision
        image = model.encode_images(batches.images(np.arange(pairs.n_images)))
        caption = model.encode_captions(*batches.captions(np.arange(len(pairs))))
        for share in (None, *options.shares):
            began = time.perf_counter()
            S = model.score(image, caption) if share is None else cascade(model, image, caption, share)
            seconds = time.perf_counter() - began
            found = evaluate_scores(MatrixScores(S), pairs.image_of).to_dict()
            scored = float((model.range[0] <= S).float().mean())
            row = {"precision": precision, "share": share, "scored": scored, "seconds": seconds, **found}
            result["rows"].append(row)
            cells = (found[way][k] for way in ("i2t", "t2i") for k in ("r1", "r5", "r10"))
            told = "exact" if share is None else f"share {share}"
            print(f"{precision} {told:<10} scored {scored:.3f}", *(f"{cell:5.1f}" for cell in cells), flush=True)
            write_json(options.json, result)


if __name__ == "__main__":
    main()
