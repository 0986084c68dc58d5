"""Flickr8k with SGR at small dimensions, as published otherwise.

`python benchmarks/flickr8k.py DATA INDEX.npy --method l2rm --out RUN --json RESULT.json`

DATA is a precomp folder of Flickr8k (EfficientNet-Lite0 grid features), INDEX says which image each training caption
is given. About an hour on two cores; called again it goes on where it stopped. Without --test the test split is not
looked at.
"""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from provenance import provenance

from l2rm.data.formats import read_splits
from l2rm.data.mismatch import read_index
from l2rm.evaluation.evaluate import evaluate
from l2rm.recipes import faithful
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.settings import ModelConfig
from l2rm.training.run import write_json
from l2rm.training.settings import TrainConfig
from l2rm.training.train import train

PUBLISHED = faithful(
    TrainConfig(
        warmup_epochs=6,
        rematching_epochs=6,
        decay_every=4,
        batch_size=64,
        lr=1e-3,
        model=ModelConfig(embed_dim=128, similarity_dim=64, word_dim=300, tokeniser="wordpunct", min_word_count=4),
        rematching=RematchingConfig(reg=0.01),
    )
)


def main() -> None:
    """Train, evaluate if asked to, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--method", default="l2rm")
    parser.add_argument("--objective", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    splits = read_splits(options.data)
    noisy = read_index(options.index, splits["train"])
    config = replace(PUBLISHED, method=options.method, objective=options.objective, seed=options.seed)
    run = train(noisy.pairs, splits["dev"], config, options.out, resume=True)
    write_json(
        options.json,
        {
            "data": "Flickr8k, EfficientNet-Lite0 grid features",
            "level": noisy.level,
            "ratio": noisy.ratio,
            **provenance(),
            "config": run.record["config"],
            "best": run.record["best"],
            "test": evaluate(run.model, splits["test"]).to_dict() if options.test else None,
            "epochs": run.metrics,
        },
    )


if __name__ == "__main__":
    main()
