"""Runs of every kind, each in a folder, by as many processes as the environment says; step by step what was lost.

As a script, of several: what it leaves is compared with what one process leaves.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import small_run as small
import torch

from l2rm import cli
from l2rm.training.interrupt import Interrupted
from l2rm.training.processes import is_first, leave
from l2rm.training.trainer import Trainer

FOLDS = {"scope": "dataset", "folds": 2, "fold_rounds": 1, "take": "weight"}
SPLIT = {"one_mode": "mixture", "steps": "pairs"}  # suspects even where the losses name none
CASES = {
    "plain": {"method": "plain", "objective": "mean_violation"},
    "warmup": {"method": "warmup"},
    "l2rm": {"rematching": SPLIT, "lr": 2e-2, "warmup_epochs": 3},
    "memory": {
        "rematching": SPLIT | {"memory": 40, "cost": "equivariant", "targets": "mass", "mass": 0.3},
        "lr": 2e-2,
        "warmup_epochs": 3,
    },
    "dataset": {"rematching": FOLDS | {"rematch_every": 1, "matched_objective": "infonce"}},
    "ncr": {"method": "ncr"},
    "crcl": {"method": "crcl"},
    "sgr": {"similarity": "sgr", "rematching": SPLIT, "lr": 1e-3},
    "saf": {"similarity": "saf", "rematching": SPLIT, "lr": 1e-3},
}
"""By name what is changed in `small_config`; 33 steps and more, in batches of 31, which two processes cannot halve."""

COMMAND = [
    "--batch-size=16",
    "--warmup-epochs=1",
    "--rematching-epochs=1",
    "--model.similarity=cosine",
    "--model.embed-dim=16",
    "--model.word-dim=8",
    "--model.min-word-count=1",
    "--ratio=0.4",
    "--level=image",
    "--device=cpu",
]


def config_of(name, *, dropout=0.0):
    changes = dict(CASES[name])
    similarity = changes.pop("similarity", "cosine")
    config = small.small_config(**{"batch_size": 31, "lr": 1e-2, "warmup_epochs": 2, "rematching_epochs": 1} | changes)
    model = dataclasses.replace(config.model, similarity=similarity, dropout=dropout, similarity_dim=8, graph_steps=2)
    return dataclasses.replace(config, model=model)


def run(name, out, **options):
    """Train; the terms of every step go to `steps.json` in the RUN folder."""
    steps, count = [], Trainer._count

    def told(self, values):
        steps.append({key: float(value) for key, value in values.items()})
        count(self, values)

    Trainer._count = told
    try:
        found = small.train(
            small.small_train(), small.small_dev(), config_of(name, **options), out, resume=True, progress=False
        )
    finally:
        Trainer._count = count
    if is_first():
        (out / "steps.json").write_text(json.dumps(steps))
    return found


def stop_last_process(after):
    """Let a signal reach the last process alone, after so many steps of it."""
    learn, done = Trainer._learn, 0

    def signalled(self, *arguments):
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == after and not is_first():
            os.kill(os.getpid(), signal.SIGTERM)

    Trainer._learn = signalled
    return learn


def main(out, names):
    torch.set_num_threads(1)
    for name in names:
        if name.startswith("command="):
            assert cli.main(["train", name.removeprefix("command="), "--out", str(out / "command"), *COMMAND]) == 0
        elif name == "stopped":
            run_stopped_and_not(out)
        else:
            run(name, out / name)
    leave()


def run_stopped_and_not(out):
    """Dropout, too, goes on where it was."""
    run("l2rm", out / "dropout", dropout=0.3)
    learn = stop_last_process(after=40)
    try:
        run("l2rm", out / "stopped", dropout=0.3)
    except Interrupted as stop:
        print(f"process {os.environ['RANK']}: {stop}", flush=True)
    Trainer._learn = learn
    run("l2rm", out / "stopped", dropout=0.3)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
