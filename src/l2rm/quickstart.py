"""The main job on real data, end to end: corrupt, train three models, evaluate, audit, report."""

import logging
import multiprocessing
import os
import shlex
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from l2rm.auditing.audit import Audit, audit
from l2rm.data import openmoji
from l2rm.data.mismatch import Mismatched, inject_mismatches, write_index
from l2rm.data.pairs import Pairs
from l2rm.encoders import sentences
from l2rm.encoders.image import encode
from l2rm.evaluation.evaluate import evaluate
from l2rm.evaluation.metrics import Metrics
from l2rm.recipes import quickstart as recipe
from l2rm.search.index import Index
from l2rm.training.check import check_same_run
from l2rm.training.interrupt import Interrupted
from l2rm.training.run import load_run, read_record, write_json
from l2rm.training.settings import Method, TrainConfig
from l2rm.training.train import fingerprint, train
from l2rm.workers import all_watched, children_stopped, one_thread, stop_with_parent, told_by_process

log = logging.getLogger("l2rm")

RATIO = 0.4
LEVEL: Literal["image"] = "image"
DEV_IMAGES, TEST_IMAGES = 250, 300
ENCODER: dict[str, Any] = {"name": "efficientnet-lite0", "grid": 1}
CAPTION_ENCODER = sentences.MINILM
LANGUAGES = ("en", "alias", "unicode")
METHODS: tuple[Method, ...] = ("oracle", "l2rm", "plain")
"""The longest first, so that two processes end at about the same time."""
CREDIT = (
    f"{openmoji.CREDIT}. Names: the package emoji (BSD licence) from the Unicode CLDR. "
    "Features: EfficientNet-Lite0 trained on ImageNet; all-MiniLM-L6-v2 of sentence-transformers (Apache-2.0)."
)


