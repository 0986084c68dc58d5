"""A tiny CLIP with random weights is fine-tuned by every method, stopped, resumed, and used like any other run."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.cli import main
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.pairs import Pairs
from l2rm.encoders.pretrained import load_towers
from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection
from l2rm.evaluation.evaluate import evaluate
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.clip import Clip
from l2rm.similarity.model import build_model
from l2rm.similarity.settings import ModelConfig
from l2rm.sources import open_splits
from l2rm.training import fold_model, trainer
from l2rm.training.interrupt import Interrupted
from l2rm.training.run import Run, load_run, read_weights
from l2rm.training.settings import TrainConfig
from l2rm.training.train import train
from l2rm.training.trainer import Trainer

pytest.importorskip("transformers", reason="the extra hf (transformers) is not installed")
pytest.importorskip("peft", reason="the extra finetune (peft) is not installed")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread")]
FOLDS = {"folds": 2, "fold_rounds": 1, "take": "weight", "steps": "pairs", "matched_objective": "infonce"}
SPLIT = {"one_mode": "mixture", "estimator": "moments"}  # suspects, even where the losses name none
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"method": "plain", "objective": "infonce"},
    "oracle": {"method": "oracle", "objective": "symmetric_cross_entropy"},
    "warmup": {"method": "warmup"},
    "division": {"method": "division", "lr": 1e-3, "rematching": SPLIT},
    "l2rm in the batch": {"lr": 1e-3, "rematching": SPLIT | {"steps": "pairs", "queue_size": 24}},
    "l2rm by folds": {"rematching": FOLDS | {"evidence": "auto", "scope": "dataset"}},
    "ncr": {"method": "ncr"},
    "crcl": {"method": "crcl"},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, tiny_clip: ModuleType) -> Path:
    return tiny_clip.draw(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def learned(table: Path, tmp_path_factory: pytest.TempPathFactory, tiny_clip: ModuleType) -> Run:
    """A run that has learned all weights of a random CLIP, from matched pairs."""
    torch.set_num_threads(1)
    folder, found = tmp_path_factory.mktemp("learned"), open_splits(table)
    start = tiny_clip.save_model(folder / "random", "clip")
    config = config_of(start, "plain", finetune="full", warmup_epochs=25, rematching_epochs=10, batch_size=36)
    return train(found["train"], found["dev"], config, folder / "run", progress=False)


@pytest.fixture(scope="module")
def base(learned: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is to be fine-tuned: a CLIP of a few thousand weights that knows its colours, left and right."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    model = learned.model
    assert isinstance(model, Clip)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def splits(table: Path) -> dict[str, Pairs]:
    found = open_splits(table)
    return found | {"train": inject_mismatches(found["train"], ratio=0.4, level="image", seed=0).pairs}


def config_of(base: Path, name: str = "l2rm by folds", *, finetune: str = "lora", **changes: Any) -> TrainConfig:
    options = METHODS[name] | changes
    rematching = {"tau": 0.1, **options.pop("rematching", {})}
    start = {"warmup_epochs": 2, "rematching_epochs": 2, "batch_size": 16, "lr": 1e-2, "device": "cpu"}
    return TrainConfig(
        **start | {"lr_rise_steps": 4} | options,
        model=ModelConfig(similarity="clip", encoder=str(base), finetune=finetune, lora_rank=4, lora_alpha=8),
        rematching=RematchingConfig(**rematching),
    )


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def assert_same(run: Run, other: Run) -> None:
    for name in ("model.safetensors", "pairs.parquet"):
        assert (run.folder / name).read_bytes() == (other.folder / name).read_bytes(), name
    assert timeless(run.metrics) == timeless(other.metrics)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a signal arrive in this process at that step."""
    learn, done = Trainer._learn, 0

    def signalled(self: Trainer, *arguments: Any) -> None:
        nonlocal done
        learn(self, *arguments)
        done += 1
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_learn", signalled)


