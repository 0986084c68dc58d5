"""`l2rm quickstart`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from l2rm.commands.command import Command


@dataclass(frozen=True, kw_only=True)
class Quickstart(Command):
    """See L2RM at work on real data: OpenMoji's pictures, 40 % of them mismatched.

    Trains a plain model, L2RM and an oracle that knows the truth, audits the pairs, prints one table and writes
    DIR/report.html and DIR/index, which l2rm serve opens. A few minutes on two cores; needs the extra quickstart (pip
    install 'l2rm[quickstart]').

    Examples:
      l2rm quickstart
      l2rm quickstart --out runs/seed1 --seed 1
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("quickstart")
    """Folder for summary.json, report.html, the runs and the index."""
    seed: int = 0
    """Rules the split, the corruption and the initial weights."""

    def run(self) -> None:
        from l2rm.quickstart import quickstart

        quickstart(out=self.out, seed=self.seed, progress=not self.quiet)
