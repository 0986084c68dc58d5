"""A separable set of pairs that any method learns in seconds; as a script, a run that waits to be killed."""

import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

from l2rm.data.features import Features
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.settings import ModelConfig
from l2rm.training.settings import TrainConfig
from l2rm.training.train import train
from l2rm.training.trainer import Trainer

COLOURS, SHAPES = 10, 9


def small_pairs(images: int, seed: int, captions: int = 2) -> Pairs:
    """Image i is one of 90 classes (a colour and a shape): noisy one-hot regions; its captions name both words."""
    generator = np.random.default_rng(seed)
    classes = np.concatenate(
        [generator.permutation(COLOURS * SHAPES) for _ in range(-(-images // (COLOURS * SHAPES)))]
    )[:images]
    colour, shape = classes % COLOURS, classes // COLOURS
    features = 0.1 * generator.normal(size=(images, 2, COLOURS + SHAPES))
    features[np.arange(images), :, colour] += 1
    features[np.arange(images), :, COLOURS + shape] += 1
    forms = ("colour{} shape{}", "a shape{1} of colour{0}")
    texts = [forms[k].format(*pair) for pair in zip(colour, shape, strict=True) for k in range(captions)]
    return Pairs(
        images=tuple(f"{seed}/{image}" for image in range(images)),
        image_of=np.repeat(np.arange(images), captions),
        captions=tuple(texts),
        features=Features(array=features.astype(np.float32)),
        source="small",
    )


def small_train(images: int = 180, ratio: float = 0.4) -> Pairs:
    return inject_mismatches(small_pairs(images, seed=1), ratio=ratio, level="image", seed=0).pairs


def small_dev() -> Pairs:
    return small_pairs(30, seed=2, captions=1)


def small_config(**changes) -> TrainConfig:
    rematching = {"reg": 0.05, "queue_size": 40, **changes.pop("rematching", {})}
    model = {"similarity": "cosine", "embed_dim": 16, "word_dim": 8, "dropout": 0.1, "min_word_count": 1}
    return TrainConfig(
        **{"warmup_epochs": 3, "rematching_epochs": 3, "decay_every": 2, "batch_size": 30, "lr": 2e-2, "device": "cpu"}
        | changes,
        model=ModelConfig(**model),
        rematching=RematchingConfig(**rematching),
    )


def wait_after(steps: int) -> None:
    """Make training announce itself after so many steps of a run, and go on when it has heard a signal."""
    learn, done, heard = Trainer._learn, 0, False

    def wait() -> None:
        before = signal.getsignal(signal.SIGINT)

        def hear(*what) -> None:
            nonlocal heard
            heard = True
            before(*what)

        signal.signal(signal.SIGINT, hear)
        print("now", flush=True)
        while not heard:
            time.sleep(0.02)
        signal.signal(signal.SIGINT, before)

    def slow(self, *arguments):
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == steps:
            wait()

    Trainer._learn = slow


if __name__ == "__main__":
    out, steps, save_seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    wait_after(steps)
    train(small_train(), small_dev(), small_config(save_seconds=save_seconds), out, progress=False)
