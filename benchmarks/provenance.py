"""Where a number comes from: commit, machine, date."""

from pathlib import Path

from l2rm import provenance as of_package


def provenance() -> dict[str, str]:
    """Commit (with a + where the tree differs from it), machine and date, for a file of results."""
    return of_package.provenance(Path(__file__).parents[1])
