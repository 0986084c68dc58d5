"""What an environment to test in needs, as pip reads it: with no extra (core), or all in lowest versions (lowest).

python benchmarks/requirements.py lowest > requirements.txt
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = {
    "core": ["test"],
    "lowest": ["quickstart", "hf", "finetune", "serve", "faiss", "distributed", "ray", "docs"],
}


def requirements(what: str) -> list[str]:
    """Lines for pip; `lowest` makes every lower bound the version, except of torch and of the tests' tools."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS[what]:
        wanted += project["optional-dependencies"][extra]
    if what == "core":
        return wanted
    lowest = [line if re.match(r"torch\b", line) else line.replace(">=", "==") for line in wanted]
    return lowest + project["optional-dependencies"]["test"]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
