"""What `import l2rm` gives, and what it costs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import l2rm


def test_import_is_cheap() -> None:
    script = (
        "import sys, l2rm; l2rm.Pairs; l2rm.inject_mismatches; l2rm.TrainConfig(); l2rm.InputError; "
        "import l2rm.sources; print([name for name in ('torch', 'scipy', 'matplotlib', 'nltk') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", l2rm.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(l2rm, name) is not None
    assert name in dir(l2rm)


def test_commands_are_functions_whatever_is_imported() -> None:
    import l2rm.auditing.audit
    import l2rm.evaluation.evaluate
    import l2rm.training.train

    for name in ("audit", "evaluate", "train", "load", "partial_transport"):
        assert callable(getattr(l2rm, name)), name


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'rematches'"):
        _ = l2rm.rematches  # type: ignore[attr-defined]


def test_version_is_the_distribution_s() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("version", l2rm.__version__) == l2rm.__version__


def test_type_checkers_see_the_same_names() -> None:
    source = Path(l2rm.__file__).read_text(encoding="utf-8")
    block = source[source.index("if TYPE_CHECKING:") : source.index("__version__ =")]
    seen = {line.split(" as ")[1] for line in block.splitlines() if " as " in line}
    assert seen == set(l2rm.__all__) - {"__version__"}


def test_the_reference_has_every_name_once() -> None:
    page = (Path(__file__).parents[1] / "docs/api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: l2rm\.(\w+)$", page, re.MULTILINE)) == sorted(set(l2rm.__all__) - {"__version__"})
