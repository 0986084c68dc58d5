"""The published recipes, end to end through every layout that the field publishes its data in."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from l2rm.cli import main
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.evaluation import metrics as metrics_module
from l2rm.rematching.step import RematchingStep

WORDS = ("red", "blue", "dog", "cat", "kite", "sea", "tree", "car")
REGIONS, DIM = 36, 8
TINY = [
    "--batch-size=8",
    "--warmup-epochs=1",
    "--rematching-epochs=1",
    "--lr=0.01",
    "--model.embed-dim=8",
    "--model.word-dim=4",
    "--model.similarity-dim=4",
    "--model.graph-steps=2",
]


@dataclass(frozen=True)
class Layout:
    """A data set as it is published: sizes, how often its feature files list an image, how captions are written."""

    recipe: str
    captions: int
    images: dict[str, int]
    repeated: tuple[str, ...] = ()
    tsv: bool = False


LAYOUTS = {
    layout.recipe: layout
    for layout in (
        Layout("f30k", 5, {"train": 30, "dev": 7, "test": 8}, repeated=("dev", "test")),
        Layout("coco", 5, {"train": 25, "dev": 6, "test": 5, "testall": 10}, repeated=("testall",)),
        Layout("cc152k", 1, {"train": 120, "dev": 6, "test": 8}, tsv=True),
    )
}


def write_layout(folder: Path, layout: Layout) -> Path:
    """`{split}_ims.npy` of 36 regions, each a word, and captions that name four of them."""
    generator = np.random.default_rng(0)
    meaning = generator.normal(size=(len(WORDS), DIM))
    folder.mkdir()
    for split, images in layout.images.items():
        words = generator.integers(len(WORDS), size=(images, 4))
        features = meaning[np.repeat(words, REGIONS // 4, axis=1)] + 0.1 * generator.normal(size=(images, REGIONS, DIM))
        if split in layout.repeated:
            features = np.repeat(features, layout.captions, axis=0)
        np.save(folder / f"{split}_ims.npy", features.astype(np.float32))
        texts = ["A {} and a {} . It's a {}, a {} .".format(*(WORDS[word] for word in row)) for row in words]
        lines = [text for text in texts for _ in range(layout.captions)]
        if layout.tsv:
            lines = [f"{split}{number:06}\t{line}" for number, line in enumerate(lines)]
        (folder / f"{split}_caps.{'tsv' if layout.tsv else 'txt'}").write_text("\n".join(lines) + "\n")
    return folder


@dataclass(frozen=True)
class Trained:
    """A run, the index file that its training pairs were mismatched by, and what the command printed."""

    run: Path
    index: Path | None
    printed: str

    @property
    def record(self) -> dict[str, Any]:
        """`config.json`."""
        content: dict[str, Any] = json.loads((self.run / "config.json").read_text())
        return content


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("published")
    return {name: write_layout(base / f"{name}_precomp", layout) for name, layout in LAYOUTS.items()}


@pytest.fixture
def train(folders: dict[str, Path], tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]) -> Train:
    """Train a recipe on its data."""

    def run(recipe: str, *options: str, index: Path | None = None, name: str = "run") -> Trained:
        if index is not None:
            options = (*options, "--mismatch", str(index))
        command = ["train", str(folders[recipe]), "--recipe", recipe, "--out", str(tmp_path / name), *TINY, *options]
        assert main(command) == 0
        return Trained(tmp_path / name, index, capsys.readouterr().out)

    return run


def index_file(folder: Path, path: Path, *, one_an_image: bool) -> Path:
    """A published index file, 40 % at image level: an entry a caption (L2RM) or an image (RCL)."""
    pairs = Pairs.read(folder, split="train")
    given = inject_mismatches(pairs, ratio=0.4, level="image", seed=0).pairs.image_of
    np.save(path, given[:: len(pairs) // pairs.n_images] if one_an_image else given)
    return path


def finite(content: Any) -> bool:
    """Whether all numbers anywhere in some JSON are finite."""
    if isinstance(content, dict | list):
        return all(map(finite, content.values() if isinstance(content, dict) else content))
    return not isinstance(content, float) or bool(np.isfinite(content))


def check_run(trained: Trained, layout: Layout, *, paper: bool) -> None:
    """What a run of this recipe on this layout leaves behind."""
    for split, images in layout.images.items():
        assert f"{split}: {images} images, {layout.captions * images} captions" in trained.printed
    config = trained.record["config"]
    rematching = config["rematching"]
    chosen = (rematching["one_mode"], rematching["monotone"], config["model"]["tokeniser"], rematching["forbid"])
    mask = "pair" if trained.index is not None else "nothing"  # the public code masks injected mismatches only
    assert chosen == (("mixture", False, "published", mask) if paper else ("matched", True, "unicode", "image"))
    assert rematching["reg"] == (0.01 if layout.recipe == "f30k" else 0.07)
    assert trained.record["shape"]["regions"] == REGIONS
    words = json.loads((trained.run / "vocabulary.json").read_text())["words"]
    assert ("'s" in words) == paper
    assert {"dog", "kite"} < set(words)
    lines = [json.loads(line) for line in (trained.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["warm-up", "rematching"]
    assert finite(lines)
    dev = (layout.images["dev"], layout.captions * layout.images["dev"])
    assert [(line["dev"]["images"], line["dev"]["captions"]) for line in lines] == [
        dev,
        dev,
    ]  # each image once, and all
    if paper:  # the default may find nothing to rematch in so few pairs
        assert lines[1]["transport"]["mass"] == pytest.approx(0.1, abs=1e-4)
    rows = layout.captions * layout.images["train"]
    assert lines[1]["division"]["matched"] + lines[1]["division"]["mismatched"] == rows
    assert pq.read_table(trained.run / "pairs.parquet").num_rows == rows


def check_audit(trained: Trained, folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The audit of the training pairs as the index file mismatches them."""
    mismatch = [] if trained.index is None else ["--mismatch", str(trained.index)]
    assert main(["audit", str(folder), "--model", str(trained.run), "--out", str(out), "--quiet", *mismatch]) == 0
    shown = capsys.readouterr().out
    assert ("against the truth: AUROC" in shown) == (trained.index is not None)
    audited, learned = pq.read_table(out / "audit.parquet"), pq.read_table(trained.run / "pairs.parquet")
    for column in ("image", "match_probability"):  # the very pairs that were trained on
        assert audited[column].to_pylist() == learned[column].to_pylist()


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        ("f30k", True),
        ("coco", False),
        pytest.param("f30k", False, marks=pytest.mark.slow),
        pytest.param("coco", True, marks=pytest.mark.slow),
    ],
)
def test_five_captions_an_image(
    name: str, paper: bool, folders: dict[str, Path], train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = LAYOUTS[name]
    index = index_file(folders[name], tmp_path / "index.npy", one_an_image=paper)
    assert len(np.load(index)) == layout.images["train"] * (1 if paper else 5)
    trained = train(name, *(["--paper"] if paper else []), index=index)
    assert "train is known to be mismatched at level image, ratio 0.4\n" in trained.printed
    assert trained.record["data"]["mismatch"]["level"] == "image"
    check_run(trained, layout, paper=paper)
    check_audit(trained, folders[name], tmp_path / "audit", capsys)


@pytest.mark.parametrize("paper", [False, True])
def test_one_caption_an_image(
    paper: bool,
    folders: dict[str, Path],
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    masks = []
    forbidden = RematchingStep.forbidden
    monkeypatch.setattr(RematchingStep, "forbidden", lambda *given: masks.append(forbidden(*given)) or masks[-1])
    trained = train("cc152k", *(["--paper"] if paper else []))
    assert "mismatched" not in trained.printed  # as the web delivers it, nothing is known
    assert masks or not paper
    assert not (paper and any(mask.any() for mask in masks))
    assert trained.record["data"]["mismatch"] is None
    check_run(trained, LAYOUTS["cc152k"], paper=paper)
    check_audit(trained, folders["cc152k"], tmp_path / "audit", capsys)
    assert pq.read_table(tmp_path / "audit" / "audit.parquet")["image"][3].as_py() == "train/train000003"


def test_ratio_and_level_mismatch_what_corrupt_would(
    folders: dict[str, Path], train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--ratio", "0.25", "--level", "caption", "--seed", "3"]
    trained = train("f30k", *options)
    assert "train is known to be mismatched at level caption, ratio 0.25" in trained.printed
    index = tmp_path / "index.npy"
    assert main(["corrupt", str(folders["f30k"]), *options, "--out", str(index)]) == 0
    kept = trained.run / "mismatch.npy"
    assert np.load(kept).tolist() == np.load(index).tolist()
    check_audit(Trained(trained.run, kept, ""), folders["f30k"], tmp_path / "audit", capsys)

    command = ["train", str(folders["f30k"]), "--out", str(trained.run), "--resume"]
    for more in ([], options):
        assert main([*command, *more]) == 0
        assert "the run is finished" in capsys.readouterr().err
    assert main([*command, "--ratio", "0.5"]) == 2
    assert "trained on other pairs" in capsys.readouterr().err
    assert np.load(kept).tolist() == np.load(index).tolist()


def test_coco_s_two_protocols_of_sgr_saf_and_sgraf(
    folders: dict[str, Path],
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = [
        train("coco", "--warmup-epochs=1", "--rematching-epochs=0", f"--model.similarity={name}", name=name).run
        for name in ("sgr", "saf")
    ]

    def evaluated(runs: list[Path], *options: str) -> tuple[str, dict[str, Any]]:
        command = ["evaluate", *map(str, runs), "--data", str(folders["coco"]), "--split", "testall", "--quiet"]
        assert main([*command, "--json", str(tmp_path / "metrics.json"), *options]) == 0
        return capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())

    printed, _ = evaluated(runs)
    assert "folds5" not in printed  # papers make no folds of ten images
    monkeypatch.setattr(metrics_module, "COCO_IMAGES", LAYOUTS["coco"].images["testall"])
    printed, metrics = evaluated(runs)
    full, folds = printed.split("\n\n")
    assert full.startswith("full: among all 10 images, 50 captions\n")
    assert folds.startswith("folds5: mean of five folds of 2 images (10 images, 50 captions)\n")
    assert metrics["protocol"] == "full"
    rows = {f"{runs[0]} (sgr)": runs[:1], f"{runs[1]} (saf)": runs[1:], "SGRAF, the mean of both": runs}
    for table, protocol in ((full, "full"), (folds, "folds5")):
        assert [line.split("  ")[0] for line in table.splitlines()[3:]] == list(rows)
        for line, (name, members) in zip(table.splitlines()[3:], rows.items(), strict=True):
            _, alone = evaluated(members, "--protocol", protocol)
            assert alone["protocol"] == protocol
            cells = [alone[way][recall] for way in ("i2t", "t2i") for recall in ("r1", "r5", "r10")]
            assert line.removeprefix(name).split() == [f"{cell:.1f}" for cell in (*cells, alone["rsum"])]
