"""Where a number comes from: commit, machine, date."""

import datetime
import platform
import subprocess
from pathlib import Path

from l2rm import __version__


def provenance(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Commit, machine and date, for a file of results.

    Args:
        folder: the commit is followed by a + where what lies there differs from it. By default this package.
    """
    return {
        "commit": commit(folder),
        "machine": f"{_processor()}, {platform.system()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def commit(folder: Path = Path(__file__).parent) -> str:
    """The short commit of the checkout that `folder` lies in; the version of the package where it is in none."""
    head = _git("rev-parse", "--short", "HEAD", folder=folder)
    if not head or _git("ls-files", ".", folder=folder) == "":
        return f"l2rm {__version__}"
    return head + ("+" if _git("status", "--porcelain", ".", folder=folder) else "")


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()
