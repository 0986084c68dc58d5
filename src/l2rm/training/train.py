"""`train`: pairs in, a RUN folder out."""

import dataclasses
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.files import written_whole
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.settings import DataShape
from l2rm.training.divide import divide
from l2rm.training.run import Run, config_from, load_run, locked, read_lines, read_record, write_lines, write_record
from l2rm.training.settings import CANDIDATES, TrainConfig
from l2rm.training.state import seed_everything
from l2rm.training.trainer import Trainer

log = logging.getLogger("l2rm")
FINAL_DIVISION = (3,)


def train(
    pairs: Pairs,
    dev: Pairs,
    config: TrainConfig,
    out: str | Path,
    *,
    vocabulary: Vocabulary | None = None,
    facts: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Train a model on `pairs`, choose it on `dev`, leave a RUN folder.

    Args:
        pairs: with features; their truth, if known, is read by `oracle` and for metrics only.
        dev: pairs of other images.
        out: the RUN folder, new or empty unless `resume`.
        vocabulary: how to read captions; built from `pairs` and `dev` if left out.
        facts: what else `config.json` should tell (where the data came from, say).
        resume: go on with the run in `out`; a finished one is loaded and returned.

    Raises:
        InputError: a folder that is taken, data that do not fit, `oracle` without truth, another configuration than
            the run to be resumed has.
        Interrupted: a signal asked to stop; the run was saved.

    Example:
        >>> run = train(noisy.pairs, dev, TrainConfig(method="l2rm"), out="runs/mine")  # doctest: +SKIP
        >>> run.metrics[-1]["dev"]["rsum"]  # doctest: +SKIP
        312.4
    """
    out = Path(out)
    _check(pairs, dev, config)
    if (out / "config.json").exists() and not resume:
        raise InputError(f"{out}: there is a run already; go on with --resume, or choose another --out")
    with locked(out), _logged(out / "log.txt"):
        if resume and (finished := _finished(out, config)):
            return finished
        if config.method in CANDIDATES and config.objective == "auto":
            return _best_candidate(pairs, dev, config, out, vocabulary, facts or {}, resume, progress)
        return _train_one(pairs, dev, config, out, vocabulary, facts or {}, resume, progress)


def pick_device(name: str) -> torch.device:
    """The device that `auto` or a torch device string means.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {name!r} is not to be had here ({str(error).splitlines()[0]}); try auto") from error


def _check(pairs: Pairs, dev: Pairs, config: TrainConfig) -> None:
    for part in (pairs, dev):
        for features in (part.features, part.caption_features):
            if features is not None:
                features.check()
    if pairs.features is None or dev.features is None:
        raise InputError(f"{pairs.source}: no image features; encode the images first")
    if pairs.features.shape[1:] != dev.features.shape[1:]:
        raise InputError(
            f"{dev.source}: features {dev.features.shape[1:]} in dev, {pairs.features.shape[1:]} in train; "
            "make both with the same encoder"
        )
    if len(pairs) < 2 or pairs.n_images < 2:
        raise InputError(f"{pairs.source}: {len(pairs)} training pairs; at least two pairs of two images are needed")
    if config.method == "oracle" and pairs.is_mismatched is None:
        raise InputError(
            f"{pairs.source}: method oracle learns from truly matched pairs only, and which they are is not known; "
            "give --mismatch INDEX.npy, or a table with a column true_image"
        )
    if min(config.epochs, config.batch_size - 1, config.decay_every) < 1:
        raise InputError("configuration: at least one epoch, two pairs a batch and one epoch to a decay are needed")


def _finished(out: Path, config: TrainConfig) -> Run | None:
    """The run in `out` if it has ended; an error if it is another run than the one asked for."""
    if not (out / "config.json").exists():
        return None
    record = read_record(out)
    saved = config_from(TrainConfig, record["config"], out / "config.json")
    if record.get("finished") and config.objective == "auto":
        saved = dataclasses.replace(saved, objective="auto")
    for field in dataclasses.fields(TrainConfig):
        was, now = getattr(saved, field.name), getattr(config, field.name)
        if was != now and field.name not in ("device", "save_seconds"):
            raise InputError(f"{out}: {field.name} was {was} and is now {now}; resume a run as it was started")
    if not record.get("finished"):
        return None
    log.info("%s: the run is finished, nothing is left to do", out)
    return load_run(out)


def _train_one(
    pairs: Pairs,
    dev: Pairs,
    config: TrainConfig,
    out: Path,
    vocabulary: Vocabulary | None,
    facts: dict[str, Any],
    resume: bool,
    progress: bool,
) -> Run:
    if pairs.caption_features is None and vocabulary is None:
        vocabulary = Vocabulary.build(
            (*pairs.captions, *dev.captions), tokeniser=config.model.tokeniser, min_count=config.model.min_word_count
        )
    if vocabulary is not None:
        vocabulary.write(out / "vocabulary.json")
    shape = data_shape(pairs, vocabulary)
    facts = {**facts, "pairs": len(pairs), "images": pairs.n_images}
    write_record(out, config, shape, **facts, finished=False)

    seed_everything(config.seed)
    model = build_model(config.model, shape).to(pick_device(config.device))
    model.vocabulary = vocabulary
    trainer = Trainer(model, pairs, dev, config, out, progress=progress)
    trainer.fit(resume=resume)

    run = load_run(out, next(model.parameters()).device)
    _write_pairs(out, pairs, trainer, run.model)
    record = write_record(out, config, shape, **facts, best=trainer.state["best"], finished=True)
    return dataclasses.replace(run, record=record)


def data_shape(pairs: Pairs, vocabulary: Vocabulary | None) -> DataShape:
    """What these data decide about a model."""
    assert pairs.features is not None
    return DataShape(
        image_dim=pairs.features.dim,
        regions=pairs.features.regions or 1,
        vocabulary_size=None if vocabulary is None else len(vocabulary),
        caption_dim=None if pairs.caption_features is None else pairs.caption_features.dim,
    )


def _write_pairs(out: Path, pairs: Pairs, trainer: Trainer, model: RetrievalModel) -> None:
    """`pairs.parquet`: what the best model thinks of every training pair, and the last rematch of each."""
    trainer.batches.device = next(model.parameters()).device
    settings, size = trainer.config.rematching, trainer.config.batch_size
    division = divide(model, trainer.batches, settings, batch_size=size, seed=(trainer.config.seed, *FINAL_DIVISION))
    rematch = trainer.state["rematch_image"].cpu().numpy()
    table = pa.table(
        {
            "pair_id": pairs.pair_ids,
            "image": [pairs.images[image] for image in pairs.image_of],
            "caption": pairs.captions,
            "match_probability": division.match_probability.astype(np.float32),
            "rematch_image": pa.array([pairs.images[image] if image >= 0 else None for image in rematch], pa.string()),
            "rematch_share": trainer.state["rematch_share"].cpu().numpy(),
        }
    )
    with written_whole(out / "pairs.parquet") as beside:
        pq.write_table(table, beside)


def _best_candidate(
    pairs: Pairs,
    dev: Pairs,
    config: TrainConfig,
    out: Path,
    vocabulary: Vocabulary | None,
    facts: dict[str, Any],
    resume: bool,
    progress: bool,
) -> Run:
    """Train with each candidate objective in `candidates/`; the best on dev becomes the run."""
    if not (out / "config.json").exists():
        write_record(out, config, data_shape(pairs, vocabulary), **facts, finished=False)
    runs = {}
    for objective in CANDIDATES[config.method]:
        log.info("%s by %s", config.method, objective)
        one = dataclasses.replace(config, objective=objective)
        folder = out / "candidates" / objective
        runs[objective] = train(
            pairs, dev, one, folder, vocabulary=vocabulary, facts=facts, resume=resume, progress=progress
        )
    rsums = {objective: run.record["best"]["rsum"] for objective, run in runs.items()}
    chosen = max(rsums, key=lambda objective: rsums[objective])
    log.info("%s: %s is the best on dev (%s)", config.method, chosen, ", ".join(f"{k} {v:.1f}" for k, v in rsums.items()))
    best = runs[chosen]
    for name in ("model.safetensors", "vocabulary.json", "pairs.parquet"):
        if (best.folder / name).exists():
            with written_whole(out / name) as beside:
                shutil.copyfile(best.folder / name, beside)
    write_lines(out / "metrics.jsonl", [line for run in runs.values() for line in read_lines(run.folder / "metrics.jsonl")])
    shape = config_from(DataShape, best.record["shape"], best.folder / "config.json")
    facts = {**facts, "pairs": len(pairs), "images": pairs.n_images, "candidates": rsums}
    record = write_record(out, best.config, shape, **facts, best=best.record["best"], finished=True)
    return Run(folder=out, config=best.config, model=best.model, record=record)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is logged inside the block also goes to `path`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()
