"""The runs of a grid: trained, measured once, a row each in `results.jsonl`; resumed, and shared by processes."""

import fcntl
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.benchmark.grid import Cell, Grid
from l2rm.data.mismatch import inject_mismatches, read_index
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection, measure_rematch
from l2rm.evaluation.evaluate import evaluate, model_scores
from l2rm.evaluation.scores import checked_block
from l2rm.provenance import commit
from l2rm.similarity.model import RetrievalModel
from l2rm.sources import EncoderConfig, open_splits, with_features
from l2rm.training.check import check_config, check_same_run
from l2rm.training.interrupt import Interrupted
from l2rm.training.judge import check_judge
from l2rm.training.methods.registry import METHODS
from l2rm.training.run import Run, read_lines, read_record, write_lines
from l2rm.training.suspects import partners_of_suspects
from l2rm.training.train import rooted, train
from l2rm.workers import all_watched, children_stopped, one_thread, stop_with_parent, told_by_process

log = logging.getLogger("l2rm")
NEEDED = ("train", "dev", "test")
SUGGESTIONS = 10
CAPTIONS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Job:
    """A grid on DATA, `source`, in the folder `out`."""

    grid: Grid
    source: str
    out: Path
    image_root: Path | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    @property
    def results(self) -> Path:
        """`results.jsonl`."""
        return self.out / "results.jsonl"

    def folder(self, cell: Cell) -> Path:
        """Where a run lies."""
        return self.out / "runs" / cell.name

    def rows(self) -> list[dict[str, Any]]:
        """The rows of this grid so far, in its order.

        Raises:
            InputError: a line that is no row.
        """
        known: dict[Cell, dict[str, Any]] = {}
        for number, row in enumerate(_read_rows(self.results), start=1):
            try:
                known[cell_of(row)] = row
            except KeyError as error:
                raise InputError(f"{self.results}:{number}: no key {error}; take that line out") from error
        return [known[cell] for cell in self.grid.cells if cell in known]


def cell_of(row: dict[str, Any]) -> Cell:
    """Which run a row tells of."""
    return Cell(**{name: row[name] for name in ("method", "similarity", "ratio", "level", "seed")})


def run_grid(job: Job, *, workers: int = 1, progress: bool = True) -> None:
    """Run whatever has no row yet; other commands may be at work in the same folder, and what they do is left to them.

    Raises:
        InputError: data that a run refuses, or a run that was begun with other settings.
        Interrupted: a signal asked to stop; what was begun is saved.
        RuntimeError: some runs failed, after all others ended.
    """
    _check_begun(job)
    level = log.getEffectiveLevel() if progress else logging.WARNING
    failed: list[str] = []
    if workers == 1:
        failed = _work(job, progress)
    else:
        spawn = multiprocessing.get_context("spawn")
        pool_of = ProcessPoolExecutor(workers, mp_context=spawn, initializer=stop_with_parent)
        with one_thread(), pool_of as pool, children_stopped():
            jobs = [pool.submit(_worker, job, level) for _ in range(workers)]
            all_watched(pool)
            for done in as_completed(jobs):
                stopped, one_failed = done.result()
                failed += one_failed
                if stopped:
                    raise Interrupted(stopped)
    if failed:
        names = ", ".join(sorted(set(failed)))
        raise RuntimeError(f"{len(set(failed))} runs failed, all others are done; their log.txt tells why: {names}")


def _worker(job: Job, level: int) -> tuple[int | None, list[str]]:
    """One process's share; the number of the signal that stopped it, if one did, and the runs that failed."""
    torch.set_num_threads(1)
    told_by_process(level, f"[{os.getpid()}] %(message)s")
    try:
        return None, _work(job, progress=False)
    except Interrupted as stop:
        return stop.signal, []


def _work(job: Job, progress: bool) -> list[str]:
    """Go through the grid once; leave out what has a row, and what another process has in hand. Returns what failed."""
    cells, failed = job.grid.cells, []
    for number, cell in enumerate(cells, start=1):
        with _claimed(job.out / "locks" / cell.name) as is_mine:
            if not is_mine or any(cell_of(row) == cell for row in job.rows()):
                continue
            log.info("%d/%d %s", number, len(cells), cell.name)
            try:
                row = _measured(job, cell, progress)
            except RuntimeError as error:  # a gradient that is not finite, or nothing taken as matched
                log.error("%s failed: %s", cell.name, error)
                failed.append(cell.name)
                continue
            with _claimed(job.out / "locks" / "results", wait=True):
                write_lines(job.results, [*_read_rows(job.results), row])
            shutil.rmtree(job.folder(cell) / "last", ignore_errors=True)  # nothing is left to resume
            log.info("%s: test rSum %.1f", cell.name, row["test"]["rsum"])
    return failed


def _measured(job: Job, cell: Cell, progress: bool) -> dict[str, Any]:
    """Train one run, or go on with it, then look at the test split once."""
    splits = _splits(job, cell)
    pairs = mismatched(job, cell)
    run = train(pairs, splits["dev"], job.grid.train_config(cell), job.folder(cell), resume=True, progress=progress)
    probability = run.match_probability(pairs) if METHODS[run.config.method].divides else None
    truth = pairs.is_mismatched
    detection = None
    if probability is not None and truth is not None and truth.any() and not truth.all():
        detection = measure_detection(probability, truth).to_dict()
    return {
        **asdict(cell),
        "dev": evaluate(run.model, splits["dev"]).to_dict(),
        "test": evaluate(run.model, splits["test"]).to_dict(),
        "detection": detection,
        "estimated_ratio": None if probability is None else float(1 - probability.mean()),
        "rematch": rematch_hits(run, pairs),
        "seconds": round(_seconds(run), 1),
        "commit": commit(),
    }


