"""A small data set with drawn pictures, whose scores see through most of its mismatches."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from l2rm.auditing import ratio
from l2rm.auditing.audit import Audit, audit_scores
from l2rm.data.pairs import Pairs
from l2rm.evaluation.scores import MatrixScores
from l2rm.rematching.division import BetaMixture


@dataclass(frozen=True)
class Case:
    pairs: Pairs
    scores: MatrixScores
    audit: Audit


def build_case(images: int = 60, captions_an_image: int = 2) -> Case:
    generator = np.random.default_rng(0)
    names = tuple(f"picture {image}.png" for image in range(images))
    true_image = np.repeat(np.arange(images), captions_an_image)
    given = np.arange(images)
    given[:18] = np.roll(given[:18], 1)
    towers = generator.normal(size=(images, 24))
    heard = towers[true_image] + generator.normal(size=(len(true_image), 24))
    scale = np.linalg.norm(towers, axis=1)[:, None] * np.linalg.norm(heard, axis=1)[None, :]
    pairs = Pairs(
        images=names,
        image_of=given[true_image],
        captions=tuple(f"caption {row} of picture {image}" for row, image in enumerate(true_image)),
        true_image_of=true_image,
        source="pictures.csv",
    )
    scores = MatrixScores(0.6 * (towers @ heard.T) / scale)
    return Case(pairs=pairs, scores=scores, audit=audit_scores(scores, pairs, progress=False))


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bootstrap of a few draws, where an interval is drawn at all."""
    monkeypatch.setattr(ratio.mismatch_ratio, "__kwdefaults__", {**ratio.mismatch_ratio.__kwdefaults__, "draws": 4})


@pytest.fixture(scope="session")
def case() -> Case:
    return build_case()


@pytest.fixture(scope="session")
def pictured(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("pictures")
    for image in range(60):
        Image.new("RGBA", (300, 200), (4 * image, 80, 200, 255)).save(root / f"picture {image}.png")
    pairs = replace(case.pairs, image_root=root)
    return replace(case, pairs=pairs, audit=replace(case.audit, pairs=pairs))


@pytest.fixture
def fitted(case: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The same, where the mixture need not be fitted again to the same losses."""

    fit_any = BetaMixture.fit

    def fit(losses: torch.Tensor, **settings: Any) -> BetaMixture:
        if settings:  # of the bootstrap
            return fit_any(losses, **settings)
        assert torch.equal(losses, torch.from_numpy(case.audit.losses))
        return case.audit.mixture

    monkeypatch.setattr(BetaMixture, "fit", fit)
    return case


@pytest.fixture(scope="session")
def reviewed(script: Callable[[str], ModuleType]) -> ModuleType:
    """The module `reviewed.py`."""
    pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install -e '.[serve]'")
    return script("tests/auditing/reviewed.py")


@pytest.fixture(scope="session")
def browsing(script: Callable[[str], ModuleType]) -> ModuleType:
    """The module `browser.py`."""
    return script("tests/auditing/browser.py")
