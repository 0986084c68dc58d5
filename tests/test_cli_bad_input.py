"""Bad input beyond the table of `test_bad_inputs.py`: disks, locks, several faults in a row, processes of their own."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from l2rm import files
from l2rm.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused, and return the one line that it says."""

    def run(*arguments: object, status: int = 2) -> str:
        before = listing(tmp_path)
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        shown = capsys.readouterr()
        assert shown.err.startswith("l2rm: error: "), shown.err
        assert shown.err.count("\n") == 1
        assert "Traceback" not in shown.err
        assert listing(tmp_path) == before
        return shown.err

    return run


def listing(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, the cache aside."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def table(folder: Path, header: str, *rows: str) -> Path:
    """A table whose images are there."""
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).touch()
    path = folder / "pairs.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


# ------------------------------------------------------------------------------------------------------------- tables


def corrupting(data: object, out: Path) -> list[object]:
    return ["corrupt", data, "--ratio", 0.5, "--level", "image", "--out", out]


def test_bad_rows_are_listed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = table(tmp_path, "image,caption,split", "a.png,one,train", "b.png,,train", "b.png,two,train", "c.png,3,dev")
    out = tmp_path / "noisy.csv"
    assert main([*map(str, corrupting(data, out)), "--ratio", "0.9", "--skip-bad"]) == 0
    assert "pairs.csv:row 2: the caption is empty; left out" in capsys.readouterr().err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == ["one", "two", "3"]
    assert [row["is_mismatched"] for row in rows] == ["true", "true", "false"]


# ----------------------------------------------------------------------------------------------- features and indices


def test_captions_that_are_no_multiple_of_the_images(
    refused: Refused, make_precomp: Callable[..., Path], tmp_path: Path
) -> None:
    data = make_precomp(tmp_path / "p")
    captions = (data / "train_caps.txt").read_text().splitlines()
    (data / "train_caps.txt").write_text("\n".join(captions[:-1]) + "\n")
    assert "79 captions for 40 images" in refused("train", data, "--out", tmp_path / "run")
    assert "79 captions for 40 images" in refused(*corrupting(data, tmp_path / "x.npy"))


def test_nan_features(
    refused: Refused, make_precomp: Callable[..., Path], trained: Path, tmp_path: Path, tiny: list[str]
) -> None:
    data = make_precomp(tmp_path / "p")
    for split in ("train", "test"):
        features = np.load(data / f"{split}_ims.npy")
        features[7, 1, 2] = np.nan
        np.save(data / f"{split}_ims.npy", features)
    assert "train_ims.npy: row 7" in refused("train", data, "--out", tmp_path / "run", *tiny)
    assert "test_ims.npy: row 7" in refused("evaluate", trained, "--data", data, "--quiet")
    assert "test_ims.npy: row 7" in refused("audit", data, "--split=test", "--model", trained, "--out", tmp_path / "a")


# --------------------------------------------------------------------------------------------------------------- runs


