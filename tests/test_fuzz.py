"""Whatever bytes a file holds, reading it gives what it should, or an `InputError` of one line; never anything else.

Files that are right are damaged at random: bits flipped, bytes taken out, put in, repeated, cut off, words of the
format in wrong places. `make fuzz` does so for longer.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from l2rm.data.features import Features
from l2rm.data.formats import read_pairs
from l2rm.data.mismatch import read_index
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import SPECIAL, Vocabulary
from l2rm.earlier import saved_run
from l2rm.encoders.pixels import UndecodableImageError, decode
from l2rm.errors import InputError
from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.check import check_same_run
from l2rm.training.published import convert, published_name
from l2rm.training.run import Run, load_run, read_lines, read_record, write_model, write_record
from l2rm.training.settings import TrainConfig
from l2rm.training.state import load_state, save_state

fuzzed = settings(suppress_health_check=list(HealthCheck), deadline=None)
WORDS = [
    *(b"\0", b"\n", b"\r", b",", b"\t", b'"', b"\xff", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b":", b"null", b"true"),
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"99999999999999999999", b"\\ud800", b"[" * 3000, b"image", b"caption"),
    *(b"split", b"(", b")", b"'O'", b"'<f8'", b"'|V9'", b"False", b"shape", b"\x80", b"cos\nsystem\n", b"../", b"/"),
]
COLUMNS = {"image": ["a.png", "b.png", "c.png"], "caption": ["one", "two, 2", "drei"], "split": ["train", "dev", "dev"]}


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """The same bytes after a few accidents, or any bytes."""
    place = st.integers(0, max(0, len(whole) - 1))
    accident = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(0, 7)),
        st.tuples(st.just("put"), place, st.sampled_from(WORDS) | st.binary(max_size=8)),
        st.tuples(st.just("over"), place, st.sampled_from(WORDS) | st.binary(max_size=8)),
        st.tuples(st.just("take"), place, st.integers(1, 40)),
        st.tuples(st.just("again"), place, st.integers(1, 200)),
        st.tuples(st.just("cut"), place, st.just(0)),
    )

    def happen(accidents: list[tuple[str, int, Any]]) -> bytes:
        content = bytearray(whole)
        for kind, at, what in accidents:
            if kind == "flip" and at < len(content):
                content[at] ^= 1 << what
            elif kind == "put":
                content[at:at] = what
            elif kind == "over":
                content[at : at + len(what)] = what
            elif kind == "take":
                del content[at : at + what]
            elif kind == "again":
                content[at:at] = content[at : at + what]
            elif kind == "cut":
                del content[at:]
        return bytes(content)

    return st.lists(accident, min_size=1, max_size=4).map(happen) | st.binary(max_size=64)


def only_input_errors(read: Callable[[], object], path: Path) -> None:
    """Read; what is refused must be refused in one line that names the file."""
    refusal = None
    try:
        read()
    except InputError as error:
        refusal = str(error)
    assert refusal is None or ("\n" not in refusal and path.parent.name in refusal)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in COLUMNS["image"]:
        Image.new("RGB", (4, 3), "red").save(folder / name)
    return folder


def delimited(delimiter: str) -> bytes:
    rows = [COLUMNS, *zip(*COLUMNS.values(), strict=True)]
    return "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows).encode()


JSONL = "\n".join(
    json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in zip(*COLUMNS.values(), strict=True)
).encode()


@fuzzed
@given(content=damaged(delimited(",")), skip_bad=st.booleans())
def test_csv(content: bytes, skip_bad: bool, place: Path) -> None:
    check_table(place / "pairs.csv", content, skip_bad)


@fuzzed
@given(content=damaged(delimited("\t")), skip_bad=st.booleans())
def test_tsv(content: bytes, skip_bad: bool, place: Path) -> None:
    check_table(place / "pairs.tsv", content, skip_bad)


@fuzzed
@given(content=damaged(JSONL), skip_bad=st.booleans())
def test_jsonl(content: bytes, skip_bad: bool, place: Path) -> None:
    check_table(place / "pairs.jsonl", content, skip_bad)


def parquet_bytes() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table(COLUMNS), buffer)
    return bytes(buffer.getvalue())


@fuzzed
@given(content=damaged(parquet_bytes()), skip_bad=st.booleans())
def test_parquet(content: bytes, skip_bad: bool, place: Path) -> None:
    check_table(place / "pairs.parquet", content, skip_bad)


def check_table(path: Path, content: bytes, skip_bad: bool) -> None:
    path.write_bytes(content)

    def read() -> None:
        pairs = read_pairs(path, skip_bad=skip_bad)
        pairs.write(path.with_name("copy.csv"))  # what is read can be written, and is the same
        again = read_pairs(path.with_name("copy.csv"))
        assert (again.captions, again.images, again.pair_ids) == (pairs.captions, pairs.images, pairs.pair_ids)

    only_input_errors(read, path)


@fuzzed
@given(content=damaged(b"a dog\ntwo dogs\na cat\ncats\n"), form=st.sampled_from(["txt", "tsv"]), skip_bad=st.booleans())
def test_captions_of_a_folder(
    content: bytes, form: str, skip_bad: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    np.save(folder / "train_ims.npy", np.ones((2, 3), dtype=np.float32))
    captions = folder / f"train_caps.{form}"
    captions.write_bytes(
        b"".join(b"%d\t" % (i // 2) + line for i, line in enumerate(content.splitlines(True)))
        if form == "tsv"
        else content
    )
    only_input_errors(lambda: read_pairs(folder, skip_bad=skip_bad), captions)


def npy_bytes(array: np.ndarray, folder: Path) -> bytes:
    np.save(folder / "whole.npy", array)
    return (folder / "whole.npy").read_bytes()


@fuzzed
@given(data=st.data(), dtype=st.sampled_from(["float16", "float32", "float64", "int8"]))
def test_features(data: st.DataObject, dtype: str, place: Path) -> None:
    whole = npy_bytes(np.ones((5, 2, 3), dtype=dtype), place)
    path = place / "damaged_ims.npy"
    np.save(place / "scale.npy", np.ones(3, dtype=np.float32))
    path.write_bytes(data.draw(damaged(whole)))

    def read() -> None:
        features = Features.open(path)
        assert features.batch(np.arange(min(2, len(features)))).ndim in (2, 3)
        features.digest()

    only_input_errors(read, path)


@fuzzed
@given(data=st.data())
def test_index_files(data: st.DataObject, place: Path) -> None:
    pairs = Pairs(images=("a", "b", "c"), image_of=np.arange(3), captions=("1", "2", "3"))
    path = place / "index.npy"
    path.write_bytes(data.draw(damaged(npy_bytes(np.array([1, 0, 2]), place))))
    only_input_errors(lambda: read_index(path, pairs), path)


VOCABULARIES = [
    json.dumps({"format": 1, "tokeniser": "unicode", "words": [*SPECIAL, "a", "dog"]}).encode(),
    json.dumps({"word2idx": {word: i for i, word in enumerate((*SPECIAL, "a", "dog"))}, "idx": 6}).encode(),
]


@fuzzed
@given(content=st.one_of(map(damaged, VOCABULARIES)))
def test_vocabularies(content: bytes, place: Path) -> None:
    path = place / "v.json"
    path.write_bytes(content)

    def read() -> None:
        vocabulary = Vocabulary.read(path)
        vocabulary.encode("a dog and a cat")
        vocabulary.write(place / "copy.json")

    only_input_errors(read, path)


# ------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest RUN folder."""
    folder = tmp_path_factory.mktemp("fuzz run")
    config = TrainConfig(model=ModelConfig(similarity="cosine", embed_dim=4, word_dim=3))
    shape = DataShape(image_dim=5, regions=1, vocabulary_size=6)
    facts: dict[str, Any] = {
        "data": {
            "source": "x.csv", "image_root": None, "seed": 0, "skip_bad": False,
            "mismatch": {"index": None, "level": "image", "ratio": 0.4},
            "injection": {"ratio": 0.4, "level": "image", "seed": 0},
            "encoder": {"name": "efficientnet-lite0", "grid": 6},
        },
        "fingerprint": "0" * 16,
        "features": {"train": ["1" * 16, None], "dev": ["2" * 16, None]},
        "finished": False,
    }  # fmt: skip
    write_record(folder, config, shape, **facts)
    write_model(folder, build_model(config.model, shape))
    Vocabulary(words=(*SPECIAL, "a", "dog")).write(folder / "vocabulary.json")
    (folder / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    pq.write_table(
        pa.table({"image": ["a", "b"], "caption": ["1", "2"], "match_probability": [0.5, 1.0]}),
        folder / "pairs.parquet",
    )
    save_state(folder, {"step": 1, "weights": torch.ones(3)})
    return folder


def check_run(run: Path, name: str, data: st.DataObject, read: Callable[[], object]) -> None:
    path = run / name
    whole = path.read_bytes()
    path.write_bytes(data.draw(damaged(whole)))
    try:
        only_input_errors(read, run / "x")
    finally:
        path.write_bytes(whole)


@fuzzed
@given(data=st.data())
def test_configurations(data: st.DataObject, run: Path) -> None:
    def read() -> None:
        load_run(run)
        config, _ = saved_run(run)
        check_same_run(run, read_record(run), config, "0" * 16, {"train": [None, None], "dev": ["2" * 16, None]})

    check_run(run, "config.json", data, read)


@fuzzed
@given(data=st.data())
def test_weights(data: st.DataObject, run: Path) -> None:
    check_run(run, "model.safetensors", data, lambda: load_run(run))


@fuzzed
@given(data=st.data())
def test_metrics_and_probabilities(data: st.DataObject, run: Path) -> None:
    pairs = Pairs(images=("a", "b"), image_of=np.arange(2), captions=("1", "2"))
    check_run(run, "metrics.jsonl", data, lambda: read_lines(run / "metrics.jsonl"))
    record: dict[str, Any] = {"folder": run, "config": TrainConfig(), "model": None, "record": {}}
    check_run(run, "pairs.parquet", data, lambda: Run(**record).match_probability(pairs))


@fuzzed
@given(data=st.data())
def test_saved_states(data: st.DataObject, run: Path) -> None:
    def read() -> None:
        state = load_state(run)
        assert state is not None
        assert torch.equal(state["weights"], torch.ones(3))  # no damage is taken for a state

    check_run(run, "last/state.pt", data, read)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, bytes]:
    """A published checkpoint, zipped or not; written once, as torch's older form numbers storages by their address."""
    path = tmp_path_factory.mktemp("published") / "m.pth.tar"
    config = ModelConfig(similarity="sgr", embed_dim=4, word_dim=2, similarity_dim=3, graph_steps=1)
    model = build_model(config, DataShape(image_dim=3, regions=2, vocabulary_size=6))
    content = {"net": {published_name(name): value for name, value in model.state_dict().items()}, "epoch": 3}
    files = {}
    for zipped in (False, True):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        files[zipped] = path.read_bytes()
    return files


@fuzzed
@given(data=st.data(), zipped=st.booleans())
def test_published_checkpoints(
    data: st.DataObject, zipped: bool, published: dict[bool, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz published")
    path = folder / "m.pth.tar"
    (folder / "v.json").write_bytes(VOCABULARIES[1])
    path.write_bytes(data.draw(damaged(published[zipped])))
    only_input_errors(lambda: convert(path, folder / "v.json", folder / "run"), path)


@fuzzed
@given(data=st.data(), form=st.sampled_from(["png", "jpeg", "gif", "bmp", "tiff", "webp"]))
def test_pictures(data: st.DataObject, form: str, place: Path) -> None:
    path = place / f"picture.{form}"
    Image.new("RGB", (9, 7), "green").save(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with contextlib.suppress(UndecodableImageError):
        assert decode(path, 8).shape == (8, 8, 3)
