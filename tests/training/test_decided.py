"""Decisions are truth in training: probability 1 where a person said so, other decisions are another run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.cli import main
from l2rm.data.batches import Batches
from l2rm.data.pairs import Pairs
from l2rm.data.tables import write_table
from l2rm.earlier import saved_data
from l2rm.sources import DataConfig, open_training
from l2rm.training.divide import divide, trusting
from l2rm.training.train import fingerprint


def test_trusted_rows_follow_their_pairs_and_have_probability_one() -> None:
    trusted = np.array([True, False, False, True])
    pairs = Pairs(images=("a", "b", "c", "d"), image_of=np.arange(4), captions=tuple("wxyz"), trusted=trusted)
    part = pairs.take([3, 1])
    assert part.trusted.tolist() == [True, False]
    probability = np.array([0.25, 0.5], dtype=np.float32)
    np.testing.assert_array_equal(trusting(part, probability), np.array([1, 0.5], dtype=np.float32))
    np.testing.assert_array_equal(trusting(replace(part, trusted=None), probability), probability)
    assert fingerprint(pairs) != fingerprint(replace(pairs, trusted=~trusted))
    assert fingerprint(replace(pairs, trusted=None)) != fingerprint(pairs)


@pytest.mark.parametrize("rematching", [{}, {"folds": 2, "evidence": "image"}])
def test_the_division_trusts_decided_rows(small, tmp_path: Path, rematching: dict) -> None:  # type: ignore[no-untyped-def,type-arg]
    torch.set_num_threads(1)
    pairs = small.small_train()
    wrong = np.flatnonzero(pairs.is_mismatched)[:40]
    trusted = np.zeros(len(pairs), dtype=bool)
    trusted[wrong] = True  # a person may overrule any model
    config = small.small_config(rematching_epochs=1, rematching=rematching)
    run = small.train(replace(pairs, trusted=trusted), small.small_dev(), config, tmp_path / "run", progress=False)
    probability = pq.read_table(tmp_path / "run" / "pairs.parquet")["match_probability"].to_numpy()
    assert (probability[wrong] == 1).all()
    others = pairs.is_mismatched & ~trusted
    assert probability[others].mean() < 0.5
    batches = Batches(pairs, run.model.vocabulary, torch.device("cpu"))
    alone = divide(run.model, batches, config.rematching, batch_size=30, seed=(0,))
    assert alone.match_probability[wrong].mean() < 1


@pytest.mark.parametrize("method", ["ncr", "crcl"])
def test_other_methods_trust_them_too(small, tmp_path: Path, method: str) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    pairs = small.small_train(images=60)
    trusted = np.arange(len(pairs)) % 3 == 0
    config = small.small_config(method=method, rematching_epochs=5)
    small.train(replace(pairs, trusted=trusted), small.small_dev(), config, tmp_path / "run", progress=False)
    probability = pq.read_table(tmp_path / "run" / "pairs.parquet")["match_probability"].to_numpy()
    assert (probability[trusted] == 1).all()
    assert (probability[~trusted] < 1).any()


@pytest.fixture
def decisions(precomp: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes decisions about the train split of `precomp`: (row, decision, new image) each."""
    pairs = open_training(DataConfig(source=str(precomp)), progress=False).train

    def write(*decided: tuple[int, str, str]) -> Path:
        rows = [row for row, _, _ in decided]
        columns = {
            "pair_id": [pairs.pair_ids[row] for row in rows],
            "image": [pairs.images[pairs.image_of[row]] for row in rows],
            "caption": [pairs.captions[row] for row in rows],
            "decision": [verdict for _, verdict, _ in decided],
            "new_image": [new for _, _, new in decided],
            "new_caption": [""] * len(rows),
        }
        write_table(tmp_path / "decisions.csv", columns)
        return tmp_path / "decisions.csv"

    return write


@pytest.mark.usefixtures("one_thread")
def test_train_takes_decisions_and_resumes_only_with_them(
    precomp: Path,
    tiny: list[str],
    decisions: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = open_training(DataConfig(source=str(precomp)), progress=False).train
    new = before.images[7]
    path = decisions((0, "keep", ""), (1, "drop", ""), (2, "rematch", new))
    out = tmp_path / "run"
    loud = [option for option in tiny if option != "--quiet"]
    assert main(["train", str(precomp), "--out", str(out), "--decisions", str(path), *loud]) == 0
    assert "decided: keep 1, rematch 1, drop 1" in capsys.readouterr().out
    table = pq.read_table(out / "pairs.parquet").to_pydict()
    assert len(table["pair_id"]) == len(before) - 1
    assert (table["image"][1], table["caption"][1]) == (new, before.captions[2])
    assert table["match_probability"][:2] == [1, 1]
    told = json.loads((out / "config.json").read_text())["data"]["decisions"]
    assert told == {"file": str(path), "keep": 1, "rematch": 1, "drop": 1, "elsewhere": 0}
    assert saved_data(out).decisions == path
    assert main(["train", str(precomp), "--out", str(out), "--resume"]) == 0  # finds them by itself
    decisions((0, "keep", ""), (1, "drop", ""))
    capsys.readouterr()
    assert main(["train", str(precomp), "--out", str(out), "--resume"]) == 2
    assert "other pairs" in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_decisions_about_other_data_are_refused(
    precomp: Path, tiny: list[str], decisions: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = decisions((0, "keep", ""))
    path.write_text(path.read_text().replace("train image", "other image").replace(" ", "  ", 3))
    assert main(["train", str(precomp), "--out", str(tmp_path / "run"), "--decisions", str(path), *tiny]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "pair '0' was decided with" in told
    assert not (tmp_path / "run" / "config.json").exists()


def test_decisions_of_a_table_reach_every_split(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [(f"{n}.png", f"caption {n}", "train" if n < 8 else "dev" if n < 10 else "test") for n in range(12)]
    columns = dict(zip(("image", "caption", "split"), map(list, zip(*rows, strict=True)), strict=True))
    write_table(tmp_path / "pairs.csv", columns)
    for name, _, _ in rows:
        (tmp_path / name).touch()
    decided = [(0, "rematch", "9.png"), (1, "rematch", "2.png"), (8, "drop", ""), (9, "keep", "")]
    table = {
        "pair_id": [str(row) for row, _, _ in decided],
        "image": [f"{row}.png" for row, _, _ in decided],
        "caption": [f"caption {row}" for row, _, _ in decided],
        "decision": [verdict for _, verdict, _ in decided],
        "new_image": [new for _, _, new in decided],
        "new_caption": [""] * 4,
    }
    write_table(tmp_path / "decisions.parquet", table)
    from l2rm import sources

    config = DataConfig(source=str(tmp_path / "pairs.csv"), decisions=tmp_path / "decisions.parquet")
    splits = sources.open_splits(config.source)
    counts = sources._decide(config, splits)
    assert splits["train"].captions == tuple(f"caption {n}" for n in range(1, 8))  # 0 went to an image of dev
    assert splits["train"].images[splits["train"].image_of[0]] == "2.png"
    assert (splits["dev"].captions, splits["dev"].trusted.tolist()) == (("caption 9",), [True])
    assert splits["test"].trusted is None
    assert counts == {"file": str(config.decisions), "keep": 1, "rematch": 2, "drop": 1, "elsewhere": 1}