def quickstart(*, out: str | Path, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Mismatch 40 % of OpenMoji's training pictures, then see what `plain`, `l2rm` and `oracle` make of them.

    Writes `summary.json`, `report.html`, `audit.parquet`, `mismatch.npy`, `runs/METHOD` and `index`, all pictures to be
    searched, under `out`; drawings and features are cached outside it. Called again, it goes on where it stopped. The
    last lines printed are the table, and the command that opens the search page.

    Args:
        out: folder for all of it.
        seed: rules split, corruption and initial weights.
        progress: tell on standard error how far it is.

    Returns:
        What `summary.json` holds: test metrics by method; `detection` over the training pairs; `rematch`, how often the
        true image of a mismatched caption is suggested; `gap_closed`, the part of the rSum between `plain` and
        `oracle` that `l2rm` regains; `seconds`.

    Raises:
        InputError: the extra `quickstart` is not installed, or `out` holds a quick start with another seed.
        Interrupted: a signal asked to stop.
        RuntimeError: a process that trained was killed; the others saved, and the same call goes on.
    """
    began = time.monotonic()
    out = Path(out)
    noisy, dev, test, everything = _data(seed, progress)
    configs = {method: replace(recipe(), method=method, seed=seed, device="cpu") for method in METHODS}
    for method, config in configs.items():  # before anything in `out` is written anew
        if ((folder := out / "runs" / method) / "config.json").exists():
            check_same_run(folder, read_record(folder), config, fingerprint(noisy.pairs))
    out.mkdir(parents=True, exist_ok=True)
    write_index(out / "mismatch.npy", noisy)
    _train_all(noisy.pairs, dev, configs, out, progress)
    runs = {method: load_run(out / "runs" / method) for method in ("plain", "l2rm", "oracle")}
    metrics = {method: evaluate(run.model, test) for method, run in runs.items()}
    found = audit(
        noisy.pairs,
        runs["l2rm"].model,
        match_probability=runs["l2rm"].match_probability(noisy.pairs),
        unseen=dev,
        progress=progress,
    )
    found.write(out, metrics=metrics, credits=CREDIT)
    summary = _summary(metrics, found, seed, time.monotonic() - began)
    write_json(out / "summary.json", summary)
    print(_table(metrics, summary))
    print(f"report: {out / 'report.html'}")
    index = Index.build(
        everything, runs["l2rm"].model, out=out / "index", encoder=ENCODER, caption_encoder=CAPTION_ENCODER
    )
    print(f"search its {len(index.items['image'])} pictures: l2rm serve {shlex.quote(str(out / 'index'))}")
    return summary


def _data(seed: int, progress: bool) -> tuple[Mismatched, Pairs, Pairs, Pairs]:
    """Mismatched training pairs, dev, test, and all pairs as they are, with features."""
    pairs = openmoji.read(LANGUAGES, progress=progress)
    pairs = encode(pairs, encoder=ENCODER["name"], grid=ENCODER["grid"], progress=progress)
    pairs = sentences.encode_captions(pairs, CAPTION_ENCODER, progress=progress)
    train_pairs, dev, test = pairs.split(dev=DEV_IMAGES, test=TEST_IMAGES, seed=seed)
    noisy = inject_mismatches(train_pairs, ratio=RATIO, level=LEVEL, seed=seed)
    log.info(
        "%d pictures to train on, their %d English names; the names of %.0f %% now belong to another picture",
        *(train_pairs.n_images, len(train_pairs), 100 * RATIO),
    )
    return noisy, dev, test, pairs


def _train_all(pairs: Pairs, dev: Pairs, configs: Mapping[Method, TrainConfig], out: Path, progress: bool) -> None:
    """Train each method in `runs/`, in as many processes as there are cores, one thread each."""
    spawn = multiprocessing.get_context("spawn")
    workers = min(len(configs), os.cpu_count() or 1)
    level = log.getEffectiveLevel() if progress else logging.WARNING
    pool_of = ProcessPoolExecutor(workers, mp_context=spawn, initializer=stop_with_parent)
    with one_thread(), pool_of as pool, children_stopped():
        jobs = [
            pool.submit(_train_one, pairs, dev, config, out / "runs" / method, level)
            for method, config in configs.items()
        ]
        all_watched(pool)
        try:
            for job in as_completed(jobs):
                if stopped := job.result():
                    raise Interrupted(stopped)
        except BrokenProcessPool as error:  # the pool asks the others to stop, and they save
            raise RuntimeError(
                "a process that trained was killed from outside (is memory short?); what it and the others have saved "
                f"is in {out / 'runs'}, go on with the same command"
            ) from error


def _train_one(pairs: Pairs, dev: Pairs, config: TrainConfig, out: Path, level: int) -> int | None:
    """Train, or go on; the number of the signal that stopped it, if one did."""
    torch.set_num_threads(1)
    told_by_process(level, f"{config.method:<6} %(message)s")
    try:
        train(pairs, dev, config, out, resume=True, progress=False)
    except Interrupted as stop:
        return stop.signal
    return None


def _summary(metrics: Mapping[str, Metrics], found: Audit, seed: int, seconds: float) -> dict[str, Any]:
    plain, l2rm, oracle = (metrics[method].rsum for method in ("plain", "l2rm", "oracle"))
    return {
        **{method: one.to_dict() for method, one in metrics.items()},
        "detection": found.detection.to_dict() if found.detection else None,
        "rematch": found.rematch_hits.to_dict() if found.rematch_hits else None,
        "gap_closed": (l2rm - plain) / (oracle - plain) if oracle > plain else None,
        "data": {"name": "openmoji", "ratio": RATIO, "level": LEVEL, "seed": seed},
        "seconds": round(seconds, 1),
    }


def _table(metrics: Mapping[str, Metrics], summary: Mapping[str, Any]) -> str:
    told = {"plain": "all pairs taken as matched", "l2rm": "L2RM", "oracle": "truly matched pairs only"}
    lines = [f"{'':<36}{'image to caption':^21}{'caption to image':^21}"]
    lines.append(f"{'':<36}" + f"{'R@1':>7}{'R@5':>7}{'R@10':>7}" * 2 + f"{'rSum':>8}")
    for method, one in metrics.items():
        cells = (one.i2t.r1, one.i2t.r5, one.i2t.r10, one.t2i.r1, one.t2i.r5, one.t2i.r10)
        lines.append(
            f"{method:<8}{told[method]:<28}" + "".join(f"{cell:>7.1f}" for cell in cells) + f"{one.rsum:>8.1f}"
        )
    data, detection, rematch = summary["data"], summary["detection"], summary["rematch"]
    lines.append(
        f"OpenMoji, {100 * data['ratio']:.0f} % of the training pictures mismatched ({data['level']} level), seed "
        f"{data['seed']}, {metrics['l2rm'].images} test pictures, {summary['seconds']:.0f} s"
    )
    if summary["gap_closed"] is not None:
        lines.append(f"L2RM regains {100 * summary['gap_closed']:.0f} % of what the mismatches cost")
    if detection and rematch:
        lines.append(
            f"it finds mismatched pairs with AUROC {detection['auroc']:.3f}, and suggests a mismatched caption's true "
            f"picture first {100 * rematch['hit1']:.0f} %, among ten {100 * rematch['hit10']:.0f} % of the time"
        )
    return "\n".join(lines)
