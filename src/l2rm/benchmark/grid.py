"""What a benchmark compares: methods × similarities × ratios × levels × seeds. Imports no torch."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from l2rm.data.formats import files_of
from l2rm.errors import InputError
from l2rm.recipes import RECIPES, faithful
from l2rm.training.settings import Method, TrainConfig

Config = TypeVar("Config")
Level = Literal["image", "caption", "none"]

GRIDS = Path(__file__).with_name("grids")
MISMATCH_PLACES, JUDGE_PLACES = ("level", "percent", "seed"), ("noise", "seed")
"""What a pattern of index files, and one of runs that judge, may have places for."""
PAPER = "l2rm-paper"
"""l2rm with every choice as it was published, but as many gradient steps as the others."""
SIMILARITIES: dict[str, dict[str, Any]] = {
    "cosine": {"model": {"similarity": "cosine"}},
    "gpo": {"model": {"similarity": "cosine", "pooling": "gpo"}},
    "sgr": {"model": {"similarity": "sgr", "pooling": "mean"}},
    "saf": {"model": {"similarity": "saf", "pooling": "mean"}},
}
"""What a similarity's name sets, before a grid's own settings of it."""


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One run of a grid. A ratio of 0 has the level "none", and is run once for all levels."""

    method: str
    similarity: str
    ratio: float
    level: Level
    seed: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.similarity}-{self.noise}-{self.method}-{self.seed}"

    @property
    def noise(self) -> str:
        """Level and ratio, as names have them."""
        return "matched" if self.level == "none" else f"{self.level}-{percent(self.ratio)}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid file: TOML or JSON with these keys.

    Attributes:
        name: of the file.
        methods: those of `l2rm train`, and `l2rm-paper`.
        similarities: `cosine`, `gpo`, `sgr`, `saf`, or names that `similarity` describes.
        ratios: mismatch ratios in [0, 1).
        levels: at which captions are mismatched.
        seeds: of initial weights, order of batches and injected mismatches.
        recipe: named settings to start from; None for the defaults.
        mismatch: an index file for each ratio and level, with places `{level}`, `{percent}` and, at will, `{seed}`,
            from DATA's folder on; None to inject mismatches by the seed.
        judge: the RUN that divides and finds partners for each run of `l2rm` (`rematching.judge`), with places
            `{noise}` (as in the names of run folders, `image-40`) and `{seed}`; None where each judges for itself.
        config: settings of every run, as tables of the configuration's fields.
        method: further settings by method, `[method.ncr]`.
        similarity: further settings by similarity.
    """

    name: str
    methods: tuple[str, ...]
    similarities: tuple[str, ...] = ("cosine",)
    ratios: tuple[float, ...]
    levels: tuple[str, ...] = ("image",)
    seeds: tuple[int, ...] = (0,)
    recipe: str | None = None
    mismatch: str | None = None
    judge: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    similarity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """Every run, all methods of one seed, ratio and level together, so that a table fills up evenly."""
        found: dict[Cell, None] = {}
        for seed, ratio, level, similarity, method in product(
            self.seeds, self.ratios, self.levels, self.similarities, self.methods
        ):
            level_: Level = "image" if level == "image" else "caption"
            cell = Cell(method=method, similarity=similarity, ratio=ratio, level=level_ if ratio else "none", seed=seed)
            found[cell] = None
        return list(found)

    def train_config(self, cell: Cell) -> TrainConfig:
        """The configuration of one run.

        Raises:
            InputError: a setting that the configuration does not have, or of another type.
        """
        config = TrainConfig() if self.recipe is None else RECIPES[self.recipe]()
        config = overridden(config, self.config, f"{self.name}: config")
        config = overridden(config, SIMILARITIES.get(cell.similarity, {}), cell.similarity)
        config = overridden(
            config, self.similarity.get(cell.similarity, {}), f"{self.name}: similarity.{cell.similarity}"
        )
        method: Any = cell.method
        if cell.method == PAPER:
            config = replace(config, rematching=replace(faithful(config).rematching, steps="pairs"))
            method = "l2rm"
        config = overridden(config, self.method.get(cell.method, {}), f"{self.name}: method.{cell.method}")
        if self.judge is not None and cell.method == "l2rm":
            judge = self.judge.format(noise=cell.noise, seed=cell.seed)
            config = replace(config, rematching=replace(config.rematching, judge=judge))
        return replace(config, method=method, seed=cell.seed)

    def index_file(self, cell: Cell, source: str) -> Path | None:
        """The index file that mismatches a run; None where mismatches are injected, or none are wanted."""
        if self.mismatch is None or cell.level == "none":
            return None
        name = self.mismatch.format(level=cell.level, percent=percent(cell.ratio), seed=cell.seed)
        folder = Path(source) if Path(source).is_dir() else files_of(source)[0].parent
        return folder / name


def read_grid(source: str) -> Grid:
    """A grid file, or a built-in grid by its name.

    Raises:
        InputError: no such file or name, not TOML or JSON, a key that is unknown or missing, or a value that no run can
            have.
    """
    path = Path(source)
    built_in = GRIDS / f"{source}.toml"
    if not path.is_file() and not built_in.is_file():
        names = ", ".join(sorted(one.stem for one in GRIDS.glob("*.toml")))
        raise InputError(f"{source}: no such grid; give a .toml or .json file, or one of {names}")
    path = path if path.is_file() else built_in
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: neither TOML nor, if its name ends so, JSON ({reason}); correct it") from error
    return _checked(Grid(name=path.stem, **_fields(content, path)), path)


def overridden(config: Config, values: Mapping[str, Any], where: str) -> Config:
    """The same configuration with some fields set; a table of fields for a nested configuration.

    Raises:
        InputError: a field that it does not have, or a value of another type.

    Example:
        >>> overridden(TrainConfig(), {"lr": 1e-3, "model": {"embed_dim": 64}}, "here").model.embed_dim
        64
    """
    changes: dict[str, Any] = {}
    hints: dict[str, Any] = get_type_hints(type(config))
    for name, value in values.items():
        if name not in hints or not _is_field(config, name):
            raise InputError(f"{where}.{name}: no such setting; l2rm train --help lists them")
        before = getattr(config, name)
        if is_dataclass(before):
            if not isinstance(value, Mapping):
                raise InputError(f"{where}.{name}: {value!r} is no table; give one of its settings")
            changes[name] = overridden(before, value, f"{where}.{name}")
            continue
        if isinstance(before, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(before):
            raise InputError(f"{where}.{name}: {value!r} is no {type(before).__name__}; correct it")
        changes[name] = value
    changed: Config = replace(config, **changes)  # type: ignore[type-var]
    return changed


def check_pattern(pattern: str, where: str, *places: str) -> None:
    """Look for places in a pattern of file names that nothing fills.

    Raises:
        InputError: there is one.
    """
    try:
        pattern.format(**dict.fromkeys(places, 0))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{place}}}" for place in places)
        raise InputError(f"{where}: {pattern!r} has a place other than {known} ({error}); correct it") from error


def percent(ratio: float) -> str:
    """As file names have it: 0.4 is 40, 0.125 is 12.5."""
    return f"{100 * ratio:.6g}"


def _is_field(config: Any, name: str) -> bool:
    return name in {one.name for one in fields(config)}


def _fields(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    known = {one.name for one in fields(Grid)} - {"name"}
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: is no table of keys; give one with methods and ratios")
    if unknown := sorted(content.keys() - known):
        raise InputError(f"{path}: unknown key {unknown[0]!r}; take one of {', '.join(sorted(known))}")
    for name in ("methods", "ratios"):
        if name not in content:
            raise InputError(f"{path}: no key {name!r}; say what to compare")
    found = dict(content)
    for name in ("methods", "similarities", "ratios", "levels", "seeds"):
        if name in found:
            if not isinstance(found[name], list) or not found[name]:
                raise InputError(f"{path}: {name} is {found[name]!r}; give a list")
            found[name] = tuple(found[name])
    for name in ("recipe", "mismatch", "judge"):
        if not isinstance(found.get(name, ""), str):
            raise InputError(f"{path}: {name} is {found[name]!r}; give a text")
    for name in ("config", "method", "similarity"):
        if not isinstance(found.get(name, {}), dict):
            raise InputError(f"{path}: {name} is {found[name]!r}; give a table")
    for name in ("method", "similarity"):
        for of, settings in found.get(name, {}).items():
            if not isinstance(settings, dict):
                raise InputError(f"{path}: {name}.{of} is {settings!r}; give a table")
    return found


def _checked(grid: Grid, path: Path) -> Grid:
    methods = (*get_args(Method), PAPER)
    similarities = (*SIMILARITIES, *grid.similarity)
    for what, given, known in (
        ("method", grid.methods, methods),
        ("similarity", grid.similarities, similarities),
        ("level", grid.levels, ("image", "caption")),
        ("recipe", () if grid.recipe is None else (grid.recipe,), tuple(RECIPES)),
        ("settings of method", tuple(grid.method), methods),
    ):
        for name in given:
            if name not in known:
                raise InputError(f"{path}: {what} {name!r} is unknown; take one of {', '.join(known)}")
    for ratio in grid.ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise InputError(f"{path}: ratio {ratio!r} is no share of the pairs; give numbers from 0 to below 1")
    for seed in grid.seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise InputError(f"{path}: seed {seed!r} is no whole number from 0 on")
    if grid.mismatch is not None:
        check_pattern(grid.mismatch, f"{path}: mismatch", *MISMATCH_PLACES)
    if grid.judge is not None:
        check_pattern(grid.judge, f"{path}: judge", *JUDGE_PLACES)
    return replace(grid, ratios=tuple(float(ratio) for ratio in grid.ratios))
