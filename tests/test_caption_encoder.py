"""A sentence encoder below the captions, from training to search, by the commands."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiny_bert
from l2rm.cli import main
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.sources import EncoderConfig, with_features

pytest.importorskip("transformers", reason="the extra hf (transformers) is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ["--model.similarity", "cosine", "--model.embed-dim", "16", "--warmup-epochs", "2", "--rematching-epochs", "1"]
SHORT += ["--batch-size", "16", "--lr", "0.02", "--rematching.folds", "2", "--rematching.fold-rounds", "1"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert.save_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def run(precomp: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "embedded"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("L2RM_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(["train", str(precomp), "--out", str(out), "--caption-encoder", str(bert), *SHORT]) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([*map(str, arguments)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("l2rm: error: ")
    return told


def test_commands_encode_captions_as_the_run_did(
    run: Path, precomp: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((run / "config.json").read_text())
    assert record["data"]["encoder"].keys() == {"captions", "captions_checksum"}  # the images came as features
    assert record["data"]["encoder"]["captions"] == str(bert.absolute())
    assert not (run / "vocabulary.json").exists()
    assert main(["evaluate", str(run), "--data", str(precomp), "--json", str(tmp_path / "metrics.json")]) == 0
    assert 0 < json.loads((tmp_path / "metrics.json").read_text())["rsum"] <= 600
    assert main(["audit", str(precomp), "--model", str(run), "--out", str(tmp_path / "audit")]) == 0
    assert main(["index", "--model", str(run), "--data", str(precomp), "--out", str(tmp_path / "index")]) == 0
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    assert manifest["caption_encoder"]["name"] == str(bert.absolute())
    capsys.readouterr()
    caption = pq.read_table(tmp_path / "audit" / "audit.parquet")["caption"][0].as_py()
    assert main(["search", str(tmp_path / "index"), caption, "--target", "captions", "--json", "-k", "3"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert hits[0]["captions"] == [caption]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert main(["index", "--out", str(tmp_path / "index"), "--add", str(precomp)]) == 0
    capsys.readouterr()
    assert main(["search", str(tmp_path / "index"), caption, "--target", "captions", "--json", "-k", "2"]) == 0
    assert [hit["score"] for hit in json.loads(capsys.readouterr().out)] == pytest.approx([1, 1], abs=1e-3)
    assert main(["rematch", str(precomp), "--model", str(run), "--out", str(tmp_path / "index.npy")]) == 0
    assert main(["train", str(precomp), "--out", str(run), "--resume"]) == 0  # finished, and says so


def test_embeddings_that_data_bring_are_taken_as_they_are() -> None:
    features = Features(array=np.eye(3, dtype=np.float32))
    pairs = Pairs(
        images=("a", "b", "c"), image_of=np.arange(3), captions=("x", "y", "z"), features=features,
        caption_features=features,
    )  # fmt: skip
    assert with_features(pairs, EncoderConfig(captions="of/a-run")) is pairs


def test_runs_of_one_ensemble_read_captions_alike(
    run: Path, trained: Path, precomp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_bert.save_model(tmp_path / "other", seed=5)
    second = tmp_path / "second"
    assert main(["train", str(precomp), "--out", str(second), "--caption-encoder", str(other), *SHORT]) == 0
    for one, two in ((run, second), (run, trained), (trained, run)):
        told = refused(capsys, "evaluate", one, two, "--data", precomp)
        assert "reads captions by" in told
        assert "take the runs one by one" in told


def test_another_encoder_under_the_same_name_is_refused(
    precomp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_bert.save_model(tmp_path / "bert", seed=7)
    run, index = tmp_path / "run", tmp_path / "index"
    assert main(["train", str(precomp), "--out", str(run), "--caption-encoder", str(folder), *SHORT]) == 0
    assert main(["index", "--model", str(run), "--data", str(precomp), "--out", str(index)]) == 0
    shutil.rmtree(folder)
    for command in (["evaluate", run, "--data", precomp], ["search", index, "a dog"]):
        assert f"caption encoder {folder}: no such folder" in refused(capsys, *command)
    tiny_bert.save_model(folder, seed=8)
    for command in (["evaluate", run, "--data", precomp], ["search", index, "a dog"]):
        assert "is another model now" in refused(capsys, *command)


def test_an_audit_without_a_run_learns_heads_on_the_embeddings(precomp: Path, bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "audit"
    assert main(["audit", str(precomp), "--caption-encoder", str(bert), "--out", str(out)]) == 0
    table = pq.read_table(out / "audit.parquet")
    assert np.isfinite(table["match_probability"].to_numpy()).all()
    assert not table["caption"][0].as_py().startswith("caption 0")  # the words are still there


def test_what_does_not_go_together_is_refused(
    run: Path, precomp: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_bert.save_model(tmp_path / "other", seed=5)
    resumed = refused(capsys, "train", precomp, "--out", run, "--resume", "--caption-encoder", other, *SHORT)
    assert "resume a run as it was started" in resumed
    for name in ("images", "captions"):
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32))
    arrays = f"{tmp_path / 'images.npy'},{tmp_path / 'captions.npy'}"
    told = refused(capsys, "audit", arrays, "--caption-encoder", bert, "--out", tmp_path / "a")
    assert "captions are embeddings already; leave --caption-encoder out" in told
    told = refused(
        capsys, "audit", "pairs.csv", "--encoder", "a/clip", "--caption-encoder", bert, "--out", tmp_path / "a"
    )
    assert "encoder a/clip: embeds captions too" in told
    told = refused(capsys, "audit", precomp, "--model", run, "--caption-encoder", bert, "--out", tmp_path / "a")
    assert "give one of them" in told
    told = refused(
        capsys, "train", precomp, "--recipe", "clip", "--model.encoder", bert, "--caption-encoder", bert,
        "--out", tmp_path / "r",
    )  # fmt: skip
    assert "reads captions by itself" in told
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "r").exists()
