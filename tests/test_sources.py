"""From DATA to pairs with features: splits and mismatches."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.sources import (
    DataConfig,
    EncoderConfig,
    Injection,
    absolute,
    corrupt,
    measured_mismatch,
    open_rows,
    open_split,
    open_splits,
    open_training,
    with_features,
)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("L2RM_CACHE", str(tmp_path / "cache"))


def write_table(folder: Path, *, splits: bool, images: int = 30) -> Path:
    """A table with two captions an image, whose image files hold nothing."""
    folder.mkdir(exist_ok=True)
    rows = []
    for image in range(images):
        (folder / f"{image}.png").touch()
        split = "train" if image < images - 10 else "dev" if image < images - 5 else "test"
        rows += [[f"{image}.png", f"caption {n} of {image}", *([split] if splits else [])] for n in range(2)]
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption", *(["split"] if splits else [])], *rows])
    return path


def write_embeddings(folder: Path, *, images: int = 40) -> str:
    generator = np.random.default_rng(0)
    names = (folder / "images.npy", folder / "captions.npy")
    for path, rows in zip(names, (images, 2 * images), strict=True):
        np.save(path, generator.normal(size=(rows, 6)).astype(np.float32))
    return ",".join(map(str, names))


def own_image(pairs: Pairs) -> list[str]:
    """The image that each caption names."""
    return [f"{caption.split()[-1]}.png" for caption in pairs.captions]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("level", ["image", "caption"])
def test_corrupted_table_says_the_truth_and_keeps_every_split(
    tmp_path: Path, suffix: str, splits: bool, level: str
) -> None:
    data = DataConfig(source=str(write_table(tmp_path / "t", splits=splits)), seed=3)
    before = open_splits(data.source, seed=3)
    out = tmp_path / "t" / f"noisy{suffix}"
    noisy = corrupt(data, ratio=0.4, level=level, seed=3, split="train", out=out)  # type: ignore[arg-type]
    after = open_splits(out, seed=99)  # the split column counts now, not the seed
    assert {name: part.captions for name, part in after.items()} == {n: part.captions for n, part in before.items()}
    train = after["train"]
    truth = np.array(own_image(train)) != np.array([train.images[image] for image in train.image_of])
    assert (train.is_mismatched == truth).all()
    size = train.n_images if level == "image" else len(train)
    assert truth.sum() == round(0.4 * size) * (2 if level == "image" else 1) == noisy.is_mismatched.sum()
    assert measured_mismatch(train) == (level, round(0.4 * size) / size)
    for name in ("dev", "test"):
        assert [after[name].images[image] for image in after[name].image_of] == own_image(after[name])
        assert not after[name].is_mismatched.any()


def test_index_of_a_folder_counts_the_captions_of_its_split(tmp_path: Path, make_precomp: Callable[..., Path]) -> None:
    folder, out = make_precomp(tmp_path / "p"), tmp_path / "index.npy"
    corrupt(DataConfig(source=str(folder)), ratio=0.4, level="image", seed=0, split="train", out=out)
    index = np.load(out)
    assert (index.shape, index.dtype) == ((80,), np.int64)
    own = np.repeat(np.arange(40), 2)
    assert (index != own).sum() == 32
    assert (index[::2] == index[1::2]).all()
    found = open_training(DataConfig(source=str(folder), mismatch=out))
    assert (found.train.image_of == index).all()
    assert (found.level, found.ratio) == ("image", 0.4)
    assert found.sizes == {"train": (40, 80), "dev": (10, 20), "test": (10, 20)}
    assert not (found.dev.is_mismatched if found.dev.is_mismatched is not None else np.zeros(1)).any()
    assert found.facts["mismatch"] == {"index": str(out), "level": "image", "ratio": 0.4}
    assert found.facts["encoder"] is None


def test_index_of_data_without_splits_counts_all_captions_and_belongs_to_a_seed(tmp_path: Path) -> None:
    source, out = write_embeddings(tmp_path), tmp_path / "index.npy"
    noisy = corrupt(DataConfig(source=source, seed=5), ratio=0.5, level="caption", seed=5, split="train", out=out)
    index = np.load(out)
    assert len(index) == 80
    assert (
        (index != np.repeat(np.arange(40), 2)).sum() == 36 == noisy.is_mismatched.sum()
    )  # half of 36 images' captions
    found = open_training(DataConfig(source=source, seed=5, mismatch=out))
    assert found.train.captions == noisy.pairs.captions
    assert (found.train.image_of == noisy.pairs.image_of).all()
    assert (found.train.is_mismatched == noisy.is_mismatched).all()
    assert (found.level, found.ratio) == ("caption", 0.5)
    everything = open_rows(DataConfig(source=source, mismatch=out))
    assert len(everything) == 80
    assert everything.is_mismatched is not None
    assert everything.is_mismatched.sum() == 36
    with pytest.raises(InputError, match=r"outside the train split.*--seed"):
        open_training(DataConfig(source=source, seed=6, mismatch=out))


def test_a_split_not_to_be_mismatched_stays_as_it_was_mismatched(tmp_path: Path) -> None:
    source = str(write_table(tmp_path / "t", splits=True))
    first, second = tmp_path / "t" / "first.csv", tmp_path / "t" / "second.csv"
    corrupt(DataConfig(source=source), ratio=0.4, level="image", seed=0, split="dev", out=first)
    dev = open_split(DataConfig(source=str(first)), "dev")
    corrupt(DataConfig(source=str(first)), ratio=0.5, level="image", seed=0, split="train", out=second)
    after = open_split(DataConfig(source=str(second)), "val")  # another name of dev
    assert dev.is_mismatched is not None
    assert after.is_mismatched is not None
    assert dev.is_mismatched.sum() == 4
    assert (after.is_mismatched == dev.is_mismatched).all()


@pytest.mark.parametrize(
    ("out", "message"),
    [("pairs.csv", "is part of the data itself"), ("noisy.txt", ".txt is nothing to write"), ("noisy", "no suffix")],
)
@pytest.mark.parametrize("folder", ["t", "a,b"])
def test_corrupt_refuses_to_write_there(tmp_path: Path, folder: str, out: str, message: str) -> None:
    source = write_table(tmp_path / folder, splits=True)
    before = source.read_bytes()
    with pytest.raises(InputError, match=message):
        corrupt(
            DataConfig(source=str(source)), ratio=0.4, level="image", seed=0, split="train", out=source.parent / out
        )
    assert source.read_bytes() == before


def test_corrupt_refuses_tables_of_features_and_overwriting_them(
    tmp_path: Path, make_precomp: Callable[..., Path]
) -> None:
    folder, embeddings = make_precomp(tmp_path / "p"), write_embeddings(tmp_path)
    for source in (str(folder), embeddings):
        with pytest.raises(InputError, match=r"use \.npy"):
            corrupt(DataConfig(source=source), ratio=0.4, level="image", seed=0, split="train", out=tmp_path / "x.csv")
    for source, out in ((str(folder), folder / "train_ims.npy"), (embeddings, tmp_path / "images.npy")):
        with pytest.raises(InputError, match="part of the data itself"):
            corrupt(DataConfig(source=source), ratio=0.4, level="image", seed=0, split="train", out=out)


@pytest.mark.parametrize("level", ["image", "caption"])
def test_an_injection_is_what_corrupt_writes(tmp_path: Path, level: str, make_precomp: Callable[..., Path]) -> None:
    draw = Injection(ratio=0.3, level=level, seed=5)  # type: ignore[arg-type]
    for source in (make_precomp(tmp_path / "folder"), write_embeddings(tmp_path)):  # with splits and without
        data, index = DataConfig(source=str(source), seed=5), tmp_path / "index.npy"
        corrupt(data, ratio=0.3, level=level, seed=5, split="train", out=index)  # type: ignore[arg-type]
        drawn, read = (open_training(replace(data, **how)) for how in ({"injection": draw}, {"mismatch": index}))
        assert drawn.train.image_of.tolist() == read.train.image_of.tolist()
        assert (drawn.level, drawn.ratio) == (read.level, read.ratio) == (level, pytest.approx(0.3, abs=0.02))
        assert drawn.facts["injection"] == {"ratio": 0.3, "level": level, "seed": 5}
        assert read.facts["injection"] is None


def test_splits_that_training_needs(tmp_path: Path, make_precomp: Callable[..., Path]) -> None:
    folder = make_precomp(tmp_path / "p")
    (folder / "dev_ims.npy").unlink()
    with pytest.raises(InputError, match=r"no split 'dev' among test, train; add dev_ims.npy and dev_caps.txt"):
        open_training(DataConfig(source=str(folder)))
    table = write_table(tmp_path / "t", splits=True)
    table.write_text(table.read_text().replace(",dev", ",train"))
    with pytest.raises(InputError, match="no split 'dev' among train, test; add rows whose split is dev"):
        open_training(DataConfig(source=str(table)))
    with pytest.raises(InputError, match="no split 'dev'; take one that it has: train, test"):
        open_split(DataConfig(source=str(table)), "dev")


def test_a_comma_in_a_path_is_no_second_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a,b/pairs.csv") == str(tmp_path / "a,b" / "pairs.csv")
    assert absolute("i.npy,c.npy") == f"{tmp_path / 'i.npy'},{tmp_path / 'c.npy'}"


def test_rows_to_audit(tmp_path: Path, make_precomp: Callable[..., Path]) -> None:
    folder = make_precomp(tmp_path / "p")
    assert len(open_rows(DataConfig(source=str(folder)))) == 80
    assert len(open_rows(DataConfig(source=str(folder)), "dev")) == 20
    for splits in (True, False):
        table = DataConfig(source=str(write_table(tmp_path / f"t{splits}", splits=splits)))
        assert len(open_rows(table)) == 60
        assert len(open_rows(table, "train")) == (40 if splits else 52)


def test_features_that_are_there_are_kept_and_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from l2rm.encoders import image

    asked = {}

    def encode(pairs: Pairs, **options: object) -> Pairs:
        asked.update(options)
        return replace(pairs, features=Features(array=np.ones((1, 4), dtype=np.float32)))

    monkeypatch.setattr(image, "encode", encode)
    bare = Pairs(images=("a",), image_of=np.zeros(1, dtype=np.int64), captions=("text",))
    made = with_features(bare, EncoderConfig(name="mine", grid=2), skip_bad=True, progress=False)
    assert made.features is not None
    assert asked == {"encoder": "mine", "grid": 2, "skip_bad": True, "progress": False, "device": "cpu"}
    asked.clear()
    assert with_features(made, EncoderConfig()) is made
    assert not asked
