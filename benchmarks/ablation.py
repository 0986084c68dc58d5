"""What each part of the method is worth by itself, on dev of Flickr8k.

`python benchmarks/ablation.py --data DATA [--mismatch image_40.npy] [--seeds 0 1] [--rows NAME …] --work FOLDER`

DATA is a precomp folder of Flickr8k with an index file in it that mismatches its training pairs. Every row changes one
thing of the recipe `dual`, or of the same with plans of a batch. Rows that differ only after the warm-up start
from one and the same warm-up, those that share a division from the same division, so that what differs is the part and
not chance. A row a run is appended to `benchmarks/results/ablation.jsonl`; called again it does what is missing.
`ablation.json` and `ablation.md` sum them up. The test split is not looked at.
"""

import argparse
import json
import logging
import shutil
import statistics
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from provenance import provenance

from l2rm.benchmark.grid import overridden
from l2rm.data.formats import read_splits
from l2rm.data.mismatch import read_index
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.evaluation.detection import measure_detection
from l2rm.files import written_whole
from l2rm.recipes import dual
from l2rm.similarity.model import build_model
from l2rm.training.run import read_lines, write_json, write_lines
from l2rm.training.settings import TrainConfig
from l2rm.training.state import load_state
from l2rm.training.train import data_shape, train
from l2rm.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "ablation.jsonl"
SHARED = ("evidence", "match_probability", "cross_fitted", "folds")
"""What a division leaves in the state of a method."""
BATCH = {"scope": "batch", "targets": "mass", "mass": 0.3, "reg": 0.03, "rematch_weight": 0.1}
"""Plans of a batch, as the recipe `quickstart` had them when this was measured."""
LOSSES = {"folds": 0, "evidence": "image", "estimator": "moments", "one_mode": "mixture"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing changed. `beside`: the row that it differs from; `start`: how far it shares what came before."""

    name: str
    beside: str
    rematching: dict[str, Any] = field(default_factory=dict)
    method: Literal["l2rm", "division"] = "l2rm"
    start: Literal["warm-up", "division", "nothing"] = "warm-up"

    def config(self, seed: int) -> TrainConfig:
        """Of a run."""
        config = overridden(dual(), {"rematching": self.rematching}, self.name)
        return replace(config, method=self.method, seed=seed)


BASE, BASE_BATCH = "l2rm", "plans of a batch"
ROWS = (
    Row(name=BASE, beside=BASE),
    Row(name=BASE_BATCH, beside=BASE, rematching=BATCH),
    Row(name="no rematching", beside=BASE, method="division"),
    Row(name="equivariant cost", beside=BASE, rematching={"cost": "equivariant"}),
    Row(name="plans of a batch, equivariant cost", beside=BASE_BATCH, rematching={**BATCH, "cost": "equivariant"}),
    Row(name="plans of a batch, memory of 4,096", beside=BASE_BATCH, rematching={**BATCH, "memory": 4096}),
    Row(
        name="plans of a batch, memory, equivariant cost",
        beside=BASE_BATCH,
        rematching={**BATCH, "memory": 4096, "cost": "equivariant"},
    ),
    Row(name="threshold instead of weights", beside=BASE, rematching={"take": "threshold"}, start="division"),
    Row(name="one plan, not repeated", beside=BASE, rematching={"rematch_every": 4}),
    Row(name="plans of a batch, rows instead of masses", beside=BASE_BATCH, rematching={**BATCH, "targets": "rows"}),
    Row(name="plans of a batch, mass 0.1", beside=BASE_BATCH, rematching={**BATCH, "mass": 0.1}),
    Row(name="plans of a batch, mass 0.9", beside=BASE_BATCH, rematching={**BATCH, "mass": 0.9}),
    Row(name="one round of division", beside=BASE, rematching={"fold_rounds": 1}, start="nothing"),
    Row(name="captions by themselves", beside=BASE, rematching={"evidence": "pair"}, start="nothing"),
    Row(name="division by losses, Beta", beside=BASE, rematching=LOSSES, start="nothing"),
    Row(
        name="division by losses, Gaussian", beside=BASE, rematching={**LOSSES, "mixture": "gaussian"}, start="nothing"
    ),
)


def main() -> None:
    """Run what is missing, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mismatch", default="image_40.npy")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--rows", nargs="*", default=[row.name for row in ROWS], choices=[row.name for row in ROWS])
    parser.add_argument("--work", type=Path, required=True, help="where runs lie meanwhile")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    splits = read_splits(options.data)
    pairs = read_index(options.data / options.mismatch, splits["train"]).pairs
    done = {(row["row"], row["seed"]) for row in read_lines(options.results)}
    for seed in options.seeds:
        for row in ROWS:
            if row.name in options.rows and (row.name, seed) not in done:
                found = measured(row, seed, pairs, splits["dev"], options.work)
                found = {**found, "mismatch": options.mismatch, **provenance()}
                write_lines(options.results, [*read_lines(options.results), found])
                print(json.dumps(found), flush=True)
    summed_up(options.results)


