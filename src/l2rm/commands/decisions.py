"""`l2rm decisions`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from l2rm.commands.command import Command


@dataclass(frozen=True, kw_only=True)
class Decisions(Command):
    """What was decided about the pairs of an audit: how far the review is, and its export without the page.

    FILE is a table (.parquet .csv .tsv .jsonl) of the decisions or, with --what pairs, of the repaired pairs; .txt has
    the keys of pairs that stay as they are, one a line, to filter shards with; .npy is an index file for --mismatch.

    Examples:
      l2rm decisions audit
      l2rm decisions audit --out decisions.csv
      l2rm decisions audit --what pairs --undecided keep --out repaired.parquet
    """

    folder: Annotated[Path, Positional, arg(metavar="DIR")]
    """Folder that l2rm audit left."""
    out: Annotated[Path | None, arg(metavar="FILE")] = None
    """What to write; without it, only the count is printed."""
    what: Literal["decisions", "pairs"] = "decisions"
    """What a table holds: the decisions (for l2rm train --decisions), or the pairs after them."""
    undecided: Literal["audit", "keep", "drop"] = "audit"
    """Pairs that nobody decided about: do as the audit says, keep them, or drop them. A table of decisions leaves them
    out."""

    def run(self) -> None:
        from l2rm.auditing.exports import Kind, export
        from l2rm.auditing.folder import AuditFolder
        from l2rm.auditing.queue import ReviewQueue

        queue = ReviewQueue(AuditFolder.open(self.folder), make_store=False)
        counts = queue.counts()
        print(
            f"{counts['decided']} of {counts['pairs']} pairs decided: keep {counts['keep']}, rematch "
            f"{counts['rematch']}, drop {counts['drop']}; {counts['suspects_decided']} of {counts['suspects']} "
            "suspicious ones"
        )
        if counts["strays"]:
            print(f"{counts['strays']} decisions are about pairs or images not in this audit; they do not count")
        if self.out is None:
            return
        special: dict[str, Kind] = {".txt": "filter", ".npy": "index"}
        told = export(queue, special.get(self.out.suffix.lower(), self.what), self.out, undecided=self.undecided)
        print(f"{told.rows} rows in {self.out}" + (f"; {told.note}" if told.note else ""))
