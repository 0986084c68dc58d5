"""Where a number comes from: commit, machine, date."""

import datetime
import platform
import subprocess
from pathlib import Path


def provenance() -> dict[str, str]:
    """Commit (with a + where the tree differs from it), machine and date, for a file of results."""
    root = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    dirty = subprocess.run(["git", "status", "--porcelain", ".."], cwd=root, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip() + ("+" if dirty.stdout.strip() else ""),
        "machine": f"{_processor()}, {platform.system()}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()
