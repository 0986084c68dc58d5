"""What bfloat16 costs in retrieval: evaluation of a model trained in float32, and training.

`python benchmarks/bfloat16.py RUN --data DATA --work FOLDER --json FILE [--scores FILE.npy] [--only PART]`

* evaluation: RUN on the dev split, in float32 and in bfloat16. `--scores` are exact float32 scores that
  `benchmarks/cascade.py` kept.
* training: SGR at D = 32 and S = 16 by the warm-up objective on the first 400 training images of DATA, three seeds in
  each precision; the best of four epochs on the first 200 dev images, whose scores are computed in the same precision.

The file is written after each part and run; what it has already is not measured again, and stopped runs go on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from l2rm.data.formats import read_splits
from l2rm.data.pairs import Pairs
from l2rm.evaluation.evaluate import model_scores
from l2rm.evaluation.metrics import evaluate_scores
from l2rm.evaluation.scores import KeptScores, MatrixScores, Scores
from l2rm.similarity.settings import ModelConfig
from l2rm.training.run import load_run, write_json
from l2rm.training.settings import TrainConfig
from l2rm.training.train import train

SEEDS = (0, 1, 2)
IMAGES, DEV_IMAGES, EPOCHS = 400, 200, 4
PRECISIONS = ("float32", "bfloat16")


def measure_evaluation(folder: Path, dev: Pairs, scores: Path | None) -> dict[str, Any]:
    """Metrics of both precisions and how far their scores are apart."""
    model = load_run(folder).model
    found: dict[str, Any] = {"images": dev.n_images, "captions": len(dev)}
    known = None if scores is None else np.load(scores, allow_pickle=False)
    exact: Scores = KeptScores(model_scores(model, dev)) if known is None else MatrixScores(known)
    found["float32"] = evaluate_scores(exact, dev.image_of).to_dict()
    model.precision = "bfloat16"
    began = time.perf_counter()
    rough = KeptScores(model_scores(model, dev, progress=True))
    found["bfloat16"] = evaluate_scores(rough, dev.image_of, progress=True).to_dict()
    everything = np.arange(dev.n_images), np.arange(len(dev))
    difference = (exact.block(*everything) - rough.block(*everything)).abs()
    found |= {"seconds": time.perf_counter() - began, "threads": torch.get_num_threads()}
    found |= {"mean_difference": float(difference.mean()), "max_difference": float(difference.max())}
    return found | {"rsum_lost": found["float32"]["rsum"] - found["bfloat16"]["rsum"]}


def measure_training(pairs: Pairs, dev: Pairs, precision: str, seed: int, out: Path) -> dict[str, Any]:
    """The best epoch's metrics, and every epoch's rSum."""
    config = TrainConfig(
        method="warmup",
        warmup_epochs=EPOCHS,
        rematching_epochs=0,
        batch_size=64,
        lr=5e-3,
        seed=seed,
        device="cpu",
        model=ModelConfig(embed_dim=32, similarity_dim=16, word_dim=64, precision=precision, min_word_count=2),  # type: ignore[arg-type]
    )
    run = train(pairs, dev, config, out, resume=True, progress=False)
    epochs = [line["dev"]["rsum"] for line in run.metrics]
    seconds = sum(sum(line["seconds"].values()) for line in run.metrics)
    return {"precision": precision, "seed": seed, "rsum": max(epochs), "epochs": epochs, "seconds": seconds}


def first_images(pairs: Pairs, count: int) -> Pairs:
    """The pairs of the first images."""
    return pairs.take(np.flatnonzero(pairs.image_of < count))


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True, help="where the trained runs go")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--scores", type=Path)
    parser.add_argument("--only", choices=["evaluation", "training"])
    options = parser.parse_args()
    splits = read_splits(options.data)
    result: dict[str, Any] = {}
    if options.json.is_file():
        result = json.loads(options.json.read_text(encoding="utf-8"))
    if options.only != "training" and "evaluation" not in result:
        result["evaluation"] = measure_evaluation(options.run, splits["dev"], options.scores) | provenance()
        write_json(options.json, result)
        print(json.dumps(result["evaluation"], indent=1), flush=True)
    if options.only != "evaluation":
        pairs, dev = first_images(splits["train"], IMAGES), first_images(splits["dev"], DEV_IMAGES)
        part = result.setdefault("training", {"images": IMAGES, "dev_images": DEV_IMAGES, "runs": []})
        for seed in SEEDS:
            for precision in PRECISIONS:
                if any((run["precision"], run["seed"]) == (precision, seed) for run in part["runs"]):
                    continue
                found = measure_training(pairs, dev, precision, seed, options.work / f"{precision}-{seed}")
                part["runs"].append(found | provenance())
                write_json(options.json, result)
                print(found, flush=True)
        for precision in PRECISIONS:
            rsums = [run["rsum"] for run in part["runs"] if run["precision"] == precision]
            part[precision] = {"mean": statistics.mean(rsums), "deviation": statistics.stdev(rsums)}
        write_json(options.json, result)
        print({precision: part[precision] for precision in PRECISIONS})


if __name__ == "__main__":
    main()