def mismatched(job: Job, cell: Cell) -> Pairs:
    """The training pairs of a run.

    Raises:
        InputError: an index file that is missing or does not fit; or one that holds another ratio or level.
    """
    pairs = _splits(job, cell)["train"]
    if cell.level == "none":
        return pairs if pairs.true_image_of is not None else replace(pairs, true_image_of=pairs.image_of)
    index = job.grid.index_file(cell, job.source)
    if index is None:
        return inject_mismatches(pairs, ratio=cell.ratio, level=cell.level, seed=cell.seed).pairs
    noisy = read_index(index, pairs)
    if noisy.level != cell.level or abs(noisy.ratio - cell.ratio) > 0.01:
        raise InputError(
            f"{index}: mismatches {100 * noisy.ratio:.1f} % at level {noisy.level}, where the grid wants "
            f"{100 * cell.ratio:.1f} % at level {cell.level}; correct the pattern"
        )
    return noisy.pairs


@torch.no_grad()
def rematch_hits(run: Run, pairs: Pairs) -> dict[str, float] | None:
    """How often the true image of a truly mismatched caption is the first, or in the first ten, that a run suggests.

    A run that rematches the whole data set suggests by such a plan, any other the best-scoring images
    of the whole training set, the given one left out. None where no caption is mismatched, and for SGR and SAF, whose
    scores of whole training sets take hours.
    """
    truth, true_image_of, model = pairs.is_mismatched, pairs.true_image_of, run.model
    if truth is None or true_image_of is None or not truth.any() or model.config.similarity not in ("cosine", "clip"):
        return None
    rows = np.flatnonzero(truth)
    if run.config.method == "l2rm" and run.config.rematching.scope == "dataset":
        suggested = _by_plan(run, pairs)[rows]
    else:
        suggested = _nearest(model, pairs, rows)
    hits = measure_rematch(suggested, true_image_of[rows])
    return {"hit1": hits.hit1, "hit10": hits.hit10}


def _by_plan(run: Run, pairs: Pairs) -> NDArray[np.int64]:
    """(rows, 10) what a plan over the data set gives every suspect; −1 for others."""
    probability = run.match_probability(pairs)
    assert probability is not None
    scores = model_scores(run.model, pairs)
    return partners_of_suspects(scores, pairs, probability, run.config, run.evidence).suggested


def _nearest(model: RetrievalModel, pairs: Pairs, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """(rows, 10) the best-scoring images, the given one left out."""
    scores, images, suggested = model_scores(model, pairs), np.arange(pairs.n_images), []
    for part in np.array_split(rows, -(-len(rows) // CAPTIONS_AT_ONCE)):
        S = checked_block(scores, images, part).cpu()
        S[torch.from_numpy(pairs.image_of[part]), torch.arange(len(part))] = -torch.inf
        suggested.append(S.topk(min(SUGGESTIONS, len(images) - 1), dim=0).indices.T.numpy())
    return np.concatenate(suggested)


def _seconds(run: Run) -> float:
    """Of training, measuring on dev included, over all sittings."""
    return float(sum(line["seconds"]["train"] + line["seconds"]["dev"] for line in run.metrics))


def _splits(job: Job, cell: Cell) -> dict[str, Pairs]:
    """DATA with features, or with pixels for a model that is fine-tuned from them."""
    config = job.grid.train_config(cell)
    encoder = job.encoder
    if config.model.similarity == "clip":
        check_config(config)
        encoder = EncoderConfig(name=rooted(config).model.encoder, finetuned=True)
    return _read(job.source, job.image_root, encoder)


@lru_cache(maxsize=1)
def _read(source: str, image_root: Path | None, encoder: EncoderConfig) -> dict[str, Pairs]:
    """DATA with features, read once a process."""
    splits = open_splits(source, image_root=image_root)
    for name in NEEDED:
        if name not in splits:
            raise InputError(f"{source}: no split {name!r} among {', '.join(splits)}; a benchmark needs all three")
    return {name: with_features(splits[name], encoder) for name in NEEDED}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        return read_lines(path)
    except ValueError as error:
        raise InputError(f"{path}: not JSON, a line a row ({error}); take the broken line out") from error


def _check_begun(job: Job) -> None:
    """What was begun, or is finished, was begun with the same settings: else its row would be another experiment's.

    What was not begun and is to be judged for finds its judge finished.
    """
    known = {cell_of(row) for row in job.rows()}
    for cell in job.grid.cells:
        folder, config = job.folder(cell), job.grid.train_config(cell)
        if (folder / "config.json").is_file():
            record = read_record(folder)
            check_same_run(folder, record, rooted(config), record.get("fingerprint", ""))
        elif config.rematching.judge and cell not in known:
            check_judge(config.rematching.judge)


@contextmanager
def _claimed(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that the system drops with the process; whether it was free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
