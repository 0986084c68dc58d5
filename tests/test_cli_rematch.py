"""`l2rm rematch` from arguments to files, and what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import l2rm.auditing.rematch
import l2rm.training.run
from l2rm.cli import main
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """noisy.csv in a folder of its own, images in another, and S.npy, which knows better."""
    rng = np.random.default_rng(0)
    images, folder = 40, tmp_path / "images"
    folder.mkdir()
    for image in range(images):
        Image.new("RGB", (4, 4), (image, 0, 0)).save(folder / f"{image}.png")
    pairs = Pairs(
        images=tuple(f"{image}.png" for image in range(images)),
        image_of=np.repeat(np.arange(images), 2),
        captions=tuple(f'caption "{row}", with a comma' for row in range(2 * images)),
    )
    (tmp_path / "tables").mkdir()
    pairs.write(tmp_path / "tables" / "pairs.csv")
    S = rng.normal(0, 0.1, size=(images, 2 * images))
    S[pairs.image_of, np.arange(2 * images)] += 0.8
    np.save(tmp_path / "S.npy", S.astype(np.float32))
    noisy = tmp_path / "tables" / "noisy.csv"
    root = ["--image-root", str(folder)]
    whole = str(tmp_path / "tables" / "pairs.csv")
    assert main(["corrupt", whole, *root, "--ratio", "0.3", "--level", "caption", "--out", str(noisy)]) == 0
    return noisy


def arguments(table: Path, *more: object) -> list[str]:
    folder = table.parents[1]
    fixed = ["rematch", table, "--image-root", folder / "images", "--similarity", folder / "S.npy", "--quiet"]
    return [str(one) for one in (*fixed, *more)]


def test_a_table_is_repaired_and_read_back(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, filters = table.parent / "repaired.csv", table.parent / "filter.jsonl"
    before = {path: path.read_bytes() for path in table.parent.iterdir()}
    capsys.readouterr()
    # Scores are in the order of the images, which in noisy.csv are listed as they first appear.
    names = Pairs.read(table, image_root=table.parents[1] / "images").images
    order = [int(name.removesuffix(".png")) for name in names]
    S = np.load(table.parents[1] / "S.npy")
    np.save(table.parents[1] / "S.npy", S[order])

    assert main(arguments(table, "--dry-run")) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "dry run: nothing is written" in shown.out
    assert {path: path.read_bytes() for path in table.parent.iterdir()} == before
    counted = re.search(r"keep (\d+), rematch (\d+), drop (\d+)", shown.out)
    assert counted

    assert main(arguments(table, "--out", out, "--webdataset-filter", filters)) == 0
    shown = capsys.readouterr()
    assert counted[0] in shown.out
    assert f"--image-root {table.parents[1] / 'images'}" in shown.out
    assert float(re.search(r"suggested first ([\d.]+) %", shown.out)[1]) > 90  # type: ignore[index]
    assert {path: path.read_bytes() for path in before} == before
    back = Pairs.read(out, image_root=table.parents[1] / "images")
    assert len(back) == 80 - int(counted[3])
    assert back.is_mismatched.mean() < 0.1  # type: ignore[union-attr]
    assert len(filters.read_text().splitlines()) == 80
    assert json.loads(filters.read_text().splitlines()[0])["key"].isdigit()


def test_a_run_rematches_what_it_learned_from(
    precomp: Path, index: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rematch", str(precomp), "--mismatch", str(index), "--model", str(trained), "--keep-threshold", "0.9"]
    out, listed = tmp_path / "repaired.npy", tmp_path / "repaired.parquet"
    assert main([*command, "--out", str(out), "--rematch-threshold", "0", "--quiet"]) == 0
    assert f"80 rows written to {out}; read it with --mismatch {out}" in capsys.readouterr().out
    assert np.load(out).shape == (80,)
    assert (
        main([*command, "--out", str(listed), "--keep-dropped", "--level", "image", "--share", "0.7", "--quiet"]) == 0
    )
    assert "DATA have no image files" in capsys.readouterr().out
    table = pq.read_table(listed)
    assert table.num_rows == 80
    trained_on = pq.read_table(trained / "pairs.parquet")["match_probability"].to_numpy()
    assert np.allclose(table["match_probability"].to_numpy(), trained_on)
    assert table["given_image"].to_pylist() == [f"train/{image}" for image in np.load(index)]
    audit = ["audit", str(precomp), "--mismatch", str(out), "--model", str(trained), "--out", str(tmp_path / "audit")]
    assert main([*audit, "--quiet"]) == 0  # the index is one


@pytest.mark.parametrize(
    ("evidence", "more", "wording"),
    [
        ("pair", (), 0.4),
        ("pair", ("--wording", "0"), 0.0),
        ("image", ("--level", "caption"), 0.0),
        ("image", ("--level", "caption", "--wording", "0.3"), 0.3),
    ],
)
def test_words_count_as_in_training_unless_told(
    evidence: str,
    more: tuple[str, ...],
    wording: float,
    precomp: Path,
    index: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    def watched(*_: object, **options: Any) -> Any:
        asked.append(options["wording"])
        raise InputError("seen")

    def settled(*given: Any) -> Any:
        run = load_run(*given)
        rematching = replace(run.config.rematching, wording=0.4, folds=2, evidence=evidence)  # type: ignore[arg-type]
        return replace(run, config=replace(run.config, rematching=rematching))

    load_run = l2rm.training.run.load_run
    monkeypatch.setattr(l2rm.training.run, "load_run", settled)
    monkeypatch.setattr(l2rm.auditing.rematch, "rematch", watched)
    command = ["rematch", str(precomp), "--mismatch", str(index), "--model", str(trained), "--dry-run", "--quiet"]
    assert main([*command, *more]) == 2
    assert asked == [wording]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "nowhere to write to"),
        (("--out", "x.csv", "--model", "run"), "one of them"),
        (("--out", "x.txt"), "x.txt: .txt is nothing to write"),
        (("--out", "x"), "no suffix"),
        (("--dry-run", "--webdataset-filter", "x.csv"), "use one of .jsonl, .txt"),
        (("--out", "x.jsonl", "--webdataset-filter", "x.jsonl"), "table and filter at once"),
        (("--dry-run", "--keep-threshold", "2"), "keep_threshold=2"),
        (("--dry-run", "--capacity", "0"), "capacity=0"),
        (("--dry-run", "--split", "moon"), "no split 'moon'"),
    ],
)
def test_refused(
    more: tuple[str, ...], words: str, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(table.parent)
    before = sorted(table.parent.iterdir())
    capsys.readouterr()
    assert main(arguments(table, *more)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("l2rm: error: ")
    assert shown.count("\n") == 1
    assert words in shown
    assert sorted(table.parent.iterdir()) == before


def test_nothing_is_overwritten(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = table.read_bytes()
    for more in (("--out", table), ("--dry-run", "--webdataset-filter", table.with_name("filter.txt"))):
        table.with_name("filter.txt").write_text("precious\n")
        capsys.readouterr()
        assert main(arguments(table, *more)) == 2
        assert "is there already" in capsys.readouterr().err
    assert table.read_bytes() == content
    assert table.with_name("filter.txt").read_text() == "precious\n"


def test_an_index_is_about_rows_that_are_there(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.with_name("x.npy")
    capsys.readouterr()
    assert main(arguments(table.with_name("pairs.csv"), "--out", out, "--split", "train")) == 2  # the split is drawn
    assert "leave out --split" in capsys.readouterr().err
    assert not out.exists()