def test_a_run_that_is_none(refused: Refused, precomp: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[]")
    for run, message in (("nowhere", "no RUN folder"), ("other", "config.json: not the configuration of a RUN")):
        assert message in refused("evaluate", tmp_path / run, "--data", precomp)
        assert message in refused("audit", precomp, "--model", tmp_path / run, "--out", tmp_path / "audit")
    told = refused("train", precomp, "--out", tmp_path / "other", "--resume")
    assert "config.json: not the configuration of a RUN" in told


def test_data_that_a_run_cannot_take(
    refused: Refused, trained: Path, make_precomp: Callable[..., Path], tmp_path: Path
) -> None:
    wide, long = make_precomp(tmp_path / "wide", dim=20), make_precomp(tmp_path / "long", regions=4)
    told = refused("evaluate", trained, "--data", wide)
    assert "20 dimensions" in told
    assert "trained on 16" in told
    told = refused("audit", long, "--model", trained, "--out", tmp_path / "audit")
    assert "4 regions an image" in told
    assert "trained on 3" in told
    np.save(tmp_path / "images.npy", np.zeros((40, 16), dtype=np.float32))
    embeddings = f"{tmp_path / 'images.npy'},{tmp_path / 'images.npy'}"
    assert "regions" in refused("evaluate", trained, "--data", embeddings)
    assert "no split 'nowhere'" in refused("evaluate", trained, "--data", wide, "--split", "nowhere")
    nine = make_precomp(tmp_path / "nine")
    np.save(nine / "test_ims.npy", np.load(nine / "test_ims.npy")[:9])
    (nine / "test_caps.txt").write_text("a dog\n" * 9)
    assert "9 images do not make 5 equal folds" in refused("evaluate", trained, "--data", nine, "--protocol", "folds5")


def test_a_second_train_into_a_run(
    refused: Refused, precomp: Path, index: Path, trained: Path, tmp_path: Path, tiny: list[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    again = ["train", precomp, "--mismatch", index, "--out", run]
    assert "there is a run already" in refused(*again, *tiny)
    assert "lr was 0.002 and is now 0.5" in refused(*again, "--resume", "--lr", 0.5)
    assert "other pairs" in refused(*again[:2], "--out", run, "--resume", "--mismatch", other_index(tmp_path, index))


def other_index(folder: Path, index: Path) -> Path:
    """The same file in a folder that the listing does not look at, one exchange undone."""
    changed = np.load(index)
    changed[[0, 1, -2, -1]] = changed[[-2, -1, 0, 1]]
    path = folder.parent / f"{folder.name}-other.npy"
    np.save(path, changed)
    return path


def test_a_run_that_another_process_holds(refused: Refused, precomp: Path, tmp_path: Path, tiny: list[str]) -> None:
    from l2rm.training.run import locked

    with locked(tmp_path / "run"):
        told = refused("train", precomp, "--out", tmp_path / "run", *tiny)
    assert "is training there" in told


# ------------------------------------------------------------------------------------------------------ where to write


def test_a_folder_that_is_a_file(
    refused: Refused, precomp: Path, trained: Path, tmp_path: Path, tiny: list[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in refused("train", precomp, "--out", tmp_path / "file", *tiny)
    assert "file" in refused("audit", precomp, "--model", trained, "--out", tmp_path / "file", "--quiet")
    assert "file" in refused(*corrupting(precomp, tmp_path / "file" / "x.npy"))
    assert "file" in refused("evaluate", trained, "--data", precomp, "--json", tmp_path / "file" / "m.json", "--quiet")


def test_a_disk_that_fills_up(
    refused: Refused, precomp: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "replace", replace)
    out = tmp_path / "x.npy"
    assert f"{out}: the disk is full" in refused(*corrupting(precomp, out))
    told = refused("evaluate", trained, "--data", precomp, "--json", tmp_path / "m.json", "--quiet")
    assert "the disk is full" in told


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a disk that is soon full")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(
    small_disk: Path,
    precomp: Path,
    make_precomp: Callable[..., Path],
    trained: Path,
    tmp_path: Path,
    tiny: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    big = make_precomp(tmp_path / "big", images=6000, captions=2, regions=1, dim=4)
    for command in (
        corrupting(big, small_disk / "x.npy"),
        ["audit", precomp, "--model", trained, "--out", small_disk / "audit", "--quiet"],
        ["train", precomp, "--out", small_disk / "run", *tiny, "--model.embed-dim=64"],
    ):
        capsys.readouterr()
        assert main([str(argument) for argument in command]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1, told
        assert str(small_disk) in told
        assert "the disk is full" in told
        if command[0] == "train":  # it can be resumed; nothing there is half written
            assert not (small_disk / "run" / "model.safetensors").exists()
            assert json.loads((small_disk / "run" / "config.json").read_text())["finished"] is False
        else:
            assert list(small_disk.iterdir()) == []


def test_a_command_of_its_own_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "l2rm", *map(str, corrupting(tmp_path / "nowhere.csv", tmp_path / "x.npy"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("l2rm: error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- audit and encode


def test_audit_by_two_judges(refused: Refused, precomp: Path, trained: Path, tmp_path: Path) -> None:
    told = refused("audit", precomp, "--model", trained, "--encoder", "efficientnet-lite0", "--out", tmp_path / "a")
    assert "both --model and --encoder" in told
    told = refused("audit", precomp, "--model", trained, "--head", "--out", tmp_path / "a")
    assert "--head learns on embeddings, and --model judges already" in told


def test_audit_of_images_by_nothing(refused: Refused, tmp_path: Path) -> None:
    data = table(tmp_path, "image,caption", "a.png,one", "b.png,two")
    assert "give --encoder NAME, --model RUN or --similarity" in refused("audit", data, "--out", tmp_path / "a")


def test_encoders_that_are_none(refused: Refused, tmp_path: Path, precomp: Path) -> None:
    data = table(tmp_path, "image,caption", "a.png,one", "b.png,two")
    told = refused("audit", data, "--encoder", "resnet", "--out", tmp_path / "a", "--quiet")
    assert "there is no 'resnet'; choose from efficientnet-lite0" in told
    told = refused("audit", precomp, "--encoder", "efficientnet-lite0", "--out", tmp_path / "a")
    assert "has features already" in told
    assert "has features already" in refused("encode", precomp, "--out", tmp_path / "f")


def test_encode_writes_beside_neither_the_data_nor_the_folder(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    data = table(tmp_path / "d", "image,caption,split", "a.png,one,train", "b.png,two,../../escaped")
    told = refused("encode", data, "--out", tmp_path / "f", "--quiet")
    assert "split '../../escaped' cannot be the name of a file" in told  # before anything is decoded
    assert "is the folder of the data itself" in refused("encode", data, "--out", data.parent, "--quiet")
    assert "is the folder of the data itself" in refused("encode", data, "--out", tmp_path, "--quiet")


def test_encoding_what_does_not_decode(refused: Refused, tmp_path: Path) -> None:
    data = table(tmp_path, "image,caption", "a.png,one", "b.png,two")
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra quickstart is not installed")
    told = refused("encode", data, "--out", tmp_path / "f", "--quiet")
    assert "row 1 (pair 0)" in told
    assert "does not decode" in told
    assert "--skip-bad" in told


def test_head_on_words(refused: Refused, precomp: Path, tmp_path: Path) -> None:
    told = refused("audit", precomp, "--head", "--out", tmp_path / "a", "--quiet")
    assert "--head is for embeddings" in told
