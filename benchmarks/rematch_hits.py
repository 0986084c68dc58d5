"""What rematching a whole data set finds: true partners first and among ten, and what confidences are worth.

`python benchmarks/rematch_hits.py RUN --data DATA --mismatch INDEX.npy --json FILE`

A row each for the best-scoring image (`nearest`: the given one left out), the best-scoring one with room for half a
caption or more beside its likely own (`with room`), and the plan at both levels; with the run's match probabilities, at
several thresholds. Hits are of the truly mismatched captions that the threshold suspects, and of all truly mismatched
captions. `calibration` has ten equal parts of the suspects by confidence, highest first: mean confidence, and how often
the suggestion is right. Training pairs only.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from l2rm.auditing.rematch import rematch_scores
from l2rm.evaluation.detection import measure_detection, measure_rematch
from l2rm.evaluation.evaluate import model_scores
from l2rm.rematching.candidates import nearest_images
from l2rm.sources import DataConfig, open_rows
from l2rm.training.run import load_run, write_json


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--mismatch", type=Path, required=True)
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.5, 0.9])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    run = load_run(options.run)
    pairs = open_rows(DataConfig(source=options.data, mismatch=options.mismatch))
    probability, truth, wrong = run.match_probability(pairs), pairs.true_image_of, pairs.is_mismatched
    assert probability is not None
    assert truth is not None
    assert wrong is not None
    scores = model_scores(run.model, pairs)
    result: dict[str, Any] = {
        **provenance(),
        "mismatch": options.mismatch.name,
        "rematching": {"folds": run.config.rematching.folds, "evidence": run.config.rematching.evidence},
        "captions": len(pairs),
        "detection": measure_detection(probability, wrong).to_dict(),
        "rows": [],
    }
    for threshold in options.thresholds:
        suspect = probability < threshold
        room = np.bincount(pairs.image_of) - np.bincount(pairs.image_of, probability)
        rows, both = np.flatnonzero(suspect), suspect & wrong
        suggested: dict[str, Any] = {}
        for name, images in (("nearest", None), ("with room", np.flatnonzero(room >= 0.5))):
            found = nearest_images(
                scores, candidates=10, captions=rows, images=images, forbidden=pairs.image_of[rows]
            ).images
            suggested[name] = np.full((len(pairs), 10), -1)
            suggested[name][rows] = found
        plans = {}
        for level in ("caption", "image"):
            plans[f"plan, {level}"] = plan = rematch_scores(
                scores, pairs, match_probability=probability, keep_threshold=threshold, level=level, progress=False
            )
            suggested[f"plan, {level}"] = plan.suggested
        for name, images in suggested.items():
            row: dict[str, Any] = {"threshold": threshold, "by": name, "suspects": len(rows)}
            row["of_suspects"] = measure_rematch(images[both], truth[both]).to_dict()
            row["of_all"] = measure_rematch(images[wrong], truth[wrong]).to_dict()
            if name in plans:
                plan = plans[name]
                confidence, right = plan.confidence[rows], plan.suggested[rows, 0] == truth[rows]
                parts = np.array_split(np.argsort(-confidence), 10)
                row |= {"reg": plan.reg, "share": plan.share}
                row["calibration"] = [[float(confidence[part].mean()), float(right[part].mean())] for part in parts]
            result["rows"].append(row)
            hits = [100 * row[of][k] for of in ("of_suspects", "of_all") for k in ("hit1", "hit10")]
            print(f"{threshold} {name:<14}" + "".join(f"{hit:7.1f}" for hit in hits), flush=True)
    write_json(options.json, result)


if __name__ == "__main__":
    main()
