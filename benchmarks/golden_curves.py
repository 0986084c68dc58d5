"""Record the loss curves that tests/training/test_golden.py holds every change against.

A change that is meant to alter what training computes regenerates them, and says so:

    python benchmarks/golden_curves.py
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from l2rm.data.features import Features
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.recipes import faithful
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.settings import ModelConfig
from l2rm.training.settings import TrainConfig
from l2rm.training.train import train

CURVES = Path(__file__).parents[1] / "tests" / "training" / "golden_curves.json"
COLOURS, SHAPES = 8, 6


def golden_pairs(images: int, seed: int) -> Pairs:
    """Two noisy regions that show a colour and a shape; two captions that name both."""
    generator = np.random.default_rng(seed)
    colour, shape = generator.integers(COLOURS, size=images), generator.integers(SHAPES, size=images)
    features = 0.1 * generator.normal(size=(images, 2, COLOURS + SHAPES))
    features[np.arange(images), :, colour] += 1
    features[np.arange(images), :, COLOURS + shape] += 1
    forms = ("colour{} shape{}", "a shape{1} of colour{0}")
    return Pairs(
        images=tuple(f"{seed}/{image}" for image in range(images)),
        image_of=np.repeat(np.arange(images), 2),
        captions=tuple(form.format(*pair) for pair in zip(colour, shape, strict=True) for form in forms),
        features=Features(array=features.astype(np.float32)),
        source="golden",
    )


def golden_configs() -> dict[str, TrainConfig]:
    """What is recorded, by name: every method's way through an epoch, on two similarities, without dropout."""
    configs = {}
    divided = {
        "cosine": {"folds": 2, "take": "weight", "targets": "mass"},  # as the quick start does
        "sgr": {"one_mode": "mixture"},
    }
    for similarity in ("cosine", "sgr"):
        model = ModelConfig(
            similarity=similarity, embed_dim=12, word_dim=6, similarity_dim=8, graph_steps=2, dropout=0.0,
            min_word_count=1,
        )  # fmt: skip
        start = TrainConfig(
            warmup_epochs=3,
            rematching_epochs=2,
            decay_every=1,
            batch_size=24,
            lr=1e-2,
            device="cpu",
            model=model,
            rematching=RematchingConfig(reg=0.05),
        )
        variants = {
            "plain": {"method": "plain", "objective": "mean_violation"},
            "warmup": {"method": "warmup"},
            "l2rm": {"rematching": RematchingConfig(reg=0.05, queue_size=36, **divided[similarity])},
        }
        for name, changes in variants.items():
            configs[f"{similarity} {name}"] = TrainConfig(**{**vars(start), **changes})
        configs[f"{similarity} l2rm --paper"] = faithful(start)
    return configs


def curve(config: TrainConfig) -> list[dict[str, Any]]:
    """What each epoch of a run came to."""
    pairs = inject_mismatches(golden_pairs(96, seed=1), ratio=0.4, level="image", seed=0).pairs
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = train(pairs, golden_pairs(24, seed=2), config, Path(folder) / "run", progress=False)
        lines = run.metrics
    torch.set_num_threads(threads)
    return [
        {"losses": line["losses"], "matched": (line["division"] or {}).get("matched"), "rsum": line["dev"]["rsum"]}
        for line in lines
    ]


if __name__ == "__main__":
    CURVES.write_text(json.dumps({name: curve(config) for name, config in golden_configs().items()}, indent=1) + "\n")
    print(f"written to {CURVES}")
