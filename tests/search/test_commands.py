"""`l2rm index`, `search` and `serve`, from arguments to answers."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from l2rm.cli import main
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.search.index import Index
from l2rm.search.model_folder import write_model_folder
from l2rm.similarity.model import RetrievalModel
from l2rm.summaries import index_summary

from .conftest import draw

pytestmark = pytest.mark.usefixtures("one_thread")
NEEDS_SERVE = pytest.mark.skipif(find_spec("fastapi") is None, reason="the extra serve brings it")


def ask(*arguments: object, status: int = 0) -> None:
    assert main([str(argument) for argument in arguments]) == status


def test_precomp_from_a_run(trained: Path, precomp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "index"
    ask("index", "--model", trained, "--data", precomp, "--split", "test", "--out", index)
    assert "10 images, 20 captions" in capsys.readouterr().out
    ask("search", index, "red kite", "-k", 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert re.match(r" +0\.\d{3}  image:\d+ +test/\d  \w+", lines[0])
    ask("search", index, "--like", "image:4", "--target", "captions", "--json", "-k", 2)
    assert [hit["kind"] for hit in json.loads(capsys.readouterr().out)] == ["caption"] * 2
    ask("index", "--out", index, "--remove", "image:3", "test/4", "caption:0")
    assert "removed 2 images, 5 captions" in capsys.readouterr().out
    ask("index", "--out", index, "--add", precomp, "--split", "dev", "--quiet")
    assert "added 10 images, 20 captions\n18 images, 35 captions" in capsys.readouterr().out
    ask("index", "--out", index, "--compact")
    assert "18 images, 35 captions" in capsys.readouterr().out


def test_a_table_of_one_row_is_added(
    trained: Path, precomp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from l2rm import sources

    def with_features(pairs: Pairs, *_: object, **__: object) -> Pairs:
        """Pixels are not what this is about."""
        known = pairs.features or Features.open(precomp / "test_ims.npy").take([0])
        return replace(pairs, features=known)

    monkeypatch.setattr(sources, "with_features", with_features)
    index, table = tmp_path / "index", tmp_path / "new.csv"
    ask("index", "--model", trained, "--data", precomp, "--split", "dev", "--out", index)
    (tmp_path / "new.png").touch()
    table.write_text("image,caption\nnew.png,a red kite\n")
    capsys.readouterr()
    ask("index", "--out", index, "--add", table)
    assert "added 1 images, 1 captions\n11 images, 21 captions" in capsys.readouterr().out
    table.write_text("image,caption\n")
    ask("index", "--out", index, "--add", table, status=2)
    assert "new.csv: 0 rows; a table needs at least 1" in capsys.readouterr().err


def test_arrays_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss", reason="the extra faiss brings it")
    generator = np.random.default_rng(0)
    for name in ("images", "captions"):
        np.save(tmp_path / f"{name}.npy", generator.normal(size=(200, 8)).astype(np.float32))
    data = f"{tmp_path}/images.npy,{tmp_path}/captions.npy"
    ask("index", "--data", data, "--out", tmp_path / "index", "--approximate-above", 100)
    assert re.search(r"images are searched by FAISS, \d+ of \d+ lists: it finds \d+\.\d % ", capsys.readouterr().out)
    ask("search", tmp_path / "index", "--like", "image:0", "-k", 2)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_next_step_that_is_told_works(
    tmp_path: Path, served_index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("images", "captions"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(5, 8)))
    ask("index", "--data", f"{tmp_path}/images.npy,{tmp_path}/captions.npy", "--out", tmp_path / "index")
    ask("index", "--out", tmp_path / "index", "--remove", "image:0")
    for told in (capsys.readouterr().out, index_summary(served_index)):
        ask(*shlex.split(told.rpartition(" or l2rm ")[2]))


def test_the_same_numbers_of_other_arrays_are_other_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.normal(size=(n, 8)) for n in (5, 3))
    for name, vectors in (("i", first), ("c", first), ("i2", second), ("c2", second)):
        np.save(tmp_path / f"{name}.npy", vectors)
    ask("index", "--data", f"{tmp_path}/i.npy,{tmp_path}/c.npy", "--out", tmp_path / "index")
    for _ in range(2):
        ask("index", "--out", tmp_path / "index", "--add", f"{tmp_path}/i2.npy,{tmp_path}/c2.npy")
    assert "replaced" not in capsys.readouterr().out
    index = Index(tmp_path / "index")
    assert [index.hit("image", one, 0).name for one in index.items["image"].ids] == [f"image {n}" for n in range(11)]
    assert index.search_vector(first[2], k=1)[0].id == 2
    assert {hit.id for hit in index.search_vector(second[2], k=2)} == {7, 10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("search {index}", "nothing is given"),
        ("search {index} red --like image:1", "text and like is given"),
        ("search {index} --like picture:1", "is no item"),
        ("search {index} --like image:1000", "no such item"),
        ("search {index} red -k 0", "at least 1"),
        ("search {folder} red", "no index"),
        ("search {index} --image {folder}/none.png", "does not decode"),
        ("search {index} red --model {run}", "was made by model"),
        ("index --out {index}", "nothing is asked for"),
        ("index --out {index} --compact --add x.csv", "add and compact is asked for"),
        ("index --out {folder}/none --compact", "no index"),
        ("index --out {index} --remove nobody.png", "no image of this index"),
        ("index --data {folder}/none.csv --out {folder}/new", "no such file"),
        ("serve", "nothing is given"),
        pytest.param("serve {folder}", "no index", marks=NEEDS_SERVE),
        pytest.param("serve --audit {folder}", "audit.parquet: no such file", marks=NEEDS_SERVE),
        pytest.param("serve {index} --port 99999", "choose another --port", marks=NEEDS_SERVE),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: str, message: str, served_index: Index, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [part.format(index=served_index.folder, folder=tmp_path, run=trained) for part in arguments.split()]
    ask(*given, status=2)
    shown = capsys.readouterr()
    assert shown.err.startswith("l2rm: error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not list(tmp_path.iterdir())


@NEEDS_SERVE
def test_a_taken_port_is_told(served_index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ask("serve", served_index.folder, "--port", taken.getsockname()[1], status=2)
    assert "in use; choose another --port" in capsys.readouterr().err


def test_a_picture_by_its_file(drawn: Pairs, served_index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    ask("search", served_index.folder, "--image", drawn.image_path(7), "--target", "images", "-k", 1)
    assert "image:7  picture 7.png" in capsys.readouterr().out


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Address and process of `l2rm serve`; without the encoder, which this process alone has."""
    script = (
        "import sys, l2rm.search.index as room; room.Index.warm_up = lambda self: None; "
        "from l2rm.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "serve", *map(str, arguments), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[0], process
    finally:
        process.kill()
        process.communicate()


def fetched(address: str) -> str:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return str(answer.read().decode())


@NEEDS_SERVE
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_serve_answers_until_it_is_stopped(number: signal.Signals, status: int, served_index: Index) -> None:
    with serving(served_index.folder) as (address, process):
        assert json.loads(fetched(f"{address}healthz"))["status"] == "ok"
        assert 'href="/review"' not in fetched(address)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        assert process.returncode == status, told
        assert "Traceback" not in told


@pytest.fixture
def audited(trained: Path, precomp: Path, tmp_path: Path) -> Path:
    ask("audit", precomp, "--model", trained, "--out", tmp_path / "audit", "--quiet")
    return tmp_path / "audit"


@NEEDS_SERVE
def test_search_and_review_served_together_lead_to_each_other(served_index: Index, audited: Path) -> None:
    with serving(served_index.folder, "--audit", audited) as (address, _):
        assert json.loads(fetched(f"{address}healthz"))["status"] == "ok"
        assert 'href="/review"' in fetched(address)
        assert 'href="/"' in fetched(f"{address}review")
        assert json.loads(fetched(f"{address}review/api/summary"))["progress"]["pairs"] == 80
        assert json.loads(fetched(f"{address}api/search?q=red"))["results"]


@NEEDS_SERVE
def test_a_review_alone_is_the_start_page(audited: Path) -> None:
    with serving("--audit", audited) as (address, _):
        start = fetched(address)
        assert start == fetched(f"{address}review")
        assert 'href="/"' not in start


def test_a_copy_of_the_folder_is_enough(
    cosine: RetrievalModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model_folder(tmp_path / "run", cosine)
    pairs = draw(tmp_path / "drawn", 6)
    index = Index.build(pairs, cosine, out=tmp_path / "index")
    index.folder.rename(tmp_path / "moved")
    ask("search", tmp_path / "moved", "red", "--model", tmp_path / "run", "-k", 1)
    assert "image:" in capsys.readouterr().out