LONG = ("oracle", "warmup", "ncr", "crcl")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in METHODS]
)
def test_every_method_fine_tunes_and_goes_on_where_it_stopped(
    name: str, base: Path, splits: dict[str, Pairs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(out: Path) -> Run:
        return train(splits["train"], splits["dev"], config_of(base, name), out, resume=True, progress=False)

    whole = go(tmp_path / "whole")
    assert len(whole.metrics) == 4
    rematch = pq.read_table(whole.folder / "pairs.parquet")["rematch_image"]
    assert (rematch.null_count < len(rematch)) == name.startswith("l2rm")
    with monkeypatch.context() as patch:
        stop_at(25, patch)
        with pytest.raises(Interrupted):
            go(tmp_path / "stopped")
    assert_same(go(tmp_path / "stopped"), whole)


def test_full_fine_tuning_learns_what_the_pictures_show(learned: Run, splits: dict[str, Pairs]) -> None:
    fresh = build_model(learned.config.model, learned.model.shape)
    assert evaluate(learned.model, splits["test"]).rsum > 350 > 150 > evaluate(fresh, splits["test"]).rsum


def test_a_pretrained_model_that_is_fine_tuned_on_mismatched_pairs_finds_them(
    base: Path, splits: dict[str, Pairs], tmp_path: Path
) -> None:
    config = config_of(base, lr=1e-3, warmup_epochs=1)
    run = train(splits["train"], splits["dev"], config, tmp_path / "run", progress=False)
    probability = run.match_probability(splits["train"])
    assert probability is not None
    assert measure_detection(probability, splits["train"].is_mismatched).auroc > 0.8


def test_a_stopped_full_run_goes_on(
    base: Path, splits: dict[str, Pairs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(base, "l2rm by folds", finetune="full", lr=1e-3, weight_decay=0.1)

    def go(out: Path) -> Run:
        return train(splits["train"], splits["dev"], config, out, resume=True, progress=False)

    whole = go(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(14, patch)
        with pytest.raises(Interrupted):
            go(tmp_path / "stopped")
    assert_same(go(tmp_path / "stopped"), whole)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_the_model_of_every_fold_starts_as_it_was_pretrained(
    finetune: str, base: Path, splits: dict[str, Pairs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = load_towers(str(base)).state_dict()
    starts: list[list[torch.Tensor]] = []

    def watched(model: Any, config: TrainConfig) -> Any:
        for name, value in model.towers.state_dict().items():
            if "lora_" in name:
                assert "lora_A" in name or not value.any()
            else:
                assert torch.equal(value, pretrained[name.replace(".base_layer", "")])
        starts.append([value.clone() for name, value in model.named_parameters() if "lora_A" in name])
        return make(model, config)

    make = fold_model.make_optimiser
    monkeypatch.setattr(fold_model, "make_optimiser", watched)
    config = config_of(base, finetune=finetune, lr=1e-3, rematching=FOLDS | {"fold_rounds": 2, "evidence": "auto"})
    train(splits["train"], splits["dev"], config, tmp_path / "run", progress=False)
    assert len(starts) == 5  # two rounds of two folds, and what finds out the evidence
    if finetune == "lora":
        assert not torch.equal(starts[0][0], starts[1][0])


def test_only_the_adapters_are_saved_and_the_base_must_stay_as_it_was(
    splits: dict[str, Pairs], tmp_path: Path, tiny_clip: ModuleType
) -> None:
    own = tiny_clip.save_model(tmp_path / "own", "clip")
    run = train(splits["train"], splits["dev"], config_of(own, "warmup"), tmp_path / "run", progress=False)
    weights = read_weights(run.folder / "model.safetensors")
    assert all("lora_" in name or name == "base_checksum" for name in weights)
    record = json.loads((run.folder / "config.json").read_text())
    assert record["config"]["model"]["encoder"] == str(own)
    other = tiny_clip.save_model(tmp_path / "other", "clip", seed=1)
    shutil.copyfile(other / "model.safetensors", own / "model.safetensors")
    with pytest.raises(InputError, match=f"encoder {own}: has changed"):
        load_run(run.folder)
    shutil.rmtree(own)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_run(run.folder)


def test_a_fully_fine_tuned_run_stands_alone(splits: dict[str, Pairs], tmp_path: Path, tiny_clip: ModuleType) -> None:
    own = tiny_clip.save_model(tmp_path / "own", "clip")
    config = config_of(own, "warmup", finetune="full")
    run = train(splits["train"], splits["dev"], config, tmp_path / "run", progress=False)
    expected = evaluate(run.model, splits["test"])
    shutil.rmtree(own)
    assert evaluate(load_run(run.folder).model, splits["test"]) == expected


def test_a_new_rate_rises_and_decays(base: Path, splits: dict[str, Pairs], tmp_path: Path, monkeypatch: Any) -> None:
    rates: list[float] = []
    original = trainer.set_learning_rate

    def noted(optimiser: torch.optim.Optimizer, *arguments: Any, **options: Any) -> None:
        original(optimiser, *arguments, **options)
        rates.append(optimiser.param_groups[0]["lr"])

    monkeypatch.setattr(trainer, "set_learning_rate", noted)
    schedule = {"lr": 0.01, "lr_rise_steps": 12, "warmup_epochs": 1, "rematching_epochs": 2, "decay_every": 1}
    train(splits["train"], splits["dev"], config_of(base, "warmup", **schedule), tmp_path / "run", progress=False)
    rising = 0.01 * np.arange(1, 13) / 12  # longer than an epoch, which has 9 steps
    assert np.allclose(rates, [*rising, *[0.01] * 6, *[0.001] * 9])


def test_what_cannot_be_fine_tuned_is_told(base: Path, splits: dict[str, Pairs], tmp_path: Path) -> None:
    config = config_of(base)
    nameless = dataclasses.replace(config, model=ModelConfig(similarity="clip"))
    with pytest.raises(InputError, match=r"model\.encoder: is not given"):
        train(splits["train"], splits["dev"], nameless, tmp_path / "run", progress=False)
    useless = dataclasses.replace(config, model=ModelConfig(similarity="cosine", encoder=str(base)))
    with pytest.raises(InputError, match=r"by model\.similarity clip only"):
        train(splits["train"], splits["dev"], useless, tmp_path / "run", progress=False)
    from l2rm.data.features import Features

    arrays = [
        dataclasses.replace(splits[name], features=Features(array=np.ones((splits[name].n_images, 4), np.float32)))
        for name in ("train", "dev")
    ]
    with pytest.raises(InputError, match="learns from pixels and words; give DATA of image files"):
        train(*arrays, config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_commands_use_the_run_like_any_other(
    base: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), *(["--quiet"] if arguments[0] != "search" else [])]) == 0, arguments
        return capsys.readouterr().out

    run, index = tmp_path / "run", tmp_path / "index"
    monkeypatch.chdir(base.parent)
    short = ["--batch-size=16", "--lr=0.01", "--device=cpu", "--rematching-epochs=1", "--rematching.folds=0"]
    short += ["--rematching.evidence=pair", "--rematching.scope=batch", "--rematching.one-mode=mixture"]
    options = ["--recipe", "clip", "--model.encoder", base.name, *short, "--ratio=0.4", "--level=image"]
    assert "next: l2rm evaluate" in said("train", table, "--out", run, *options)
    monkeypatch.chdir(tmp_path)  # the base was named from another folder
    assert "(clip)" in said("evaluate", run, "--data", table, "--json", tmp_path / "test.json")
    assert json.loads((tmp_path / "test.json").read_text())["images"] == 36
    assert "288 pairs" in said("audit", table, "--model", run, "--out", tmp_path / "audit")
    said("rematch", table, "--model", run, "--out", tmp_path / "repaired.csv", "--image-root", table.parent)
    assert "8 dimensions" in said("index", "--model", run, "--data", table, "--split", "test", "--out", index)
    assert "image:" in said("search", index, "a picture of red and blue")
    assert "caption:" in said("search", index, "--image", table.parent / "test0.png")
    shutil.rmtree(run)  # the index has a copy of the model
    said("index", "--out", index, "--add", table, "--split", "dev")
    assert "dev" in said("search", index, "a picture of red and blue", "-k", "72")
    assert main(["train", str(table), "--out", str(run), *options]) == 2
    assert "encoder clip: no such folder, and no name on the hub" in capsys.readouterr().err


def test_a_grid_compares_methods_that_fine_tune(
    base: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    grid = {
        "methods": ["plain", "warmup"],
        "similarities": ["mine"],
        "ratios": [0.4],
        "recipe": "clip",
        "config": {"batch_size": 24, "rematching_epochs": 1, "device": "cpu", "objective": "auto"},
        "method": {"plain": {"objective": "infonce"}},
        "similarity": {"mine": {"model": {"encoder": base.name, "lora_rank": 2}}},
    }
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    arguments = ["benchmark", str(tmp_path / "grid.json"), "--data", str(table), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--quiet"]) == 0
    assert main([*arguments, "--quiet"]) == 0  # nothing is left to do
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["method"], row["test"]["images"]) for row in rows] == [("plain", 36), ("warmup", 36)]
    assert all(row["rematch"] is not None for row in rows)
