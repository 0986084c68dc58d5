"""Features written as a folder are read back as the same pairs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.encoders.export import refuse_folder, write_features
from l2rm.errors import InputError

FILES = ("all_caps.txt", "all_ims.npy")


def made(image_of: list[int], *, regions: bool = False) -> Pairs:
    images = max(image_of) + 1
    values = np.arange(images * 6, dtype=np.float32)
    return Pairs(
        images=tuple(f"{n}.png" for n in range(images)),
        image_of=np.array(image_of),
        captions=tuple(f"caption\n {row}" for row in range(len(image_of))),
        features=Features(array=values.reshape((images, 2, 3) if regions else (images, 6))),
    )


def seen(pairs: Pairs) -> list[tuple[str, list[float]]]:
    """Caption and features of the given image, row by row."""
    assert pairs.features is not None
    batch = pairs.features.batch(pairs.image_of)
    return sorted((" ".join(text.split()), batch[row].flatten().tolist()) for row, text in enumerate(pairs.captions))


@pytest.mark.parametrize("image_of", [[0, 1, 2], [2, 0, 1, 1, 0, 2], [0, 0, 1, 0, 1, 1, 1]])
@pytest.mark.parametrize("regions", [False, True])
def test_a_precomp_folder_reads_back(tmp_path: Path, image_of: list[int], regions: bool) -> None:
    pairs = made(image_of, regions=regions)
    data = write_features(pairs, tmp_path / "f")
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [*FILES, "features.json", "pairs.csv"]
    assert seen(Pairs.read(data)) == seen(pairs)


def test_splits_stay_apart(tmp_path: Path) -> None:
    pairs = replace(made([0, 0, 1, 2]), splits=("train", "train", "dev", "train"))
    data = write_features(pairs, tmp_path / "f")
    assert seen(Pairs.read(data, split="dev")) == seen(pairs.take([2]))
    assert seen(Pairs.read(data, split="train")) == seen(pairs.take([0, 1, 3]))


@pytest.mark.parametrize("image_of", [[1, 0], [0, 0, 1, 0]])
def test_embeddings_read_back(tmp_path: Path, image_of: list[int]) -> None:
    vectors = Features(array=np.arange(4 * len(image_of), dtype=np.float32).reshape(-1, 4))
    pairs = replace(made(image_of), caption_features=vectors)
    read = Pairs.read(write_features(pairs, tmp_path / "f"))
    order = np.argsort(image_of, kind="stable")
    assert read.features is not None
    assert read.caption_features is not None
    assert pairs.features is not None
    np.testing.assert_array_equal(
        read.features.batch(read.image_of).numpy(), pairs.features.batch(pairs.image_of[order]).numpy()
    )
    np.testing.assert_array_equal(
        read.caption_features.batch(np.arange(len(order))).numpy(), vectors.batch(order).numpy()
    )


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    pairs = made([0, 1])
    write_features(pairs, tmp_path / "f")
    write_features(pairs, tmp_path / "f")  # features by new ones
    (tmp_path / "f" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds thesis\.tex"):
        write_features(pairs, tmp_path / "f")
    assert (tmp_path / "f" / "thesis.tex").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_features(pairs, tmp_path / "file")


@pytest.mark.parametrize("mark", [None, "{}", '{"files": 5}', '{"files": ["pairs.csv"]}'])
def test_features_of_another_hand_stay(tmp_path: Path, mark: str | None) -> None:
    folder = tmp_path / "f30k_precomp"
    folder.mkdir()
    for name in ("train_ims.npy", "train_caps.txt", "pairs.csv"):
        (folder / name).write_text("mine")
    if mark is not None:
        (folder / "features.json").write_text(mark)
    with pytest.raises(InputError, match=r"features\.json|holds train_caps\.txt") as refused:
        write_features(made([0, 1]), folder)
    assert "name a new" in str(refused.value)
    assert (folder / "train_ims.npy").read_text() == "mine"


def test_the_folder_of_the_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_features(made([0, 1]), tmp_path / "a" / "f")
    data = tmp_path / "a" / "f" / "pairs.csv"
    (tmp_path / "link").symlink_to(tmp_path / "a" / "f")
    for out in (tmp_path / "a" / "f", tmp_path / "a", tmp_path / "link"):
        for source in (str(data), str(data.parent), f"{data.parent / 'images.npy'},{tmp_path / 'captions.npy'}"):
            with pytest.raises(InputError, match="folder of the data itself"):
                refuse_folder(out, source)
    refuse_folder(tmp_path / "new", str(data))
    monkeypatch.chdir(data.parent)
    with pytest.raises(InputError, match="current folder"):
        refuse_folder(Path("."))


@pytest.mark.parametrize("split", ["../../escaped", "train/a", "a\\b", "a\0b", "", ".", ".."])
def test_a_split_is_no_path(tmp_path: Path, split: str) -> None:
    pairs = replace(made([0, 1]), splits=("train", split))
    with pytest.raises(InputError, match="cannot be the name of a file"):
        write_features(pairs, tmp_path / "a" / "f")
    assert list(tmp_path.iterdir()) == []
