"""What a grid file says, and how it is refused."""

import json
from dataclasses import replace

import pytest

from l2rm.benchmark.grid import Cell, overridden, percent, read_grid
from l2rm.errors import InputError
from l2rm.recipes import dual, faithful
from l2rm.training.settings import TrainConfig

TEXT = """
methods = ["plain", "ncr", "l2rm-paper", "l2rm"]
similarities = ["cosine", "gpo", "narrow"]
ratios = [0, 0.4]
levels = ["image", "caption"]
seeds = [0, 3]
recipe = "dual"
mismatch = "noise/{level}_{percent}.npy"
[config]
lr = 1
[config.model]
embed_dim = 64
[method.ncr]
lr = 0.5
[similarity.narrow.model]
embed_dim = 8
"""


@pytest.fixture
def grid(tmp_path):
    def read(text=TEXT, name="mine.toml"):
        (tmp_path / name).write_text(text)
        return read_grid(str(tmp_path / name))

    return read


def test_cells_are_the_product_and_a_ratio_of_zero_is_run_once(grid):
    cells = grid().cells
    assert len(cells) == len(set(cells)) == 2 * (4 * 3) + 2 * 2 * (4 * 3)
    assert {cell.level for cell in cells if not cell.ratio} == {"none"}
    assert {cell.seed for cell in cells[: len(cells) // 2]} == {0}  # a seed after the other
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names)
    assert "gpo-caption-40-l2rm-paper-3" in names
    assert "cosine-matched-plain-0" in names


def config(grid, method="plain", similarity="cosine", seed=0):
    return grid.train_config(Cell(method=method, similarity=similarity, ratio=0.4, level="image", seed=seed))


def test_settings_of_recipe_grid_similarity_and_method_in_this_order(grid):
    read = grid()
    plain = config(read)
    assert plain == replace(dual(), method="plain", lr=1.0, model=replace(dual().model, embed_dim=64))
    assert isinstance(plain.lr, float)
    assert config(read, "ncr", seed=3) == replace(plain, method="ncr", lr=0.5, seed=3)
    assert config(read, similarity="gpo").model == replace(plain.model, pooling="gpo")
    assert config(read, similarity="narrow").model.embed_dim == 8


def test_the_paper_has_the_papers_choices_in_as_many_steps(grid):
    paper = config(grid(), "l2rm-paper")
    assert paper.method == "l2rm"
    assert paper.rematching == replace(faithful(paper).rematching, steps="pairs")
    assert paper.model == config(grid(), "l2rm").model


def test_index_files_are_looked_for_from_data_on(grid, tmp_path):
    cell = Cell(method="plain", similarity="cosine", ratio=0.4, level="caption", seed=0)
    read = grid()
    assert read.index_file(cell, str(tmp_path)) == tmp_path / "noise/caption_40.npy"
    assert read.index_file(cell, str(tmp_path / "pairs.csv")) == tmp_path / "noise/caption_40.npy"
    assert read.index_file(replace(cell, ratio=0.0, level="none"), str(tmp_path)) is None
    assert replace(read, mismatch=None).index_file(cell, str(tmp_path)) is None


def test_json_and_the_built_in_grid(grid):
    read = grid(json.dumps({"methods": ["plain"], "ratios": [0.2]}), "mine.json")
    assert (read.methods, read.ratios, read.seeds) == (("plain",), (0.2,), (0,))
    built_in = read_grid("flickr8k")
    assert len(built_in.seeds) >= 3
    for cell in built_in.cells:
        built_in.train_config(cell)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods = [", "neither TOML"),
        ("ratios = [0.4]", "no key 'methods'"),
        ('methods = ["magic"]\nratios = [0.4]', "method 'magic' is unknown; take one of l2rm, plain"),
        ('methods = ["plain"]\nratios = [1.0]', "ratio 1.0 is no share"),
        ('methods = ["plain"]\nratios = 0.4', "ratios is 0.4; give a list"),
        ('methods = ["plain"]\nratios = [0.4]\nlevels = ["word"]', "level 'word' is unknown"),
        ('methods = ["plain"]\nratios = [0.4]\nseeds = [-1]', "seed -1 is no whole number"),
        ('methods = ["plain"]\nratios = [0.4]\nrecipe = "cake"', "recipe 'cake' is unknown"),
        ('methods = ["plain"]\nratios = [0.4]\nmethod = 3', "method is 3; give a table"),
        ('methods = ["plain"]\nratios = [0.4]\ncolour = 3', "unknown key 'colour'"),
        ('methods = ["plain"]\nratios = [0.4]\nmismatch = "{noise}.npy"', "other than {level}, {percent}, {seed}"),
        ('methods = ["plain"]\nratios = [0.4]\njudge = "runs/{level}"', "other than {noise}, {seed}"),
        ('methods = ["plain"]\nratios = [0.4]\njudge = "runs/{noise.x}"', "other than {noise}, {seed}"),
        ('methods = ["plain"]\nratios = [0.4]\njudge = 3', "judge is 3; give a text"),
        ('methods = ["plain"]\nratios = [0.4]\n[similarity]\ncosine = 3', "similarity.cosine is 3; give a table"),
        ('methods = ["plain"]\nratios = [0.4]\n[method]\nplain = 3', "method.plain is 3; give a table"),
    ],
)
def test_what_is_no_grid_is_refused_in_a_line(grid, text, message):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        grid(text)
    assert "mine.toml" in str(error.value)
    assert message in str(error.value)


def test_a_list_is_no_grid(grid):
    with pytest.raises(InputError, match=r"mine\.json: is no table of keys"):
        grid("[1]", "mine.json")


def test_a_run_judges_for_l2rm_alone(grid):
    read = grid('methods = ["l2rm", "l2rm-paper", "division"]\nratios = [0.0, 0.4]\njudge = "dual/{noise}-{seed}"')
    judges = {cell.name: read.train_config(cell).rematching.judge for cell in read.cells}
    assert judges.pop("cosine-image-40-l2rm-0") == "dual/image-40-0"
    assert judges.pop("cosine-matched-l2rm-0") == "dual/matched-0"
    assert set(judges.values()) == {""}


def test_no_such_grid_names_the_built_in_ones():
    with pytest.raises(InputError, match=r"no such grid; .* or one of flickr8k"):
        read_grid("flickr9k")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs_are": 3}, "here.epochs_are: no such setting"),
        ({"epochs": 3}, "here.epochs: no such setting"),
        ({"model": {"magic": 3}}, "here.model.magic: no such setting"),
        ({"model": 3}, "here.model: 3 is no table"),
        ({"lr": "fast"}, "here.lr: 'fast' is no float"),
        ({"batch_size": 3.5}, "here.batch_size: 3.5 is no int"),
        ({"batch_size": True}, "here.batch_size: True is no int"),
    ],
)
def test_settings_that_are_none_are_refused(values, message):
    with pytest.raises(InputError) as error:
        overridden(TrainConfig(), values, "here")
    assert str(error.value).startswith(message)


def test_percent():
    assert [percent(ratio) for ratio in (0, 0.2, 0.125, 0.55, 0.29)] == ["0", "20", "12.5", "55", "29"]
