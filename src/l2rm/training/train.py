"""`train`: pairs in, a RUN folder out."""

import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.encoders.pictures import pictured
from l2rm.encoders.pretrained import Reading
from l2rm.errors import InputError
from l2rm.files import cache_folder, remove_leftovers, written_whole
from l2rm.similarity.clip import READING
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.settings import DataShape
from l2rm.training.check import check_config, check_data, check_same_run
from l2rm.training.judge import read_judgement
from l2rm.training.processes import is_first, join, share, wait
from l2rm.training.run import COPY, MODEL, Run, load_run, locked, mend_model, read_record, write_record
from l2rm.training.settings import CANDIDATES, TrainConfig
from l2rm.training.trainer import Trainer

log = logging.getLogger("l2rm")
POOLED_BYTES = 2**30
"""Pooled features that are kept in memory, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """All that `train` was asked for, checked and completed."""

    pairs: Pairs
    dev: Pairs
    config: TrainConfig
    out: Path
    vocabulary: Vocabulary | None
    reading: Reading | None
    shape: DataShape
    facts: dict[str, Any]
    device: torch.device
    resume: bool
    progress: bool

    def record(self, **more: Any) -> dict[str, Any]:
        """Write `config.json`."""
        return write_record(self.out, self.config, self.shape, write=is_first(), **self.facts, **more)


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
        pairs: with features (`model.similarity="clip"`: with image files); their truth, if known, is read by `oracle`
            and for metrics only.
        dev: pairs of other images.
        config: the method, what the model is made of, and the schedule.
        out: the RUN folder; one that holds a run already only with `resume`.
        vocabulary: how to read captions; built from `pairs` and `dev` if left out.
        facts: what else `config.json` should tell (where the data came from, say).
        resume: go on with the run in `out`; a finished one is loaded and returned. Where there is none, it begins.
        progress: whether to draw progress bars on a terminal.

    Raises:
        InputError: a folder that is taken, data that do not fit, `oracle` without truth, a judge that cannot judge
            them, another configuration or other pairs than the run to be resumed has.
        Interrupted: a signal asked to stop; the run was saved.
        RuntimeError: training failed: a gradient that is not finite, or a division that leaves nothing to learn from.

    Example:
        >>> run = train(noisy.pairs, dev, TrainConfig(method="l2rm"), out="runs/mine")  # doctest: +SKIP
        >>> run.metrics[-1]["dev"]["rsum"]  # doctest: +SKIP
        312.4
    """
    out = Path(out)
    check_config(config)
    config = rooted(config)
    reading = Reading.open(config.model.encoder) if config.model.similarity == "clip" else None
    if reading is not None:
        pairs, dev = (
            pictured(part, reading, progress=progress) if part.features is None else part for part in (pairs, dev)
        )
    check_data(pairs, dev, config, vocabulary)
    device = pick_device(join(config.device))
    refuse_taken(out, resume=resume)
    if config.rematching.judge and not (out / "config.json").exists():
        read_judgement(pairs, config.rematching)  # to be told now what would stop the method later
    wait()
    if vocabulary is None and pairs.caption_features is None and reading is None:
        vocabulary = Vocabulary.build(
            (*pairs.captions, *dev.captions), tokeniser=config.model.tokeniser, min_count=config.model.min_word_count
        )
    return _train(
        _Job(
            pairs=pairs,
            dev=dev,
            config=config,
            out=out,
            vocabulary=vocabulary,
            reading=reading,
            shape=data_shape(pairs, vocabulary),
            facts={
                **(facts or {}),
                "pairs": len(pairs),
                "images": pairs.n_images,
                "fingerprint": fingerprint(pairs),
                "features": {"train": feature_digests(pairs), "dev": feature_digests(dev)},
            },
            device=device,
            resume=resume,
            progress=progress,
        )
    )


def rooted(config: TrainConfig) -> TrainConfig:
    """The same, a folder of a model to be fine-tuned or of a judge named from the root: to be read from anywhere."""
    model, rematching = config.model, config.rematching
    if model.encoder and (folder := Path(model.encoder)).is_dir():
        model = dataclasses.replace(model, encoder=str(folder.absolute()))
    if rematching.judge:
        rematching = dataclasses.replace(rematching, judge=str(Path(rematching.judge).absolute()))
    return dataclasses.replace(config, model=model, rematching=rematching)


