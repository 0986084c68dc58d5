"""The table of bad inputs: how each is made, the command that is given it, and the one line that it gets.

Every line names the file (and row or key) or the argument, and says what to do. Exit status 2; no traceback; nothing is
left behind. `test_cli_bad_input.py` has what is no row of a table: disks, locks, several faults in a row.
"""

import json
import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.cli import main
from l2rm.encoders import image as image_module

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Place:
    """What an input is made in, and of."""

    folder: Path
    precomp: Path
    index: Path
    run: Path
    """A finished run on `precomp`, mismatched by `index`; a copy that may be spoiled."""
    tiny: list[str]
    make_precomp: Callable[..., Path]

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def save(self, name: str, array: Any) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array, allow_pickle=True)
        return path

    def images(self) -> None:
        for name in ("a.png", "b.png", "c.png"):
            (self.folder / name).touch()

    def csv(self, *lines: str, name: str = "pairs.csv") -> list[object]:
        """`train` on a table of these lines, whose images are there."""
        self.images()
        return self.train(self.write(name, "\n".join(lines) + "\n"))

    def jsonl(self, *rows: str) -> list[object]:
        return self.csv(*rows, name="pairs.jsonl")

    def parquet(self, **columns: Any) -> list[object]:
        self.images()
        pq.write_table(pa.table(columns), self.folder / "pairs.parquet")
        return self.train(self.folder / "pairs.parquet")

    def train(self, data: object, *options: object) -> list[object]:
        return ["train", data, "--out", self.folder / "out", *self.tiny, *options]

    def spoilt(self, **options: Any) -> Path:
        """A precomp folder to be spoilt."""
        return self.make_precomp(self.folder / "precomp", **options)

    def convert(self, checkpoint: object, vocabulary: object) -> list[object]:
        return ["convert", checkpoint, "--vocab", vocabulary, "--out", self.folder / "converted"]

    def evaluate(self, *options: object) -> list[object]:
        return ["evaluate", self.run, "--data", self.precomp, "--quiet", *options]

    def audit(self, *options: object) -> list[object]:
        return ["audit", self.precomp, "--out", self.folder / "audit", "--quiet", *options]

    def mismatched(self, index: object) -> list[object]:
        return self.train(self.precomp, "--mismatch", index)

    def record(self, **changes: Any) -> None:
        """Change keys of the run's `config.json`; None takes one away."""
        path = self.run / "config.json"
        content = json.loads(path.read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


Make = Callable[[Place], Sequence[object]]
TABLE: list[tuple[str, Make, tuple[str, ...]]] = []


def bad(name: str, make: Make, *told: str) -> None:
    TABLE.append((name, make, told))


def after(*steps: Any) -> Sequence[object]:
    """What the last step gives, once the others have been done."""
    arguments: Sequence[object] = steps[-1]
    return arguments


class Hostile:
    """Unpickled, it would leave a file `executed`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def without_biases(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if "bias" not in name}


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def flipped(path: Path, place: int = -5) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_in(path: Path) -> None:
    features = np.load(path)
    features[7, 1, 2] = np.nan
    np.save(path, features)


GOOD = ("image,caption", "a.png,one", "b.png,two", "c.png,three")
SPLITS = ("image,caption,split", "a.png,one,train", "b.png,two,train", "c.png,three,dev")

# ------------------------------------------------------------------------------------------------------------- tables

bad("no such table", lambda p: p.train(p.folder / "nowhere.csv"), "nowhere.csv: no such file or folder; check the path")
bad(
    "suffix unknown",
    lambda p: p.csv(*GOOD, name="pairs.xlsx"),
    "pairs.xlsx: .xlsx is no table that we know; use one of",
)
bad("no suffix", lambda p: p.csv(*GOOD, name="pairs"), "pairs: no suffix is no table that we know; use one of .csv")
bad(
    "no column", lambda p: p.csv("image,text", "a.png,one", "b.png,two"), "pairs.csv: no column 'caption'", "add it, or"
)
bad(
    "twin columns",
    lambda p: p.csv("image,caption,image", "a.png,one,b.png"),
    "pairs.csv: two columns of one name",
    "rename",
)
bad(
    "nothing in it",
    lambda p: p.train(p.write("pairs.csv", "")),
    "pairs.csv: no column 'image' among its columns (none)",
)
bad("one row", lambda p: p.csv(*GOOD[:2]), "pairs.csv: 1 row; a table needs at least two")
bad(
    "caption empty",
    lambda p: p.csv(*GOOD[:2], "b.png, "),
    "pairs.csv:row 2: the caption is empty; fill it in",
    "--skip-bad",
)
bad("image empty", lambda p: p.csv(*GOOD[:2], ",two"), "pairs.csv:row 2: the image is empty; fill it in")
bad(
    "image gone",
    lambda p: p.csv(*GOOD[:2], "gone.png,two"),
    "pairs.csv:row 2: no image file",
    "gone.png; check the path",
)
bad(
    "image outside the root",
    lambda p: p.csv(*GOOD[:2], "../../../etc/passwd,two"),
    "pairs.csv:row 2: image '../../../etc/passwd' leaves the image root", "--image-root",
)  # fmt: skip
bad(
    "image by an absolute path",
    lambda p: p.csv(*GOOD[:2], "/etc/passwd,two"),
    "pairs.csv:row 2: image '/etc/passwd' leaves the image root", "--image-root /",
)  # fmt: skip
bad("fields missing", lambda p: p.csv(*GOOD[:2], "b.png"), "pairs.csv:row 2: 1 fields under 2 columns; put commas")
bad(
    "quote left open",
    lambda p: p.csv(*GOOD[:2], 'b.png,"two'),
    "pairs.csv:row 2: ",
    "look for a quote that is not closed",
)
bad(
    "not UTF-8",
    lambda p: p.train(p.write("pairs.csv", b"image,caption\na.png,caf\xe9\nb.png,two\n")),
    "pairs.csv:line 2: not UTF-8; save the file in that encoding",
)
bad(
    "pair_id twice",
    lambda p: p.csv("pair_id,image,caption", "7,a.png,one", "7,b.png,two"),
    "pairs.csv:row 2: pair_id '7' is row 1's already; give every row its own",
)
bad(
    "truth unclear",
    lambda p: p.csv("image,caption,is_mismatched", "a.png,one,true", "b.png,two,perhaps"),
    "pairs.csv:row 2: is_mismatched is 'perhaps'; write true or false",
)
bad(
    "truth at odds with itself",
    lambda p: p.csv("image,caption,is_mismatched,true_image", "a.png,one,false,a.png", "b.png,two,true,b.png"),
    "pairs.csv:row 2: is_mismatched is true, but true_image says otherwise; correct one",
)
bad(
    "line that is no object",
    lambda p: p.jsonl('{"image": "a.png", "caption": "one"}', "[1]"),
    "row 2: not a JSON object; write",
)
bad(
    "line nested too deeply",
    lambda p: p.jsonl('{"image": "a.png", "caption": "one"}', "[" * 100_000),
    "pairs.jsonl:row 2: not a JSON object; write",
)
bad(
    "caption that is a list",
    lambda p: p.jsonl('{"image": "a.png", "caption": "one"}', '{"image": "b.png", "caption": ["x"]}'),
    "pairs.jsonl:row 2: caption is a list, not a text; write a text",
)
bad(
    "caption of half a character",
    lambda p: p.jsonl('{"image": "a.png", "caption": "one"}', '{"image": "b.png", "caption": "\\ud83d"}'),
    "pairs.jsonl:row 2: caption has half of a character", "write it anew",
)  # fmt: skip
bad(
    "no Parquet",
    lambda p: p.csv("PAR1", "x", name="pairs.parquet"),
    "pairs.parquet: cannot be read as Parquet",
    "write it again",
)
bad(
    "half a Parquet",
    lambda p: after(p.parquet(image=["a.png"] * 999, caption=["x"] * 999), halved(p.folder / "pairs.parquet"),
                    p.train(p.folder / "pairs.parquet")),
    "pairs.parquet: cannot be read as Parquet", "write it again",
)  # fmt: skip
bad(
    "captions of bytes",
    lambda p: p.parquet(image=["a.png", "b.png"], caption=pa.array([b"\xff\xfe", b"x"], pa.binary())),
    "pairs.parquet:row 1: caption is a bytes, not a text; write a text",
)
bad(
    "captions of objects",
    lambda p: p.parquet(image=["a.png", "b.png"], caption=[{"en": "one"}, {"en": "two"}]),
    "pairs.parquet:row 1: caption is a dict, not a text; write a text",
)
bad(
    "Parquet without columns",
    lambda p: p.parquet(),
    "pairs.parquet: no column 'image' among its columns (none); add it",
)
bad(
    "every row bad",
    lambda p: [*p.csv("image,caption", "x.png,one", "y.png,two"), "--skip-bad"],
    "pairs.csv: every row is bad and nothing is left; see the warnings above",
)
bad(
    "no dev split",
    lambda p: p.csv("image,caption,split", "a.png,one,train", "b.png,two,train"),
    "pairs.csv: no split 'dev' among train; add rows whose split is dev",
)
bad(
    "image that is none",
    lambda p: p.csv(*SPLITS),
    "pairs.csv: row 1 (pair 0): ",
    "a.png does not decode",
    "pass --skip-bad",
)
bad(
    "image that is a bomb",
    lambda p: after(arguments := p.csv(*SPLITS), p.write("a.png", bomb()), arguments),
    "a.png does not decode (", "pixels", "; fix it, or pass --skip-bad",
)  # fmt: skip
bad(
    "encoder unknown",
    lambda p: [*p.csv(*SPLITS), "--encoder=magic"],
    "encoder: there is no 'magic'; choose from efficientnet",
)
bad("grid of nothing", lambda p: [*p.csv(*SPLITS), "--grid=0"], "grid: 0 is out of range; choose 1 to 7 cells")

# ------------------------------------------------------------------------------------------------------------ features

bad(
    "captions no multiple of images",
    lambda p: after(data := p.spoilt(), p.write("precomp/train_caps.txt", "a dog\n" * 79), p.train(data)),
    "train_caps.txt: 79 captions for 40 images in", "every image needs the same number",
)  # fmt: skip
bad(
    "a line without a caption",
    lambda p: after(data := p.spoilt(), p.write("precomp/train_caps.txt", "a dog\n\n" * 40), p.train(data)),
    "train_caps.txt:line 2: the caption is empty; write one",
)
bad(
    "captions not UTF-8",
    lambda p: after(data := p.spoilt(), p.write("precomp/train_caps.txt", b"a dog\n\xff\n" * 40), p.train(data)),
    "train_caps.txt:line 2: not UTF-8; save the file",
)
bad(
    "captions in two forms",
    lambda p: after(data := p.spoilt(), p.write("precomp/train_caps.tsv", "1\tdog\n"), p.train(data)),
    "train_caps.txt: and train_caps.tsv stand side by side; take away",
)
bad(
    "an id without a caption",
    lambda p: after(data := p.spoilt(), (data / "train_caps.txt").unlink(),
                    p.write("precomp/train_caps.tsv", "7 a dog\n" * 40), p.train(data)),
    "train_caps.tsv:line 1: is no image id, a tab and a caption; write all three",
)  # fmt: skip
bad(
    "an id for two images",
    lambda p: after(data := p.spoilt(), (data / "train_caps.txt").unlink(),
                    p.write("precomp/train_caps.tsv", "7\ta dog\n" * 40), p.train(data)),
    "train_caps.tsv:line 2: image id '7' does not stand for one image alone; give every image",
)  # fmt: skip
bad(
    "features truncated",
    lambda p: after(data := p.spoilt(), halved(data / "train_ims.npy"), p.train(data)),
    "train_ims.npy: cannot be read as a .npy array", "save it again with numpy.save",
)  # fmt: skip
bad(
    "features that are a pickle",
    lambda p: after(data := p.spoilt(), p.save("precomp/train_ims.npy", np.array([Hostile()])), p.train(data)),
    "train_ims.npy: cannot be read as a .npy array", "save it again",
)  # fmt: skip
bad(
    "features that are a bare pickle",
    lambda p: after(data := p.spoilt(), p.write("precomp/train_ims.npy", pickle.dumps(Hostile())), p.train(data)),
    "train_ims.npy: cannot be read as a .npy array", "save it again",
)  # fmt: skip
bad(
    "features in an archive",
    lambda p: after(data := p.spoilt(), np.savez(data / "x.npz", a=np.zeros(3)),
                    os.replace(data / "x.npz", data / "train_ims.npy"), p.train(data)),
    "train_ims.npy: an archive of several arrays; save the one",
)  # fmt: skip
bad(
    "features of text",
    lambda p: after(data := p.spoilt(), p.save("precomp/train_ims.npy", np.array([["a"]])), p.train(data)),
    "train_ims.npy: type <U1; save the features as one of float16",
)
bad(
    "features of one dimension",
    lambda p: after(data := p.spoilt(), p.save("precomp/train_ims.npy", np.zeros(40, np.float32)), p.train(data)),
    "train_ims.npy: shape (40,); features are (images, regions, dimensions)",
)
bad(
    "features of whole numbers",
    lambda p: after(data := p.spoilt(), p.save("precomp/train_ims.npy", np.zeros((40, 3), int)), p.train(data)),
    "train_ims.npy: type int64; save the features as one of float16",
)
bad(
    "int8 without a scale",
    lambda p: after(data := p.spoilt(), p.save("precomp/train_ims.npy", np.zeros((40, 16), np.int8)), p.train(data)),
    "train_ims.npy: int8 features need a scale of 16 numbers; save it",
)
bad(
    "features of no dimension",
    lambda p: after(
        data := p.spoilt(), p.save("precomp/train_ims.npy", np.zeros((40, 3, 0), np.float32)), p.train(data)
    ),
    "train_ims.npy: shape (40, 3, 0); ",
)
bad(
    "NaN features",
    lambda p: after(data := p.spoilt(), nan_in(data / "train_ims.npy"), p.train(data)),
    "train_ims.npy: row 7 (from 0) has a NaN or infinite value; compute",
)
bad(
    "other width in dev",
    lambda p: after(data := p.spoilt(), p.save("precomp/dev_ims.npy", np.ones((10, 3, 8), np.float32)), p.train(data)),
    "dev_caps.txt: features of images and captions are", "make both with the same encoder",
)  # fmt: skip
bad(
    "folder without a split",
    lambda p: after((p.folder / "d").mkdir(), p.train(p.folder / "d")),
    "d: no SPLIT_ims.npy beside",
)
bad(
    "folder without dev",
    lambda p: after(data := p.spoilt(), (data / "dev_caps.txt").unlink(), p.train(data)),
    "no split 'dev' among", "add dev_ims.npy and dev_caps.txt",
)  # fmt: skip
bad("image root of features", lambda p: p.train(p.precomp, "--image-root", p.folder), "means nothing; leave it out")
bad(
    "embeddings of regions",
    lambda p: after(path := p.save("x.npy", np.zeros((4, 2, 3), np.float32)), p.train(f"{path},{path}")),
    "x.npy: shape (4, 2, 3); embeddings are (rows, dimensions)",
)
bad(
    "embeddings that are not there",
    lambda p: after(path := p.save("x.npy", np.zeros((4, 3), np.float32)), p.train(f"{path},{p.folder / 'y.npy'}")),
    "y.npy: no such file; check the path",
)
bad(
    "captions' embeddings no multiple",
    lambda p: after(images := p.save("x.npy", np.zeros((4, 3), np.float32)),
                    captions := p.save("y.npy", np.zeros((6, 3), np.float32)), p.train(f"{images},{captions}")),
    "y.npy: 6 captions for 4 images in", "every image needs the same number",
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------------- indices

bad("index not there", lambda p: p.mismatched(p.folder / "i.npy"), "i.npy: no such file; check the path")
bad(
    "index too short",
    lambda p: p.mismatched(p.save("i.npy", np.arange(79))),
    "i.npy: 79 entries for 80 captions",
    "give the index",
)
bad(
    "index beyond the images",
    lambda p: p.mismatched(p.save("i.npy", np.full(80, 40))),
    "i.npy:entry 0 (from 0): image 40, but", "has images 0 to 39; give the index file",
)  # fmt: skip
bad("index below 0", lambda p: p.mismatched(p.save("i.npy", np.full(80, -1))), "i.npy:entry 0 (from 0): image -1, but")
bad(
    "index of fractions",
    lambda p: p.mismatched(p.save("i.npy", np.zeros(80))),
    "i.npy: float64 of shape (80,); an index file is",
)
bad(
    "index of two dimensions",
    lambda p: p.mismatched(p.save("i.npy", np.zeros((40, 2), int))),
    "i.npy: int64 of shape (40, 2); an",
)
bad(
    "index that is a pickle",
    lambda p: p.mismatched(p.save("i.npy", np.array([Hostile()] * 80))),
    "i.npy: cannot be read as a .npy array", "save it again",
)  # fmt: skip
bad(
    "index that is text",
    lambda p: p.mismatched(p.write("i.npy", "0\n1\n")),
    "i.npy: cannot be read as a .npy array",
    "save it again",
)
bad(
    "mismatched twice",
    lambda p: [*p.csv("image,caption,true_image,split", "a.png,one,b.png,train", "b.png,two,a.png,train",
                      "c.png,3,c.png,dev"), "--ratio=0.9", "--level=image"],
    "pairs.csv: mismatched already (columns is_mismatched, true_image); give the original pairs",
)  # fmt: skip

# -------------------------------------------------------------------------------------- vocabularies and checkpoints


def published(p: Place) -> tuple[Path, Path]:
    """A checkpoint of the published form, and its vocabulary."""
    from l2rm.similarity.model import build_model
    from l2rm.similarity.settings import DataShape, ModelConfig
    from l2rm.training.published import published_name

    config = ModelConfig(similarity="sgr", embed_dim=8, word_dim=4, similarity_dim=6, graph_steps=1)
    model = build_model(config, DataShape(image_dim=5, regions=3, vocabulary_size=6))
    checkpoint = p.folder / "m.pth.tar"
    torch.save({"net": {published_name(name): value for name, value in model.state_dict().items()}}, checkpoint)
    words = {word: number for number, word in enumerate(("<pad>", "<start>", "<end>", "<unk>", "a", "dog"))}
    return checkpoint, p.write("v.json", json.dumps({"word2idx": words}))


def converting(content: str) -> Make:
    """A good checkpoint and this vocabulary."""
    return lambda p: p.convert(published(p)[0], p.write("v.json", content))


def loading(change: Callable[[Path], Any]) -> Make:
    """A spoilt checkpoint and a good vocabulary."""

    def make(p: Place) -> Sequence[object]:
        checkpoint, vocabulary = published(p)
        change(checkpoint)
        return p.convert(checkpoint, vocabulary)

    return make


bad(
    "vocabulary not there",
    lambda p: p.convert(published(p)[0], p.folder / "w.json"),
    "w.json: cannot be read (No such file",
)
bad(
    "vocabulary not given",
    lambda p: ["convert", published(p)[0], "--out", p.folder / "x"],
    "vocab: is not given; give the",
)
bad("vocabulary that is no JSON", converting("words"), "v.json: no JSON (", "give a vocabulary.json")
bad("vocabulary nested too deeply", converting("[" * 100_000), "v.json: no JSON (", "give a vocabulary.json")
bad(
    "vocabulary that is a list",
    converting('["a"]'),
    "v.json: neither 'words' nor 'word2idx' is a key",
    "give a vocabulary",
)
bad("word2idx a number", converting('{"word2idx": 5}'), "v.json: word2idx: its ids are not 0, 1, 2, …; give the file")
bad(
    "ids with gaps",
    converting('{"word2idx": {"a": 0, "b": 2}}'),
    "v.json: word2idx: its ids are not 0, 1, 2, …; give the",
)
bad(
    "other special words",
    converting('{"word2idx": {"a": 0, "b": 1}}'),
    "v.json: words: the first four must be <pad>",
    "build",
)
bad(
    "format of the future",
    converting('{"words": [], "format": 9}'),
    "v.json: format: 9 is not 1; read it with the l2rm",
)
bad("words that are numbers", converting('{"words": [1], "format": 1}'), "v.json: words: not a list of strings; build")
bad(
    "words of half a character",
    converting('{"format": 1, "tokeniser": "unicode", "words": ["<pad>", "<start>", "<end>", "<unk>", "\\ud83d"]}'),
    "v.json: words: number 4 has half of a character", "build the vocabulary again",
)  # fmt: skip
bad(
    "vocabulary of another model",
    converting('{"word2idx": {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3}}'),
    "v.json: has 4 words, but", "was trained with 6; give its own vocabulary",
)  # fmt: skip
bad("checkpoint not there", loading(lambda path: path.unlink()), "m.pth.tar: no such file; give a checkpoint such as")
bad(
    "checkpoint of text",
    loading(lambda path: path.write_text("x" * 99)),
    "m.pth.tar: is no checkpoint",
    "nothing of it was executed",
)
bad("checkpoint cut off", loading(halved), "m.pth.tar: cannot be read as a checkpoint")
bad(
    "checkpoint that would execute",
    loading(lambda path: torch.save({"net": Hostile()}, path)),
    "m.pth.tar: holds posix.system, which is neither a tensor nor an option; nothing of it was executed",
)
bad(
    "old checkpoint that would execute",
    loading(lambda path: torch.save({"net": Hostile()}, path, _use_new_zipfile_serialization=False)),
    "m.pth.tar: holds posix.system", "nothing of it was executed",
)  # fmt: skip
bad(
    "checkpoint that is a list",
    loading(lambda path: torch.save([1], path)),
    "m.pth.tar: holds a list and no dictionary; give a",
)
bad(
    "checkpoint of nothing",
    loading(lambda path: torch.save({"a": 1}, path)),
    "m.pth.tar: has no state dict under net or model",
)
bad(
    "checkpoint that lacks a parameter",
    loading(lambda path: torch.save({"net": without_biases(torch.load(path)["net"])}, path)),
    "m.pth.tar: lacks ", "it is no SGR or SAF model",
)  # fmt: skip

# --------------------------------------------------------------------------------------- configurations and RUN folders

bad(
    "no RUN",
    lambda p: ["evaluate", p.folder, "--data", p.precomp],
    "no RUN folder (it has no config.json); give the --out",
)
bad(
    "RUN that is not there",
    lambda p: ["evaluate", p.folder / "x", "--data", p.precomp],
    "x: no RUN folder",
    "give the --out",
)
bad(
    "config that is no JSON",
    lambda p: after((p.run / "config.json").write_text("{"), p.evaluate()),
    "config.json: not the configuration of a RUN (", "give the --out",
)  # fmt: skip
bad(
    "config nested too deeply",
    lambda p: after((p.run / "config.json").write_text("[" * 100_000), p.evaluate()),
    "config.json: not the configuration of a RUN (", "give the --out",
)  # fmt: skip
bad(
    "config that is a list",
    lambda p: after((p.run / "config.json").write_text("[]"), p.evaluate()),
    "config.json: not the configuration of a RUN (", "give the --out",
)  # fmt: skip
bad(
    "config of the future",
    lambda p: after(p.record(format=9), p.evaluate()),
    "config.json: format 9, this version reads 1; train",
)
bad(
    "config without a shape",
    lambda p: after(p.record(shape=None), p.evaluate()),
    "config.json: not the configuration of a RUN ('shape'",
)
bad(
    "config with a key too many",
    lambda p: after(p.record(config={"speed": 1}), p.evaluate()),
    "config.json: unknown key 'speed'; it was",
)
bad(
    "config with a key too few",
    lambda p: after(p.record(shape={}), p.evaluate()),
    "config.json: no key 'image_dim'; it was",
)
bad(
    "config of another type",
    lambda p: after(p.record(config={"lr": "fast"}), p.evaluate()),
    "config.json: lr is 'fast', which it cannot be; restore the file or train again",
)
bad(
    "config of another word",
    lambda p: after(p.record(config={"model": {"similarity": "magic"}}), p.evaluate()),
    "config.json: similarity is 'magic', which it cannot be; restore",
)
bad(
    "config with a part that is none",
    lambda p: after(p.record(config={"model": 3}), p.evaluate()),
    "config.json: the keys of ModelConfig",
)
bad(
    "data of another type",
    lambda p: after(p.record(data=[1]), p.evaluate()),
    "config.json: data: ",
    "restore the file or train again",
)
bad(
    "data with a key too few",
    lambda p: after(p.record(data={"source": "x"}), p.evaluate()),
    "config.json: data: ", "restore the file or train again",
)  # fmt: skip
bad(
    "shape beyond all memory",
    lambda p: after(p.record(shape={"image_dim": 10**15, "regions": 3, "vocabulary_size": 9, "caption_dim": None}),
                    p.evaluate()),
    "model.safetensors: not the weights that", "train again",
)  # fmt: skip
bad(
    "no weights",
    lambda p: after((p.run / "model.safetensors").unlink(), p.evaluate()),
    "model.safetensors: no such file; the run stopped",
)
bad(
    "weights cut off",
    lambda p: after((p.run / "last" / "best.safetensors").unlink(), halved(p.run / "model.safetensors"), p.evaluate()),
    "model.safetensors: is damaged (", "; train again",
)  # fmt: skip
bad(
    "weights with a bit flipped",
    lambda p: after((p.run / "last" / "best.safetensors").unlink(), flipped(p.run / "model.safetensors"), p.evaluate()),
    "model.safetensors: is damaged (its checksum is wrong); train again",
)
bad(
    "weights of another model",
    lambda p: after(p.record(config={"model": {"similarity": "cosine", "embed_dim": 16}}), p.evaluate()),
    "model.safetensors: not the weights that", "train again",
)  # fmt: skip
bad(
    "words of the run damaged",
    lambda p: after((p.run / "vocabulary.json").write_text("{}"), p.evaluate()),
    "vocabulary.json: neither 'words' nor 'word2idx' is a key of it",
)
bad(
    "probabilities of the run damaged",
    lambda p: after(halved(p.run / "pairs.parquet"), p.audit("--model", p.run, "--mismatch", p.index)),
    "pairs.parquet: cannot be read (", "delete it, and pairs are judged by the model alone",
)  # fmt: skip
bad(
    "a state that would execute",
    lambda p: after(p.record(finished=False, best=None), (p.run / "last" / "state.before.pt").unlink(),
                    torch.save({"model": Hostile()}, p.run / "last" / "state.pt"),
                    ["train", p.precomp, "--out", p.run, "--resume", "--quiet"]),
    "state.pt: cannot be read (", "delete the RUN folder and train again",
)  # fmt: skip
bad(
    "a state of nothing",
    lambda p: after(p.record(finished=False, best=None), (p.run / "last" / "state.before.pt").unlink(),
                    torch.save({"generators": 3}, p.run / "last" / "state.pt"),
                    ["train", p.precomp, "--out", p.run, "--resume", "--quiet"]),
    "state.pt: cannot be read (", "delete the RUN folder and train again",
)  # fmt: skip
bad(
    "RUN that is taken",
    lambda p: ["train", p.precomp, "--out", p.run],
    "there is a run already; go on with --resume, or choose",
)
bad(
    "resumed with another setting",
    lambda p: ["train", p.precomp, "--out", p.run, "--resume", "--lr=0.5"],
    "lr was 0.002 and is now 0.5; resume a run as it was started",
)
bad(
    "resumed with other pairs",
    lambda p: [
        "train",
        p.precomp,
        "--out",
        p.run,
        "--resume",
        "--mismatch",
        p.save("i.npy", np.roll(np.load(p.index), 2)),
    ],
    "was trained on other pairs; resume a run with the data",
)
bad(
    "resumed with other features",
    lambda p: after(p.record(features={"train": ["0" * 16, None], "dev": [None, None]}),
                    ["train", p.precomp, "--out", p.run, "--resume"]),
    "the features of the train images have changed since the run was started; put the file back",
)  # fmt: skip
bad(
    "resumed where it was converted",
    lambda p: after(p.record(converted={}), ["train", p.precomp, "--out", p.run, "--resume"]),
    "was converted from a checkpoint, so no training can go on; choose another --out",
)
bad(
    "data of another width", lambda p: ["evaluate", p.run, "--data", p.spoilt(dim=20)], "20 dimensions", "trained on 16"
)
bad(
    "data of other regions",
    lambda p: ["evaluate", p.run, "--data", p.spoilt(regions=4)],
    "4 regions an image",
    "trained on 3",
)

# ----------------------------------------------------------------------------------------------------------- arguments


def corrupting(p: Place, *options: object, data: object = None, out: str = "x.npy") -> list[object]:
    return ["corrupt", data or p.precomp, "--ratio=0.5", "--level=image", "--out", p.folder / out, *options]


bad("ratio below 0", lambda p: corrupting(p, "--ratio=-0.1"), "ratio: -0.1 is outside [0, 1); give the share")
bad("ratio of everything", lambda p: corrupting(p, "--ratio=1"), "ratio: 1.0 is outside [0, 1); give the share")
bad("ratio that is none", lambda p: corrupting(p, "--ratio=nan"), "ratio: nan is outside [0, 1); give the share")
bad(
    "ratio of a single image",
    lambda p: corrupting(p, "--ratio=0.02"),
    "ratio: 0.02 of 40 images is 1, and a mismatch needs two; raise",
)
bad(
    "ratio without a level",
    lambda p: p.train(p.precomp, "--ratio=0.4"),
    "ratio, level: one stands without the other; give both",
)
bad(
    "level without a ratio",
    lambda p: p.train(p.precomp, "--level=image"),
    "ratio, level: one stands without the other; give both",
)
bad(
    "mismatched by both",
    lambda p: [*p.mismatched(p.index), "--ratio=0.4", "--level=image"],
    "mismatched by",
    "give one or the other",
)
bad("output of no kind", lambda p: corrupting(p, out="x.txt"), "x.txt: .txt is nothing to write; use .npy")
bad(
    "output over the input",
    lambda p: corrupting(p, data=p.spoilt(), out="precomp/train_ims.npy"),
    "is part of the data itself; choose",
)
bad("table of features", lambda p: corrupting(p, out="x.csv"), "features without image files", "use .npy")
bad(
    "split that is none",
    lambda p: p.evaluate("--split=nowhere"),
    "no split 'nowhere'; take one that it has: dev, test, train",
)
bad(
    "folds that do not divide",
    lambda p: ["evaluate", p.run, "--data", data_of_nine(p), "--protocol=folds5"],
    "9 images do not make 5 equal",
)
bad(
    "device that is none",
    lambda p: p.train(p.precomp, "--device=abacus"),
    "device: 'abacus' is not to be had here (",
    "try auto",
)
bad("batch of one", lambda p: p.train(p.precomp, "--batch-size=1"), "batch_size: 1 is too small; give at least 2")
bad("no learning rate", lambda p: p.train(p.precomp, "--lr=0"), "lr: 0.0 is not positive")
bad("learning rate that is none", lambda p: p.train(p.precomp, "--lr=nan"), "lr: nan is not positive")
bad("learning rate without end", lambda p: p.train(p.precomp, "--lr=inf"), "lr: inf is not finite; give a number")
bad(
    "clip without end",
    lambda p: p.train(p.precomp, "--rematching.reg=inf"),
    "rematching.reg: inf is not finite; give a number",
)
bad(
    "dropout of everything",
    lambda p: p.train(p.precomp, "--model.dropout=1"),
    "model.dropout: 1.0 is too large; give less than 1",
)
bad(
    "mass beyond all",
    lambda p: p.train(p.precomp, "--rematching.mass=1.5"),
    "rematching.mass: 1.5 is too large; give at most 1",
)
bad("seed below 0", lambda p: p.train(p.precomp, "--seed=-1"), "seed: -1 is too small; give at least 0")
bad(
    "no epochs",
    lambda p: p.train(p.precomp, "--warmup-epochs=0", "--rematching-epochs=0"),
    "warmup_epochs, rematching_epochs: both are 0; give",
)
bad(
    "queue smaller than a batch",
    lambda p: p.train(p.precomp, "--rematching.queue-size=8"),
    "rematching.queue_size: 8 is less than a batch has",
    "give 0",
)
bad(
    "a single fold",
    lambda p: p.train(p.precomp, "--rematching.folds=1"),
    "rematching.folds: 1 leaves nothing to learn from; give 0",
)
bad(
    "more folds than images",
    lambda p: p.train(p.precomp, "--rematching.folds=30"),
    "40 training images are fewer than two for each of 30",
    "give less",
)
bad(
    "objective for l2rm",
    lambda p: p.train(p.precomp, "--objective=infonce"),
    "objective: method l2rm has its own; leave it at auto",
)
bad(
    "oracle without truth",
    lambda p: p.train(p.precomp, "--method=oracle"),
    "method oracle learns from truly matched pairs only",
    "give --mismatch",
)
bad("audit by nothing", lambda p: p.audit(), "audit: what to judge by is open; give --model RUN or --similarity")
bad(
    "audit by two things",
    lambda p: p.audit("--model", p.run, "--similarity", "S.npy"),
    "give --model RUN or --similarity FILE.npy, one of",
)
bad(
    "threshold beyond 1",
    lambda p: p.audit("--similarity", similarities(p), "--keep-threshold=2"),
    "keep_threshold=2.0; give a probability",
)
bad(
    "similarities too few",
    lambda p: p.audit("--similarity", p.save("S.npy", np.zeros((40, 79)))),
    "scores of 40 images × 79 captions",
    "score exactly",
)
bad(
    "similarities in a row",
    lambda p: p.audit("--similarity", p.save("S.npy", np.zeros(40))),
    "similarity matrix: its shape is (40,); give one",
)
bad(
    "similarities of text",
    lambda p: p.audit("--similarity", p.save("S.npy", np.full((40, 80), "x"))),
    "similarity matrix: <U1 are not real numbers; save",
)
bad(
    "similarities not there",
    lambda p: p.audit("--similarity", p.folder / "S.npy"),
    "S.npy: no such file; check the path",
)
bad(
    "similarities with NaN",
    lambda p: p.audit("--similarity", similarities(p, np.nan)),
    "scores: NaN for image 3 and caption 4; check",
)
bad(
    "similarities without end",
    lambda p: p.audit("--similarity", similarities(p, np.inf)),
    "scores: infinite around row 5 (pair 4); check the similarity matrix",
)
bad(
    "vocabulary for a RUN",
    lambda p: ["convert", p.run, "--vocab", "v.json", "--out", p.folder / "x.tar"],
    "vocab: a RUN has its own; leave",
)
bad(
    "export of another tokeniser",
    lambda p: ["convert", p.run, "--out", p.folder / "x.pth.tar"],
    "reads words by 'unicode'",
    "train with tokeniser published",
)
bad(
    "a file for a folder",
    lambda p: p.audit("--model", p.run, "--out", p.write("taken", "")),
    "taken: is a file; name a folder",
)


def similarities(p: Place, spoilt: float = 0.0) -> Path:
    matrix = np.random.default_rng(0).normal(size=(40, 80))
    matrix[3, 4] = spoilt
    return p.save("S.npy", matrix)


def data_of_nine(p: Place) -> Path:
    data = p.spoilt()
    np.save(data / "test_ims.npy", np.load(data / "test_ims.npy")[:9])
    (data / "test_caps.txt").write_text("a dog\n" * 9)
    return data


@pytest.fixture
def place(
    precomp: Path, index: Path, trained: Path, tiny: list[str], tmp_path: Path, make_precomp: Callable[..., Path]
) -> Place:
    return Place(
        folder=tmp_path,
        precomp=precomp,
        index=index,
        run=shutil.copytree(trained, tmp_path / "run"),
        tiny=tiny,
        make_precomp=make_precomp,
    )


def listing(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder; of logs only that they are there."""
    return {
        str(path): path.read_bytes() if path.is_file() and path.name != "log.txt" else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(("make", "told"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_one_line_says_what_is_wrong_and_what_to_do(
    make: Make,
    told: tuple[str, ...],
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = SimpleNamespace(name="efficientnet-lite0", version=1, size=32, dim=5, max_grid=7)
    monkeypatch.setitem(
        image_module.ENCODERS, fake.name, type("Fake", (), {**vars(fake), "__init__": lambda *_, **__: None})
    )  # type: ignore[misc]
    monkeypatch.chdir(place.folder)
    arguments = [str(argument) for argument in make(place)]
    before = listing(place.folder)
    capsys.readouterr()
    assert main(arguments) == 2
    shown = capsys.readouterr()
    *warnings, line = shown.err.splitlines()
    assert line.startswith("l2rm: error: "), shown.err
    assert all("left out" in warning for warning in warnings), shown.err
    for part in told:
        assert part in line
    assert listing(place.folder) == before
    assert not (place.folder / "executed").exists()


def test_the_table_is_long_and_says_everything_once() -> None:
    assert len(TABLE) >= 60
    assert len({row[0] for row in TABLE}) == len(TABLE)
    assert all(row[2] for row in TABLE)
