"""Every command and every piece of Python that README and docs show is run, page by page, in order, as it stands there.

Each page has a sandbox of its own, with tiny data under the names that the pages use. What a page takes as given (a run
that another page trains, say) is made when a command first names it: `World.givens`. Not as it stands there:

* Options that only make the work short are added where the page does not give them: `ADDED`. CLIP learns without folds.
* A server takes a free port, answers a request for each of its pages, and is stopped.
* What cannot be run here is listed with its reason: `NOT_RUN`. What takes long runs with `-m slow` alone: `LONG`.
"""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import l2rm
from l2rm.cli import main
from l2rm.recipes import RECIPES
from l2rm.training.settings import TrainConfig

for module, extra in (("efficientnet_lite_pytorch", "quickstart"), ("uvicorn", "serve"), ("transformers", "hf")):
    pytest.importorskip(module, reason=f"the extra {extra} is not installed")

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
PROGRAMS = "l2rm|torchrun|accelerate|pip|make|python"
LONG = re.compile(r"openmoji:|noisy\.csv|^torchrun|audit-shards(?!.* --engine local)")
"""All of OpenMoji is encoded; processes are started, which join, or Ray's."""
NOT_RUN = {
    r"^pip install": "changes the environment of the tests; `make release-check` installs into a fresh one",
    r"^make [a-z-]+$": "runs these tests, or installs; that there is such a target is tested below",
    r"^python benchmarks/golden_curves\.py$": "records what tests/training/test_golden.py compares with, which runs it",
    r"^accelerate launch": "the same processes as by torchrun, which is run",
    r"^l2rm evaluate --shortlist 0\.05$": "tells of an option; docs/train.md has the whole command",
    r"^l2rm evaluate RUN (RUN --data DATA|--shortlist 0\.05)$": "a form; README has a command of it",
    r"^l2rm train --(help|ratio 0\.4 --level image|decisions)$": "tells of an option; README has the whole command",
    r"^l2rm train pairs\.csv --recipe clip --model\.encoder FOLDER": "a form; docs/finetune.md has a command of it",
    r"^l2rm audit-shards .*--ray-address": "joins a cluster, which nobody has started here",
    r"^l2rm serve --audit( DIR)?$": "a form; README has a command of it",
    r"^l2rm serve quickstart/index$": "the index is the quick start's; tests/test_quickstart.py opens it",
}
"""By a pattern of the command: why it is not."""
SHORT = {
    "--warmup-epochs": "1",
    "--rematching-epochs": "1",
    "--batch-size": "32",
    "--lr": "0.002",
    "--rematching.fold-rounds": "1",
    "--model.embed-dim": "16",
    "--model.word-dim": "8",
    "--model.similarity-dim": "8",
    "--model.min-word-count": "1",
}
ADDED = {"train": SHORT, "distil": {"--steps": "5"}}
"""By command: options that it gets where the page gives others or none."""
REPORT_ONLY = re.compile("^l2rm benchmark flickr8k")
"""Takes days; gets --report-only, which makes table and plots of the rows that there are."""
WORDS = ("red", "blue", "green", "dog", "cat", "kite", "sea", "tree", "car", "sun")
COUNT = 40
PYTHON_NOT_RUN = {
    "docs/review.md": "tests/auditing/test_review.py runs it",
    "docs/data.md": "tests/test_examples.py runs it",
}