def refuse_taken(out: str | Path, *, resume: bool) -> None:
    """Refuse a folder that holds a run already; `train` does so too, this is for asking before the data are read.

    Raises:
        InputError: there is a run and it is not to be resumed, or a file has that name.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose another --out")
    if (out / "config.json").exists() and not resume:
        raise InputError(f"{out}: there is a run already; go on with --resume, or choose another --out")


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


def data_shape(pairs: Pairs, vocabulary: Vocabulary | None) -> DataShape:
    """What these data decide about a model."""
    assert pairs.features is not None
    return DataShape(
        image_dim=pairs.features.dim,
        regions=pairs.features.regions or 1,
        vocabulary_size=None if vocabulary is None else len(vocabulary),
        caption_dim=None if pairs.caption_features is None else pairs.caption_features.dim,
    )


def fingerprint(pairs: Pairs) -> str:
    """Tells these pairs from others: captions, images, which caption is given which image, and which are trusted."""
    digest = hashlib.sha256(np.ascontiguousarray(pairs.image_of, dtype=np.int64).tobytes())
    if pairs.trusted is not None:
        digest.update(pairs.trusted.tobytes())
    for text in (*pairs.images, *pairs.captions):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:16]


def feature_digests(pairs: Pairs) -> list[str | None]:
    """What tells the features of images and of captions from others; None where there are none.

    Features that the package made itself are left out: their cache knows each image by path, size and time, and another
    processor may compute another last digit.
    """
    parts = (pairs.features, pairs.caption_features)
    ours = cache_folder().absolute()
    return [
        None if part is None or (part.path is not None and part.path.is_relative_to(ours)) else part.digest()
        for part in parts
    ]


def _train(job: _Job) -> Run:
    with _owned(job.out):
        going_on = job.resume and (job.out / "config.json").exists()
        if going_on:
            record = read_record(job.out)
            check_same_run(job.out, record, job.config, job.facts["fingerprint"], job.facts["features"])
            if is_first():
                mend_model(job.out)
        wait()  # nothing is written until every process has looked
        if going_on and record.get("finished"):
            log.info("%s: the run is finished, nothing is left to do", job.out)
            return load_run(job.out, job.device)
        if job.vocabulary is not None and is_first():
            job.vocabulary.write(job.out / "vocabulary.json")
        if job.reading is not None and is_first():
            job.reading.write(job.out / READING)
        job.record(finished=False)
        if job.config.objective == "auto" and job.config.method in CANDIDATES:
            return _best_candidate(job)
        return _train_one(job)


def _train_one(job: _Job) -> Run:
    """Train by a single objective."""
    torch.manual_seed(job.config.seed)
    model = build_model(job.config.model, job.shape, networks=job.config.networks).to(job.device)
    if job.vocabulary is not None:
        model.vocabulary = job.vocabulary
    pairs, dev = (_read_once(part, job.config) for part in (job.pairs, job.dev))
    trainer = Trainer(model, pairs, dev, job.config, job.out, progress=job.progress)
    trainer.fit(resume=job.resume)
    best = load_run(job.out, job.device)
    _write_pairs(job.out, trainer, best.model)
    return dataclasses.replace(best, record=job.record(best=trainer.state["best"], finished=True))


def _read_once(pairs: Pairs, config: TrainConfig) -> Pairs:
    """The same, its regions pooled already where a model does that first and the result is no burden to memory."""
    features = pairs.features
    assert features is not None
    pools_first = config.model.similarity == "cosine" and config.model.pooling == "raw"
    if not pools_first or len(features) * features.dim * 4 > POOLED_BYTES:
        return pairs
    return dataclasses.replace(pairs, features=features.pooled())


def _write_pairs(out: Path, trainer: Trainer, best: RetrievalModel) -> None:
    """`pairs.parquet`: the match probability of every training pair, and the last rematch of each."""
    pairs = trainer.batches.pairs
    probability = trainer.method.match_probability(share(best))
    if not is_first():
        return
    rematch, sure = trainer.method.rematches()
    table = pa.table(
        {
            "pair_id": pairs.pair_ids,
            "image": [pairs.images[image] for image in pairs.image_of],
            "caption": pairs.captions,
            "match_probability": probability.astype(np.float32),
            "rematch_image": pa.array([pairs.images[image] if image >= 0 else None for image in rematch], pa.string()),
            "rematch_share": sure,
        }
    )
    with written_whole(out / "pairs.parquet") as beside:
        pq.write_table(table, beside)


def _best_candidate(job: _Job) -> Run:
    """Train by each candidate objective in `candidates/`; the files of the best on dev become the run's own."""
    runs = {}
    for objective in CANDIDATES[job.config.method]:
        log.info("%s by %s", job.config.method, objective)
        folder = job.out / "candidates" / objective
        config = dataclasses.replace(job.config, objective=objective)
        runs[objective] = _train(dataclasses.replace(job, config=config, out=folder))
    rsums = {objective: run.record["best"]["rsum"] for objective, run in runs.items()}
    chosen = max(rsums, key=lambda objective: rsums[objective])
    told = ", ".join(f"{objective} {rsum:.1f}" for objective, rsum in rsums.items())
    log.info("%s: %s is the best on dev (%s)", job.config.method, chosen, told)
    best = runs[chosen]
    for name in (MODEL, COPY, "metrics.jsonl", "pairs.parquet") if is_first() else ():
        with written_whole(job.out / name) as beside:
            shutil.copyfile(best.folder / name, beside)
    job = dataclasses.replace(job, config=best.config)
    record = job.record(candidates=rsums, best=best.record["best"], finished=True)
    return dataclasses.replace(best, folder=job.out, record=record)


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """The RUN folder is this process's to write, what is logged included; all but the first process keep quiet."""
    if is_first():
        with locked(folder), _logged(folder / "log.txt"):
            remove_leftovers(folder)
            yield
        return
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


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
