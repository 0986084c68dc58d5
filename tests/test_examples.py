"""What the documents show does run, and what they list is there."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from l2rm.commands import COMMANDS
from l2rm.data.features import Features

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`show("train_and_audit.py", "out")`: what that example prints, in a folder and with a cache of its own."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.usefixtures("one_thread")
def test_audit_embeddings(show: Callable[..., str]) -> None:
    printed = show("audit_embeddings.py")
    assert "60 of 200 pairs look mismatched; 60 are" in printed
    assert "rematch, to 0.jpg" in printed


@pytest.mark.usefixtures("one_thread")
def test_train_and_audit(show: Callable[..., str], tmp_path: Path) -> None:
    printed = show("train_and_audit.py", "out")
    rsum = {method: float(value) for method, value in re.findall(r"(\w+): test rSum ([\d.]+)", printed)}
    auroc = re.search(r"AUROC ([\d.]+)", printed)
    assert rsum.keys() == {"plain", "l2rm"}
    assert rsum["l2rm"] > 500  # chance is about 32
    assert auroc is not None
    assert float(auroc[1]) > 0.95
    assert (tmp_path / "out/report.html").stat().st_size > 10_000


def test_int8_as_the_data_document_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(encoding="utf-8"), re.DOTALL)
    features = np.random.default_rng(0).normal(size=(700, 4, 6)).astype(np.float16)
    features[:, :, 2] = 0  # a dimension without values, too, has a step
    for folder in ("f30k_precomp", "f30k_int8"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "f30k_precomp/train_ims.npy", features)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "docs/data.md", "exec"), {})
    read = Features.open(tmp_path / "f30k_int8/train_ims.npy")
    assert read.array.dtype == np.int8
    error = np.abs(read.batch(np.arange(700)).numpy() - features.astype(np.float32)).max((0, 1))
    assert (error <= np.abs(features.astype(np.float32)).max((0, 1)) / 127 / 2 + 1e-6).all()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_that_sentences_name_are_commands(document: str) -> None:
    """Those with arguments are run by tests/test_documents_run.py."""
    for line in re.findall(r"`l2rm ([^`]+)`", (ROOT / document).read_text(encoding="utf-8")):
        assert line.split()[0] in {*COMMANDS, "--version"}, line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_name_are_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:src/l2rm|tests|docs|examples|benchmarks)/[\w./-]*\w)", text))
    named |= {f"src/l2rm/{path}" for path in re.findall(r"`((?:\w+/)+\w+\.py)`", text) if path not in named}
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named |= {str((ROOT / document).parent.joinpath(link).resolve().relative_to(ROOT)) for link in links}
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]


def test_readme_s_tree_is_the_disk_s() -> None:
    """A line names files or one folder; a folder with nothing below it in the tree stands for all in it."""
    tree = re.search(r"```text\nsrc/l2rm/\n(.*?)```", README, re.DOTALL)
    assert tree is not None
    package = ROOT / "src/l2rm"
    folders, listed = [""], []
    for line in tree[1].splitlines():
        found = re.match(r"((?:  )+)(\w[\w.]*/?(?:, \w[\w.]*)*)(?:  |$)", line)
        assert found is not None, line
        depth = len(found[1]) // 2
        names = [folders[depth - 1] + name for name in found[2].split(", ")]
        folders[depth:] = names
        listed += names
    assert len(listed) == len(set(listed))
    assert not [name for name in listed if not (package / name).exists()]
    shut = [name for name in listed if name.endswith("/") and not any(n != name and n.startswith(name) for n in listed)]
    for path in package.rglob("*.py"):
        name = str(path.relative_to(package))
        if path.name == "__init__.py":
            name = name.removesuffix("__init__.py")
        assert not name or name in listed or name.startswith(tuple(shut)), name
