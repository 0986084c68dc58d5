"""What a run remembers of its data."""

from dataclasses import replace
from pathlib import Path

import pytest

from l2rm.earlier import data_for, refuse_other_encoder, saved_run
from l2rm.errors import InputError
from l2rm.sources import DataConfig, EncoderConfig, open_split
from test_sources import write_embeddings, write_table


def write_run(folder: Path, *, seed: int = 0, grid: int | None = None, **record: object) -> Path:
    """The `config.json` of a run."""
    from l2rm.similarity.settings import DataShape
    from l2rm.training.run import write_record
    from l2rm.training.settings import TrainConfig

    facts = {
        "source": str(folder.parent / "t" / "pairs.csv"),
        "image_root": "/images",
        "seed": seed,
        "skip_bad": True,
        "mismatch": {"index": "/index.npy", "level": "image", "ratio": 0.4},
        "encoder": None if grid is None else {"name": "efficientnet-lite0", "grid": grid},
    }
    config = TrainConfig(method="plain", objective="infonce", seed=seed)
    write_record(folder, config, DataShape(image_dim=4, regions=1), **{"data": facts, **record})
    return folder


def test_a_run_to_be_resumed_brings_its_settings(tmp_path: Path) -> None:
    config, data = saved_run(write_run(tmp_path / "run", seed=2, grid=3))
    assert (config.method, config.objective, config.seed) == ("plain", "infonce", 2)
    assert (data.mismatch, data.image_root, data.skip_bad) == (Path("/index.npy"), Path("/images"), True)
    assert data.encoder == EncoderConfig(grid=3)
    tried, _ = saved_run(write_run(tmp_path / "tried", candidates={"infonce": 200.0}))
    assert tried.objective == "auto"
    config, data = saved_run(write_run(tmp_path / "python", data=None))
    assert data.encoder == EncoderConfig()


def test_a_run_is_resumed_with_its_encoder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", grid=3)
    refuse_other_encoder(run, {"encoder": {"name": "efficientnet-lite0", "grid": 3}})
    refuse_other_encoder(tmp_path / "none", {"encoder": None})
    with pytest.raises(InputError, match=r"encoder was .*resume a run as it was started"):
        refuse_other_encoder(run, {"encoder": {"name": "efficientnet-lite0", "grid": 6}})


def test_data_are_read_as_the_runs_read_theirs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{seed}", seed=seed, grid=3) for seed in (1, 2)]
    other = write_run(tmp_path / "other", seed=1, grid=4)
    drawn = DataConfig(source=str(write_table(tmp_path / "t", splits=False)), skip_bad=True)
    same = data_for(runs[:1], drawn)
    assert (same.seed, same.encoder.grid, same.image_root) == (1, 3, Path("/images"))
    elsewhere = replace(drawn, source=str(tmp_path / "other.csv"))
    assert data_for(runs[:1], elsewhere).image_root is None
    assert data_for(runs[:1], replace(drawn, image_root=tmp_path)).image_root == tmp_path
    with pytest.raises(InputError, match="drew different ones by their seeds"):
        open_split(data_for(runs, replace(drawn, image_root=tmp_path / "t")), "test")
    given = DataConfig(source=str(write_table(tmp_path / "g", splits=True)))
    assert len(open_split(data_for(runs, given), "test")) == 10  # with splits of their own, seeds do not matter
    with pytest.raises(InputError, match="one by one, or give DATA with features"):
        data_for([runs[0], other], given)
    assert data_for([runs[0], other], DataConfig(source=write_embeddings(tmp_path))).seed == 1