def shown_in(page: str) -> Iterator[list[str]]:
    """The commands of a page, in order, as words: lines of blocks, and what sentences quote with arguments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```(?!bash$|sh$)\w+$.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines, quoted = rf"^(?:    )?(?:\$ )?((?:{PROGRAMS}) \S.*)$", rf"`((?:{PROGRAMS}) [^`]+)`"
    for line, phrase in re.findall(f"{lines}|{quoted}", text, re.MULTILINE):
        words = shlex.split(line or phrase, comments=True)
        if line or len(words) > 2 or words[0] == "python":
            yield words


def python_in(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def is_run(words: list[str], *, long: bool) -> bool:
    command = " ".join(words)
    return not any(re.search(pattern, command) for pattern in NOT_RUN) and (long or not LONG.search(command))


class World:
    """The folder in which a page is followed."""

    def __init__(
        self, home: Path, patch: pytest.MonkeyPatch, write_precomp: Callable[..., Path], clip: ModuleType
    ) -> None:
        self.home, self.patch = home, patch
        train, mine = "l2rm train {} --recipe f30k --paper --ratio 0.4 --level image --out {{}}", "--image-root images"
        self.givens: dict[str, str | Callable[[Path], Any]] = {
            "pairs.csv": pairs_table,
            "new.csv": lambda path: table(path, {f"photos/new{n}.jpg": ["a new kite"] for n in range(2)}),
            "kite.jpg": lambda path: draw(path, 5),
            "images.npy": lambda path: np.save(path, embeddings(0)),
            "captions.npy": lambda path: np.save(path, embeddings(1)),
            "clip.npy": lambda path: np.save(path, embeddings(0) @ embeddings(1).T),
            "f30k_precomp": write_precomp,
            "coco_precomp": lambda path: with_testall(write_precomp(path)),
            "flickr8k_precomp": write_precomp,
            "openai/clip-vit-base-patch32": lambda path: clip.save_model(path, "clip"),
            "./my-clip": lambda path: clip.save_model(path, "clip"),
            "./my-siglip": lambda path: clip.save_model(path, "siglip"),
            "runs/clip": f"l2rm train pairs.csv {mine} --recipe clip --model.encoder ./my-clip --out {{}}",
            "shards/*.parquet": lambda path: parquet_shards(path.parent),
            "shards/{00000..00099}.tar": lambda path: tar_shards(path.parent),
            "shards/*.tar": lambda path: tar_shards(path.parent),
            "runs/mine": f"l2rm train pairs.csv {mine} --recipe quickstart --out {{}}",
            "runs/f30k-40": train.format("f30k_precomp"),
            "runs/coco": train.format("coco_precomp"),
            "image_40.npy": "l2rm corrupt f30k_precomp --ratio 0.4 --level image --out {}",
            "audit": f"l2rm audit pairs.csv {mine} --model runs/mine --out {{}}",
            "index": "l2rm index --model runs/mine --data pairs.csv --image-root images --out {}",
            "features": f"l2rm encode pairs.csv {mine} --grid 1 --out {{}}",
            "model_best.pth.tar": "l2rm convert runs/f30k-40 --out {}",
            "f30k_precomp_vocab.json": published_vocabulary,
            "grid.toml": small_grid,
            "benchmarks/results/flickr8k": lambda path: shutil.copytree(ROOT / path, path),
        }
        """What a page may name without having made it: a command that makes it, or a function of its path."""

    def provide(self, words: list[str]) -> None:
        """Make what a command names and nobody has made."""
        out = words[words.index("--out") + 1] if "--out" in words else None
        for name in (part for word in words for part in word.split(",")):
            if name not in self.givens or Path(name).exists() or (name == out and "results" not in name):
                continue
            given = self.givens[name]
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(given, str):
                self.run(given.format(name).split())
            else:
                given(Path(name))

    def run(self, words: list[str]) -> None:
        """Run a command with all that it needs; it must succeed."""
        self.provide(words)
        program, *rest = [word.replace("~/", f"{self.home}/") for word in words]
        name = rest[0] if program == "l2rm" else "train"
        rest += [
            part for option, value in ADDED.get(name, {}).items() if option not in rest for part in (option, value)
        ]
        if REPORT_ONLY.search(shlex.join(words)):
            rest.append("--report-only")
        if name == "serve":
            self.serve(rest)
        elif program == "l2rm":
            assert main(rest) == 0, shlex.join(words)
        else:
            module = {"torchrun": "torch.distributed.run"}[program]
            done = subprocess.run([sys.executable, "-m", module, *rest], capture_output=True, text=True)
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr}"

    def execute(self, snippet: str) -> dict[str, Any]:
        """Run Python with all that it names; what it defines."""
        self.provide([name for quoted in re.findall('"(.*?)"', snippet) for name in quoted.split(",")])
        names: dict[str, Any] = {"__name__": "snippet"}
        exec(compile(snippet, "snippet", "exec"), names)
        return names

    def serve(self, words: list[str]) -> None:
        """Serve until each page has answered."""
        import uvicorn

        given = words.index("--port") if "--port" in words else len(words)
        words = [*words[:given], *words[given + 2 :], "--port", "0"]
        pages = ["/healthz", *["/review"] * ("--audit" in words), *["/"] * (words[1] != "--audit")]
        answers: dict[str, int] = {}

        def ask(server: uvicorn.Server) -> None:
            try:
                while not server.started:
                    time.sleep(0.02)
                port = server.servers[0].sockets[0].getsockname()[1]
                for page in pages:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=60) as answer:
                        answers[page] = answer.status
            finally:
                server.should_exit = True

        class Asked(uvicorn.Server):
            def run(self, sockets: Any = None) -> None:
                threading.Thread(target=ask, args=(self,), daemon=True).start()
                super().run(sockets)

        with self.patch.context() as patch:
            patch.setattr(uvicorn, "Server", Asked)
            assert main(words) == 0
        assert answers == dict.fromkeys(pages, 200)


# ------------------------------------------------------------------------------------------------------ the data


def draw(path: Path, number: int) -> None:
    kind = number % len(WORDS)
    picture = Image.new("RGB", (48, 48), (kind * 37 % 256, kind * 91 % 256, kind * 53 % 256))
    ImageDraw.Draw(picture).ellipse((number % 20, 8, 40, 40 - number % 9), fill=(255 - kind * 17, 80, number))
    picture.save(path, quality=95)


def table(path: Path, captions: dict[str, list[str]]) -> None:
    """Pictures lie under two roots: `images`, which some commands name, and the table's folder, which others take."""
    for number, name in enumerate(captions):
        for root in (Path("images"), Path()):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            draw(root / name, number)
    path.write_text(
        "".join(f"{name},{text}\n" for name, texts in {"image": ["caption"], **captions}.items() for text in texts)
    )


