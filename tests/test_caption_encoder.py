"""A sentence encoder below the captions, from training to search, by the commands."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import tiny_bert
from l2rm.cli import main

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
    assert record["data"]["encoder"]["captions"] == str(bert.absolute())
    assert not (run / "vocabulary.json").exists()
    assert main(["evaluate", str(run), "--data", str(precomp), "--json", str(tmp_path / "metrics.json")]) == 0
    assert 0 < json.loads((tmp_path / "metrics.json").read_text())["rsum"] <= 600
    assert main(["audit", str(precomp), "--model", str(run), "--out", str(tmp_path / "audit")]) == 0
    assert main(["index", "--model", str(run), "--data", str(precomp), "--out", str(tmp_path / "index")]) == 0
    manifest = json.loads((tmp_path / "index" / "index.json").read_text())
    assert manifest["caption_encoder"] == str(bert.absolute())
    capsys.readouterr()
    caption = pq.read_table(tmp_path / "audit" / "audit.parquet")["caption"][0].as_py()
    assert main(["search", str(tmp_path / "index"), caption, "--target", "captions", "--json", "-k", "3"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert hits[0]["captions"] == [caption]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-3)
    assert main(["index", "--out", str(tmp_path / "index"), "--add", str(precomp)]) == 0


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
    told = refused(capsys, "audit", precomp, "--model", run, "--caption-encoder", bert, "--out", tmp_path / "a")
    assert "give one of them" in told
    told = refused(
        capsys, "train", precomp, "--recipe", "clip", "--model.encoder", bert, "--caption-encoder", bert,
        "--out", tmp_path / "r",
    )  # fmt: skip
    assert "reads captions by itself" in told
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "r").exists()
