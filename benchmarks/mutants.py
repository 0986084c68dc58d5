"""Which mistakes in `rematching/` would the tests not see? One is made at a time: a comparison, a sign, a constant.

    python benchmarks/mutants.py --mutants 200 --minutes 60 --out mutants.json

Mutants are drawn by a seed, the same number from every file until a file has no more. Each runs the tests of its own
file, up to the first that fails, in a fork of this process; before all else these tests must pass without a mistake.
A mutant that survives is no proof of a gap: some compute the same by another way, or only more slowly.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch
from provenance import provenance

ROOT = Path(__file__).parents[1]
ROOM = ROOT / "src" / "l2rm" / "rematching"
TESTS = ROOT / "tests"
FILES = {
    "calibrated": ["rematching/test_calibrated"],
    "candidates": ["rematching/test_candidates"],
    "control": ["rematching/test_control"],
    "cost": ["rematching/test_cost", "rematching/test_step"],
    "dataset": ["rematching/test_dataset"],
    "division": ["rematching/test_division"],
    "equivariant": ["rematching/test_equivariant"],
    "few": ["rematching/test_few"],
    "gaussian": ["rematching/test_gaussian"],
    "memory": ["rematching/test_memory"],
    "objectives": ["rematching/test_objectives"],
    "partners": ["rematching/test_partners", "rematching/test_calibrated", "auditing/test_rematch"],
    "ranks": ["rematching/test_ranks"],
    "sparse": ["rematching/test_dataset"],
    "step": ["rematching/test_step"],
    "together": ["auditing/test_rematch"],
    "transport": ["rematching/test_transport"],
}
"""Whose tests are whose; `settings` holds nothing but defaults."""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
SUMS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
OPTIONS = ("-q", "-n0", "-p", "no:cacheprovider", "--tb=no", "--hypothesis-profile=mutants")
SECONDS = 60
"""A mutant that takes more of the processor's time counts as seen: it hangs."""


def mutants(tree: ast.Module) -> list[tuple[int, str, int, str]]:
    """Every mistake: (line, what is done, which node of the tree, what `_make` does to it)."""
    found = []
    annotations = {id(part) for node in ast.walk(tree) for part in _annotation(node)}
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in annotations:
            continue
        for what in _mistakes(node):
            twin = copy.deepcopy(node)
            _make(twin, what)
            told = f"{ast.unparse(node)}  ->  {ast.unparse(twin)}"
            found.append((node.lineno, told, number, what))  # type: ignore[attr-defined]
    return found


def mutated(tree: ast.Module, number: int, what: str) -> ast.Module:
    """The module with one mistake."""
    changed = copy.deepcopy(tree)
    _make(list(ast.walk(changed))[number], what)
    return changed


def _annotation(node: ast.AST) -> list[ast.AST]:
    """Parts of type annotations, where `|` is no sum."""
    parts = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [inner for part in parts if part is not None for inner in ast.walk(part)]


def _mistakes(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        return ["compare"]
    if isinstance(node, ast.BinOp) and type(node.op) in SUMS:
        return ["sum"]
    if isinstance(node, ast.BoolOp):
        return ["and or"]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        return ["drop"]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return ["flip"] if isinstance(node.value, bool) else ["more"]
    return []


def _make(node: ast.AST, what: str) -> None:
    if isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp):
        node.op = SUMS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
        if what == "drop" and not isinstance(node.op, ast.UAdd):  # `not x` and `~x`: turned round once more
            node.operand = ast.UnaryOp(node.op, node.operand)
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value * 2 + 1


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a tree instead of its file."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(ast.fix_missing_locations(self.tree), str(self.path), "exec"), module.__dict__)


def _warm_up(files: list[str]) -> None:
    """Import, once and not in every fork, whatever the tests import but the package itself."""
    found = hypothesis.Phase.explicit, hypothesis.Phase.generate  # that an example fails is enough; none is made small
    hypothesis.settings.register_profile(
        "mutants", derandomize=True, deadline=None, database=None, phases=found, report_multiple_bugs=False
    )
    tests = sorted({str(TESTS / f"{name}.py") for file in files for name in FILES[file]})
    pytest.main(["--collect-only", "-qq", *OPTIONS, *tests])
    for name in [name for name in sys.modules if name.partition(".")[0] in ("l2rm", "tests", "conftest")]:
        del sys.modules[name]


def outcome(file: str, tree: ast.Module) -> str:
    """What the tests of the file say of the module in its place: "passed", "failed" or "hung"."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        sys.meta_path.insert(0, _Mutated(f"l2rm.rematching.{file}", ROOM / f"{file}.py", tree))
        tests = [str(TESTS / f"{name}.py") for name in FILES[file]]
        os._exit(int(pytest.main(["-x", *OPTIONS, *tests])))
    _, status = os.waitpid(child, 0)
    if not os.WIFEXITED(status):
        return "hung"
    return "failed" if os.WEXITSTATUS(status) else "passed"


def drawn(files: list[str], seed: int) -> list[tuple[str, int, str, int, str]]:
    """All mutants of the files in the order in which they are tried: one of each file, then the next of each."""
    turns = []
    for file in files:
        every = mutants(_parsed(file))
        random.Random(f"{seed} {file}").shuffle(every)
        turns += [(turn, file, *mutant) for turn, mutant in enumerate(every)]
    return [mutant[1:] for mutant in sorted(turns, key=lambda mutant: mutant[:2])]


def _parsed(file: str) -> ast.Module:
    return ast.parse((ROOM / f"{file}.py").read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", choices=FILES, action="append")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out.absolute()
    os.chdir(ROOT)
    files = options.file or list(FILES)
    deadline = time.monotonic() + 60 * options.minutes
    _warm_up(files)
    for file in files:
        if (said := outcome(file, _parsed(file))) != "passed":
            sys.exit(f"{file}.py: its tests {said} without a mistake; mend them first")
    everything = drawn(files, options.seed)
    counts = {file: {"mutants": 0, "failed": 0, "hung": 0, "passed": 0} for file in files}
    for file, *_ in everything:
        counts[file]["mutants"] += 1
    survivors = []
    result = {"provenance": provenance(), "seed": options.seed, "files": counts, "survivors": survivors}
    tried = 0
    for file, line, told, number, what in everything[: options.mutants]:
        if time.monotonic() > deadline:
            break
        said = outcome(file, mutated(_parsed(file), number, what))
        counts[file][said] += 1
        tried += 1
        if said == "passed":
            survivors.append({"file": file, "line": line, "what": told})
            print(f"survives: {file}.py:{line}: {told}", flush=True)
        out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{tried} of {len(everything)} mutants tried, {len(survivors)} survive; written to {options.out}")


if __name__ == "__main__":
    main()
