"""`table.md` and the PNGs of a benchmark, from its rows and what the run folders hold."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from l2rm.benchmark.alike import CaptionLikeness
from l2rm.benchmark.grid import Cell, percent
from l2rm.benchmark.plots import Found, plot_detection, plot_recall, plot_reliability, plot_rematched
from l2rm.benchmark.table import write_table
from l2rm.benchmark.work import Job, cell_of, mismatched
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.provenance import provenance
from l2rm.training.methods.registry import METHODS
from l2rm.training.run import read_record

SHOWN = 0.4
"""The mismatch ratio whose detection and rematches are drawn, or the one of the grid that is nearest."""


def write_report(job: Job) -> list[Path]:
    """Write the table and every picture that the rows so far allow; returns the files.

    Detection, reliability and rematches are those of each method's first seed at the ratio nearest to 40 %, where its
    run folder is at hand.
    """
    rows = job.rows()
    if not rows:
        return []
    here = provenance()
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    name = Path(job.source).name
    facts = {
        "data": name,
        "mismatches": "injected by the seed" if job.grid.mismatch is None else f"index files {job.grid.mismatch}",
        **({} if job.grid.judge is None else {"l2rm is judged for by": f"runs {Path(job.grid.judge).name}"}),
        "runs": f"{len(rows)} of {len(job.grid.cells)}",
        "commits": commits,
        "written": f"{here['date']} on {here['machine']}",
    }
    write_table(job.out / "table.md", job.grid, rows, facts)
    files = [job.out / "table.md"]
    told = f"{name}; commits {commits}; {here['machine']}, {here['date']}"
    for similarity in job.grid.similarities:
        for level in job.grid.levels:
            of_level = [r for r in rows if r["similarity"] == similarity and r["level"] in (level, "none")]
            if of_level:
                files += _plots(job, of_level, f"{similarity}-{level}", f"{similarity}, {level} level", told)
    return files


def _plots(job: Job, rows: Sequence[dict[str, Any]], stem: str, title: str, told: str) -> list[Path]:
    recall = job.out / f"recall-{stem}.png"
    plot_recall(recall, job.grid, rows, title=f"Retrieval: {title}", provenance=told)
    files, noisy = [recall], [ratio for ratio in job.grid.ratios if ratio]
    if not noisy:
        return files
    ratio = min(noisy, key=lambda one: abs(one - SHOWN))
    found = [
        one
        for method in job.grid.methods
        for row in [r for r in rows if r["method"] == method and r["ratio"] == ratio][:1]
        if (one := _found(job, cell_of(row))) is not None
    ]
    shown = f"{title}, {percent(ratio)} % mismatched, one seed"
    if any(one.match_probability is not None for one in found):
        detection, calibration = job.out / f"detection-{stem}.png", job.out / f"reliability-{stem}.png"
        plot_detection(detection, job.grid, found, title=f"Detection: {shown}", provenance=told)
        plot_reliability(calibration, job.grid, found, title=f"Reliability: {shown}", provenance=told)
        files += [detection, calibration]
    if any(one.alike for one in found):
        rematched = job.out / f"rematched-{stem}.png"
        plot_rematched(rematched, found, title=f"Rematches: {shown}", provenance=told)
        files.append(rematched)
    return files


def _found(job: Job, cell: Cell) -> Found | None:
    """What the run folder of a row holds; None where there is no folder any more."""
    path = job.folder(cell) / "pairs.parquet"
    if not path.is_file():
        return None
    pairs = mismatched(job, cell)
    truth = pairs.is_mismatched
    table = pq.read_table(path)
    if truth is None or len(table) != len(pairs):
        raise InputError(f"{path}: {len(table)} pairs, where DATA have {len(pairs)}; give the data of the runs")
    divides = METHODS[read_record(job.folder(cell))["config"]["method"]].divides
    probability = table["match_probability"].to_numpy().astype(np.float64) if divides else None
    return Found(
        method=cell.method,
        match_probability=probability,
        is_mismatched=truth,
        alike=_alike(pairs, table["rematch_image"].to_pylist()),
    )


def _alike(pairs: Pairs, rematch: list[str | None]) -> dict[str, np.ndarray]:
    """Likeness by the given image, the rematch and the true partner; nothing where nothing was rematched."""
    truth, true_image_of = pairs.is_mismatched, pairs.true_image_of
    if truth is None or true_image_of is None or pairs.caption_features is not None:
        return {}
    number = {name: index for index, name in enumerate(pairs.images)}
    chosen = np.array([-1 if name is None else number[name] for name in rematch])
    rows, asked = np.flatnonzero(truth & (true_image_of >= 0)), np.flatnonzero(truth & (chosen >= 0))
    if not len(asked):
        return {}
    likeness = CaptionLikeness(pairs)
    return {
        "given": likeness(rows, pairs.image_of[rows]),
        "rematched": likeness(asked, chosen[asked]),
        "true partner": likeness(rows, true_image_of[rows]),
    }