def pairs_table(path: Path) -> None:
    generator = np.random.default_rng(0)
    names = [f"photos/{number:04}.jpg" for number in range(1, COUNT + 1)]
    kinds = [WORDS[number % len(WORDS)] for number in range(COUNT)]
    table(
        path,
        {
            name: [f"{kind} {generator.choice(WORDS)}" for _ in range(2)]
            for name, kind in zip(names, kinds, strict=True)
        },
    )


def embeddings(side: int) -> np.ndarray:
    shared, own = np.random.default_rng(9), np.random.default_rng(side)
    return (shared.normal(size=(COUNT, 8)) + own.normal(size=(COUNT, 8))).astype(np.float32)


def parquet_shards(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    columns = {f"{name}_embedding": embeddings(side) for side, name in enumerate(("image", "caption"))}
    for shard in range(2):
        part = {name: list(column[shard::2]) for name, column in columns.items()}
        pq.write_table(pa.table(part), folder / f"{shard}.parquet")


def tar_shards(folder: Path) -> None:
    """A hundred files of a pair each: a picture and its caption."""
    folder.mkdir(exist_ok=True)
    picture, generator = folder / "one.jpg", np.random.default_rng(0)
    for number in range(100):
        draw(picture, number)
        text = " ".join(generator.choice(WORDS, 3)).encode()
        with tarfile.open(folder / f"{number:05}.tar", "w") as tar:
            tar.add(picture, f"{number:05}.jpg")
            caption = tarfile.TarInfo(f"{number:05}.txt")
            caption.size = len(text)
            tar.addfile(caption, io.BytesIO(text))
    picture.unlink()


def with_testall(folder: Path) -> None:
    for name in ("ims.npy", "caps.txt"):
        shutil.copy(folder / f"test_{name}", folder / f"testall_{name}")


def published_vocabulary(path: Path) -> None:
    shutil.copy("runs/f30k-40/vocabulary.json", path)


def small_grid(path: Path) -> None:
    """The grid that docs/reproduce.md shows: of every list the first, of every table what makes it small."""
    (shown,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/reproduce.md").read_text(encoding="utf-8"), re.DOTALL)
    first = {key: value[:1] for key, value in tomllib.loads(shown).items() if isinstance(value, list)}
    small = {"config": {"batch_size": 32, "warmup_epochs": 1, "rematching_epochs": 1, "device": "cpu"}}
    path.with_suffix(".toml").write_text(
        "\n".join(f"{key} = {json.dumps(value)}" for key, value in first.items())
        + "\n[config]\n"
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in small["config"].items())
        + "\n[config.model]\nembed_dim = 16\nmin_word_count = 1\n"
    )


# ------------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where features are cached, for all pages: they have the same pictures at the same place."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def world(
    home: Path, monkeypatch: pytest.MonkeyPatch, make_precomp: Callable[..., Path], script: Callable[[str], ModuleType]
) -> Iterator[World]:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("L2RM_CACHE", raising=False)
    work = home / "work"
    if work.exists():
        for path in work.iterdir():
            if path.name not in ("pairs.csv", "images", "photos"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    for name in ("clip", "clip-full"):
        monkeypatch.setitem(RECIPES, name, partial(without_folds, RECIPES[name]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield World(home, monkeypatch, make_precomp, script("tests/tiny_clip.py"))
    torch.set_num_threads(threads)


def without_folds(recipe: Callable[[], TrainConfig]) -> TrainConfig:
    """By a CLIP of random weights and forty pictures, folds would find that nothing matches, and rightly."""
    config = recipe()
    return replace(config, rematching=replace(config.rematching, folds=0, evidence="pair"))


def follow(page: str, world: World, *, long: bool) -> None:
    for words in shown_in(page):
        if is_run(words, long=long):
            print("$", shlex.join(words))
            world.run(words)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if any(is_run(words, long=False) for words in shown_in(page))])
def test_commands(page: str, world: World) -> None:
    follow(page, world, long=False)


@pytest.mark.parametrize("page", [page for page in PAGES if python_in(page) and page not in PYTHON_NOT_RUN])
def test_python(page: str, world: World) -> None:
    for snippet in python_in(page):
        world.execute(snippet)


def test_a_method_of_one_s_own_trains(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from l2rm.training.methods.registry import METHODS

    (snippet,) = [code for code in python_in("docs/extend.md") if "(Method)" in code]
    monkeypatch.setitem(METHODS, "warmup", world.execute(snippet)["Trimmed"])
    world.run(
        ["l2rm", "train", "f30k_precomp", "--model.similarity", "cosine", "--method", "warmup", "--out", "runs/trimmed"]
    )
    kept = [json.loads(line) for line in Path("runs/trimmed/metrics.jsonl").read_text().splitlines()]
    assert [line["transport"]["kept"] for line in kept] == pytest.approx([0.8] * 2, abs=0.02)


def test_a_similarity_of_one_s_own_trains_and_scores_pairs_alike(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = [code for code in python_in("docs/extend.md") if "(RetrievalModel)" in code]
    monkeypatch.setattr("l2rm.similarity.cosine.Cosine", world.execute(snippet)["BestRegion"])
    world.run(
        [
            "l2rm",
            "train",
            "f30k_precomp",
            "--model.similarity",
            "cosine",
            "--method",
            "plain",
            "--objective",
            "infonce",
            "--out",
            "runs/best",
        ]
    )
    world.run(["l2rm", "audit", "f30k_precomp", "--model", "runs/best", "--out", "audit-best"])
    model = l2rm.load("runs/best").eval()
    images = model.encode_images(torch.rand(5, 3, 16))
    captions = model.encode_captions(torch.randint(1, 9, (5, 4)), torch.tensor([4, 3, 2, 4, 1]))
    assert torch.allclose(model.score(images, captions).diagonal(), model.score_pairs(images, captions), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(LONG.search(" ".join(w)) for w in shown_in(page))])
def test_commands_with_those_that_take_long(page: str, world: World) -> None:
    follow(page, world, long=True)


def test_nothing_is_excused_that_is_not_shown() -> None:
    shown = [" ".join(words) for page in PAGES for words in shown_in(page)]
    assert not [pattern for pattern in NOT_RUN if not any(re.search(pattern, command) for command in shown)]


def test_make_has_the_targets_that_pages_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in (*PAGES, "CONTRIBUTING.md"))
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE))
    assert named >= {"test", "lint", "docs", "quickstart"}
    assert named <= targets