def measured(row: Row, seed: int, pairs: Pairs, dev: Pairs, work: Path) -> dict[str, Any]:
    """Train one row; what it reached on dev, and what it found out about its training pairs."""
    config, folder = row.config(seed), work / "run"
    shutil.rmtree(folder, ignore_errors=True)
    features = (part.features for part in (pairs, dev))
    pooled, dev_pooled = (one.pooled() for one in features if one is not None)
    pairs, dev = replace(pairs, features=pooled), replace(dev, features=dev_pooled)
    vocabulary = Vocabulary.build(
        (*pairs.captions, *dev.captions), tokeniser=config.model.tokeniser, min_count=config.model.min_word_count
    )
    torch.manual_seed(seed)
    model = build_model(config.model, data_shape(pairs, vocabulary))
    model.vocabulary = vocabulary
    trainer = Trainer(model, pairs, dev, config, folder, progress=False)
    if row.start != "nothing":
        begin(trainer, row, seed, work)
    trainer.fit(resume=False)
    lines = trainer.state["lines"]
    truth, probability = pairs.is_mismatched, trainer.method.state["match_probability"].numpy()
    assert truth is not None
    rematched, _ = trainer.method.rematches()
    return {
        "row": row.name,
        "seed": seed,
        "dev": {"rsum": trainer.state["best"]["rsum"], "epoch": trainer.state["best"]["epoch"]},
        "epochs": [line["dev"]["rsum"] for line in lines],
        "auroc": measure_detection(probability, truth).auroc,
        "estimated_ratio": float(1 - probability.mean()),
        "hit1": float((rematched == pairs.true_image_of)[truth].mean()) if row.method == "l2rm" else None,
        "transport": lines[-1]["transport"],
        "seconds": round(sum(sum(line["seconds"].values()) for line in lines[-config.rematching_epochs :]), 1),
    }


def begin(trainer: Trainer, row: Row, seed: int, work: Path) -> None:
    """Put a trainer where the shared start ended: with its division, and its warm-up where that is shared too."""
    config = replace(ROWS[0].config(seed), method="division", rematching_epochs=0)
    start = work / f"start-{seed}"
    train(trainer.batches.pairs, trainer.dev, config, start, vocabulary=trainer.model.vocabulary, resume=True)
    saved = load_state(start)
    assert saved is not None
    trainer.method.state |= {name: saved["method"][name] for name in SHARED}
    if row.start == "warm-up":
        trainer.model.load_state_dict(saved["model"])
        trainer.optimiser.load_state_dict(saved["optimiser"])
        trainer.state |= {name: saved[name] for name in ("epoch", "best", "lines")}
    else:
        torch.manual_seed(seed)


def summed_up(results: Path) -> None:
    """Write `ablation.json` and `ablation.md` beside the rows; print the table."""
    values: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in read_lines(results):
        values[line["row"]][line["seed"]] = line
    rows: list[dict[str, Any]] = []
    for row in ROWS:
        if not (mine := values.get(row.name)):
            continue
        rsums = [line["dev"]["rsum"] for line in mine.values()]
        beside = values.get(row.beside, {})
        apart = [
            mine[seed]["dev"]["rsum"] - beside[seed]["dev"]["rsum"] for seed in sorted(mine.keys() & beside.keys())
        ]
        rows.append(
            {
                "row": row.name,
                "beside": row.beside,
                "seeds": sorted(mine),
                "dev_rsum": statistics.fmean(rsums),
                "deviation": statistics.stdev(rsums) if len(rsums) > 1 else None,
                "difference": apart if row.name != row.beside else [],
                "auroc": statistics.fmean(line["auroc"] for line in mine.values()),
                "estimated_ratio": statistics.fmean(line["estimated_ratio"] for line in mine.values()),
                "hit1": _mean([line["hit1"] for line in mine.values()]),
            }
        )
    write_json(results.with_suffix(".json"), {"rows": rows, **provenance()})
    table = markdown(rows)
    with written_whole(results.with_suffix(".md")) as beside_file:
        beside_file.write_text(table, encoding="utf-8")
    print(table)


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table: dev rSum, the difference of each seed from the row that one thing was changed in."""
    lines = ["| | seeds | dev rSum | differs from | by (each seed) | AUROC | ratio | partner first |", "|---" * 8 + "|"]
    for row in rows:
        rsum = f"{row['dev_rsum']:.1f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.1f}")
        apart = ", ".join(f"{one:+.1f}" for one in row["difference"]) or "–"
        hit = "–" if row["hit1"] is None else f"{100 * row['hit1']:.1f} %"
        lines.append(
            f"| {row['row']} | {len(row['seeds'])} | {rsum} | {row['beside'] if apart != '–' else '–'} | {apart} | "
            f"{row['auroc']:.3f} | {100 * row['estimated_ratio']:.1f} % | {hit} |"
        )
    return "\n".join(lines) + "\n"


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


if __name__ == "__main__":
    main()
