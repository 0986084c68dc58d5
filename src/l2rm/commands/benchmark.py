"""`l2rm benchmark`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from l2rm.commands.command import Command, DataOption, ImageRoot
from l2rm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Benchmark(Command):
    """Compare methods: every method, similarity, mismatch ratio, level and seed of a grid is a run on the same DATA.

    Each run leaves a row in results.jsonl; table.md and plots are written at the end. Called again, it goes on: rows
    stay, a run that was stopped is resumed. Several commands may share a folder. DATA need splits train, dev and test.

    Examples:
      l2rm benchmark flickr8k --data flickr8k_precomp --mismatch '{level}_{percent}.npy' --out results/flickr8k
      l2rm benchmark flickr8k-sgr --data flickr8k_precomp --mismatch '{level}_{percent}.npy' --out results/sgr \\
        --judge 'results/flickr8k/runs/cosine-{noise}-l2rm-{seed}'
      l2rm benchmark my_grid.toml --data pairs.csv --out results/mine --workers 2
    """

    grid: Annotated[str, Positional, arg(metavar="GRID")]
    """A grid file (.toml, .json), or a built-in one: flickr8k, flickr8k-sgr."""
    data: DataOption
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder of rows, table, plots and run folders."""
    mismatch: Annotated[str | None, arg(metavar="PATTERN")] = None
    """Index files of mismatches, such as '{level}_{percent}.npy', from DATA's folder on. Default: the grid's, else
    mismatches are injected by the seed."""
    judge: Annotated[str | None, arg(metavar="PATTERN")] = None
    """Runs that divide and find partners for those of l2rm, such as 'dual/runs/cosine-{noise}-l2rm-{seed}': a cheap
    model judges, an expensive one learns. Default: the grid's, else every run judges for itself."""
    workers: int = 1
    """Processes, of one thread each where they are several."""
    report_only: Annotated[bool, arg(name="report-only")] = False
    """Run nothing; write table and plots of the rows that there are."""
    image_root: ImageRoot = None

    def run(self) -> None:
        from l2rm.benchmark.grid import JUDGE_PLACES, MISMATCH_PLACES, check_pattern, read_grid
        from l2rm.benchmark.report import write_report
        from l2rm.benchmark.work import Job, run_grid

        if self.workers < 1:
            raise InputError(f"workers: {self.workers} is too small; give at least 1")
        grid = read_grid(self.grid)
        if self.mismatch is not None:
            check_pattern(self.mismatch, "mismatch", *MISMATCH_PLACES)
            grid = replace(grid, mismatch=self.mismatch)
        if self.judge is not None:
            check_pattern(self.judge, "judge", *JUDGE_PLACES)
            grid = replace(grid, judge=self.judge)
        job = Job(grid=grid, source=self.data, out=self.out, image_root=self.image_root)
        try:
            if not self.report_only:
                run_grid(job, workers=self.workers, progress=not self.quiet)
        finally:
            files = write_report(job)
        missing = len(grid.cells) - len(job.rows())
        print(f"{len(job.rows())} of {len(grid.cells)} runs have a row in {job.results}")
        if missing and not self.report_only:
            print(f"another command has {missing} in hand; call again for their table")
        print("\n".join(map(str, files)))
