"""Shards: read where they lie, the same as a table of the same pairs; hostile archives are refused."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from l2rm.auditing.near_duplicates import find_near_duplicates
from l2rm.auditing.pictures import thumbnail
from l2rm.cli import main
from l2rm.data.packed import Archive, PackedArray, file_state, open_file
from l2rm.data.pairs import Pairs
from l2rm.data.shards import find_shards, is_sharded
from l2rm.encoders.pixels import decode
from l2rm.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


def packed(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def as_npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def as_png(colour: tuple[int, int, int], size: int = 9) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def embedding_shards(folder: Path, images: np.ndarray, captions: np.ndarray, *, per_shard: int) -> Path:
    for number, start in enumerate(range(0, len(images), per_shard)):
        members = {}
        for row in range(start, min(start + per_shard, len(images))):
            members[f"{row:06d}.image.npy"] = as_npy(images[row])
            members[f"{row:06d}.caption.npy"] = as_npy(captions[row])
        packed(folder / f"{number:05d}.tar", members)
    return folder


def test_arrays_in_tar_files_are_read_where_they_lie(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images, captions = generator.normal(size=(2, 17, 8)).astype(np.float32)
    folder = embedding_shards(tmp_path / "shards", images, captions, per_shard=5)
    pairs = Pairs.read(folder)
    assert pairs.features is not None
    assert pairs.caption_features is not None
    assert pairs.features.shape == (17, 8)
    assert pairs.features.regions is None
    order = generator.permutation(17)
    assert np.array_equal(pairs.features.batch(order).numpy(), images[order])
    assert np.array_equal(pairs.caption_features.batch(order).numpy(), captions[order])
    assert np.array_equal(pairs.take(order[:6]).features.batch(np.arange(6)), images[np.sort(order[:6])])  # type: ignore[union-attr]
    assert pairs.pair_ids[5] == "00001/000005"


def test_it_is_what_webdataset_reads(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="the extra webdataset is not installed")
    generator = np.random.default_rng(1)
    with wds.ShardWriter(str(tmp_path / "%05d.tar"), maxcount=4, verbose=0) as writer:
        for row in range(11):
            vector = generator.normal(size=6).astype(np.float16)
            texts = {"txt": f"caption {row}", "json": {"split": "train"}}
            writer.write({"__key__": f"a/{row:04d}", "npy": vector, **texts})
    pairs = Pairs.read(tmp_path / "{00000..00002}.tar")
    theirs = list(wds.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False).decode())
    assert [one["txt"] for one in theirs] == list(pairs.captions)
    assert [one["__key__"] for one in theirs] == [one.split("/", 1)[1] for one in pairs.pair_ids]
    assert np.array_equal(np.stack([one["npy"] for one in theirs]), pairs.features.batch(np.arange(11)).numpy())  # type: ignore[union-attr]
    assert pairs.splits == ("train",) * 11


def test_pictures_in_tar_files_are_pictures_everywhere(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 0)]
    for number in (0, 1):
        members: dict[str, bytes] = {}
        for row in (2 * number, 2 * number + 1):
            members[f"{row}.png"] = as_png(colours[row])
            members[f"{row}.json"] = json.dumps({"caption": f"colour {row}", "is_mismatched": row == 1}).encode()
        packed(tmp_path / f"{number}.tar", members)
    pairs = Pairs.read(tmp_path / "*.tar")
    assert pairs.images == ("0.tar/0.png", "0.tar/1.png", "1.tar/2.png", "1.tar/3.png")
    assert pairs.captions[2] == "colour 2"
    assert pairs.is_mismatched is not None
    assert pairs.is_mismatched.tolist() == [False, True, False, False]
    paths = [pairs.image_path(image) for image in range(4)]
    assert [decode(path, 3)[0, 0].tolist() for path in paths if path] == [list(one) for one in colours]
    assert all(thumbnail(path) for path in paths)
    copies = find_near_duplicates(pairs)
    assert copies is not None
    assert copies.is_issue.tolist() == [True, False, False, True]
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "0.tar" / "nothing.png")
    assert file_state(tmp_path / "0.tar" / "0.png").st_size == len(as_png(colours[0]))


def test_members_may_begin_with_the_folder_they_were_packed_in(tmp_path: Path) -> None:
    packed(tmp_path / "0.tar", {"./a/0.png": as_png((0, 0, 255)), "./a/0.txt": b"blue"})
    pairs = Pairs.read(tmp_path / "0.tar")
    path = pairs.image_path(0)
    assert path is not None
    assert decode(path, 3)[0, 0].tolist() == [0, 0, 255]


def test_tables_made_of_pictures_in_shards_are_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (0, 1):
        members = {f"{row}.png": as_png((9 * row, number, 0)) for row in range(5)}
        packed(tmp_path / "sh" / f"{number}.tar", members | {f"{row}.txt": b"words %d" % row for row in range(5)})
    source, out = str(tmp_path / "sh" / "*.tar"), tmp_path / "noisy.csv"
    assert main(["corrupt", source, "--ratio", "0.4", "--level", "image", "--out", str(out)]) == 0
    assert f"--image-root {tmp_path / 'sh'}" in capsys.readouterr().out
    noisy = Pairs.read(out, image_root=tmp_path / "sh")
    assert sorted(noisy.images) == sorted(Pairs.read(source).images)
    assert noisy.is_mismatched is not None
    assert noisy.is_mismatched.sum() == 3  # of the eight of the train split
    out.write_text("image,caption\n0.tar/0.png,a\n0.tar/9.png,b\n2.tar/0.png,c\n0.tar,d\n1.tar/4.png,e\n")
    assert Pairs.read(out, image_root=tmp_path / "sh", skip_bad=True).captions == ("a", "d", "e")
    cut(tmp_path / "sh" / "1.tar")
    with pytest.raises(InputError, match=r"1\.tar: is cut off"):
        Pairs.read(out, image_root=tmp_path / "sh", skip_bad=True)


def test_training_on_shards_is_training_on_the_same_arrays(tmp_path: Path, tiny: list[str]) -> None:
    generator = np.random.default_rng(2)
    images = generator.normal(size=(60, 8)).astype(np.float32)
    captions = (images + 0.1 * generator.normal(size=images.shape)).astype(np.float32)
    shards = embedding_shards(tmp_path / "shards", images, captions, per_shard=13)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "captions.npy", captions)
    table = pa.table(
        {
            "image_embedding": pa.FixedSizeListArray.from_arrays(images.reshape(-1), 8),
            "caption_embedding": pa.array(captions.tolist(), pa.list_(pa.float32())),
        }
    )
    (tmp_path / "parquet").mkdir()
    pq.write_table(table.slice(0, 37), tmp_path / "parquet" / "a.parquet")
    pq.write_table(table.slice(37), tmp_path / "parquet" / "b.parquet")
    options = [*tiny, "--model.similarity=cosine", "--seed=3", "--device=cpu"]
    sources = {"arrays": f"{tmp_path / 'images.npy'},{tmp_path / 'captions.npy'}", "tar": str(shards)}
    sources["parquet"] = str(tmp_path / "parquet")
    weights = set()
    for name, source in sources.items():
        assert main(["train", source, "--out", str(tmp_path / name), *options]) == 0
        weights.add((tmp_path / name / "model.safetensors").read_bytes())
    assert len(weights) == 1


def test_what_is_left_out_of_a_tar_file_is_told(tmp_path: Path) -> None:
    vector = as_npy(np.ones(4, np.float32))
    for number in (0, 1):
        members = {f"{key}.npy": vector for key in "abc"} | {f"{key}.txt": b"words" for key in "abc"}
        packed(tmp_path / f"{number}.tar", members | {"d.npy": vector, "d.txt": b"\xff\xfe", "e.txt": b"words"})
    with pytest.raises(InputError, match=r"0\.tar:sample 4: d\.txt is not UTF-8.*--skip-bad"):
        Pairs.read(tmp_path)
    pairs = Pairs.read(tmp_path, skip_bad=True)
    assert pairs.pair_ids == ("0/a", "0/b", "0/c", "1/a", "1/b", "1/c")
    assert [(one.row, one.image, one.reason) for one in pairs.left_out[2:]] == [
        ("1/d", "1.tar/d.npy", "d.txt is not UTF-8"),
        ("1/e", "", "e has neither a picture nor KEY.image.npy"),
    ]
    np.save(tmp_path / "similarity.npy", np.eye(6, dtype=np.float32))
    command = ["audit", str(tmp_path), "--similarity", str(tmp_path / "similarity.npy"), "--skip-bad"]
    assert main([*command, "--out", str(tmp_path / "audit")]) == 0
    assert len((tmp_path / "audit" / "left_out.csv").read_text().splitlines()) == 5


OLD_PYARROW = pytest.mark.skipif(int(pa.__version__.split(".")[0]) < 26, reason="reads no missing list of fixed length")


@pytest.mark.parametrize("fixed", [pytest.param(True, marks=OLD_PYARROW), False])
def test_bad_rows_of_parquet_are_left_out_and_told(fixed: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    images, captions = generator.normal(size=(2, 12, 4)).astype(np.float32)
    rows, heard = [list(map(float, row)) for row in images], [list(map(float, row)) for row in captions]
    texts: list[str | None] = [f"words of {row}" for row in range(12)]
    texts[1], rows[2], heard[6], heard[8] = None, None, [1.0, None, 2.0, 3.0], [1.0, np.inf, 2.0, 3.0]  # type: ignore[call-overload, list-item]
    reasons = {1: "caption is NoneType", 2: "another length", 6: "empty entries", 8: "infinite"}
    if not fixed:
        rows[0] = [1.0]
        reasons[0] = "another length"
    kind = pa.list_(pa.float32(), 4) if fixed else pa.list_(pa.float32())
    table = pa.table(
        {"image_embedding": pa.array(rows, kind), "caption_embedding": pa.array(heard, kind), "caption": texts}
    )
    for number, start in enumerate((0, 5)):
        pq.write_table(table.slice(start, 5 + 2 * number), tmp_path / f"{number}.parquet", row_group_size=2)
    with pytest.raises(InputError, match=r"0\.parquet:row 2: caption is NoneType.*--skip-bad"):
        Pairs.read(tmp_path)
    good = [row for row in range(12) if row not in reasons]
    for _ in range(2):  # the second time from the cache
        pairs = Pairs.read(tmp_path, skip_bad=True)
        assert pairs.captions == tuple(f"words of {row}" for row in good)
        assert pairs.features is not None
        assert pairs.caption_features is not None
        np.testing.assert_array_equal(pairs.features.batch(np.arange(len(good))), images[good])
        np.testing.assert_array_equal(pairs.caption_features.batch(np.arange(len(good))), captions[good])
        assert len(pairs.left_out) == len(reasons)
        for one, row in zip(pairs.left_out, sorted(reasons), strict=True):
            assert one.row == (f"0.parquet:row {row + 1}" if row < 5 else f"1.parquet:row {row - 4}")
            assert reasons[row] in one.reason


def link(kind: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("0.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)

    return write


def named(name: str) -> Callable[[Path], None]:
    return lambda path: void(packed(path, {name: b"x", "0.txt": b"words"}))


def void(_: object) -> None:
    return None


def cut(path: Path) -> None:
    whole = packed(path, {"0.npy": as_npy(np.zeros(4000, np.float32)), "0.txt": b"words"}).read_bytes()
    path.write_bytes(whole[:9000])


def cut_between_members(path: Path) -> None:
    whole = packed(path, {"0.npy": as_npy(np.zeros(32, np.float32)), "0.txt": b"words", "1.txt": b"x"}).read_bytes()
    path.write_bytes(whole[: 512 + 512 + 512 + 512])


def damaged_header(path: Path) -> None:
    whole = bytearray(packed(path, {"0.npy": as_npy(np.zeros(4, np.float32)), "0.txt": b"words"}).read_bytes())
    whole[1024 + 5] ^= 0xFF
    path.write_bytes(bytes(whole))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "symbolic link": (link(tarfile.SYMTYPE), "is a link"),
    "hard link": (link(tarfile.LNKTYPE), "is a link"),
    "device": (link(tarfile.CHRTYPE), "is no plain file"),
    "pipe": (link(tarfile.FIFOTYPE), "is no plain file"),
    "parent folder": (named("../../0.jpg"), "leads out"),
    "inner parent folder": (named("a/../../../0.jpg"), "leads out"),
    "absolute": (named("/etc/0.jpg"), "leads out"),
    "objects": (
        lambda path: void(packed(path, {"0.npy": as_npy(np.array([{}, 1]), allow_pickle=True), "0.txt": b"words"})),
        "not numbers",
    ),
    "array that lies": (
        lambda path: void(packed(path, {"0.npy": as_npy(np.zeros(9, np.float32))[:-8], "0.txt": b"words"})),
        "bytes of data",
    ),
    "no array": (lambda path: void(packed(path, {"0.npy": b"\x93NUMPY rubbish", "0.txt": b"words"})), "cannot be read"),
    "cut off": (cut, "cut off"),
    "cut off between members": (cut_between_members, "cut off"),
    "damaged header": (damaged_header, "damaged"),
    "no tar": (lambda path: void(path.write_bytes(b"rubbish" * 300)), "uncompressed tar"),
    "empty": (lambda path: void(path.write_bytes(b"")), "uncompressed tar"),
    "no samples": (lambda path: void(packed(path, {"readme": b"hello"})), "holds no samples"),
    "no caption": (lambda path: void(packed(path, {"0.jpg": b"x", "0.json": b"{}"})), "has no caption"),
    "no picture": (lambda path: void(packed(path, {"0.txt": b"words"})), "neither a picture"),
    "no JSON": (lambda path: void(packed(path, {"0.jpg": b"x", "0.json": b"[" * 99999})), "no JSON object"),
    "no UTF-8": (lambda path: void(packed(path, {"0.jpg": b"x", "0.txt": b"\xff\xfe\xff"})), "not UTF-8"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, told = HOSTILE[kind]
    write(tmp_path / "0.tar")
    assert main(["audit", str(tmp_path / "0.tar"), "--out", str(tmp_path / "audit")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "0.tar" in error
    assert "Traceback" not in error
    assert not (tmp_path / "audit").exists()


def test_a_member_that_stands_there_twice(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for content in (b"one", b"two"):
            info = tarfile.TarInfo("0.txt")
            info.size = 3
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match="twice"):
        Archive.open(tmp_path / "0.tar")


@given(at=st.integers(0, 4095), value=st.integers(0, 255))
def test_a_damaged_byte_is_refused_or_harmless(at: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tar") / "0.tar"
    array = np.arange(6, dtype=np.float32)
    content = bytearray(packed(path, {"0.npy": as_npy(array), "0.txt": b"words", "1.npy": as_npy(array)}).read_bytes())
    content[at] = value
    path.write_bytes(bytes(content))
    try:
        archive = Archive.open(path)
        entries = [(archive, name) for name in archive.members if name.endswith(".npy")]
        if entries:
            assert PackedArray(entries)[:].shape[0] == len(entries)
    except InputError:
        pass


def test_which_sources_are_shards(tmp_path: Path) -> None:
    (tmp_path / "precomp").mkdir()
    np.save(tmp_path / "precomp" / "train_ims.npy", np.zeros((2, 2)))
    (tmp_path / "precomp" / "0.tar").write_bytes(b"")
    assert not is_sharded(tmp_path / "precomp")
    assert not is_sharded(tmp_path / "pairs.parquet")
    packed(tmp_path / "s" / "7.tar", {})
    packed(tmp_path / "s" / "8.tar", {})
    assert [one.name for one in find_shards(tmp_path / "s")] == ["7.tar", "8.tar"]
    assert find_shards(str(tmp_path / "s" / "{7..8}.tar")) == find_shards(tmp_path / "s" / "*.tar")
    with pytest.raises(InputError, match=r"9\.tar: no such shard"):
        find_shards(str(tmp_path / "s" / "{7..9}.tar"))
    (tmp_path / "s" / "9.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="several kinds"):
        find_shards(tmp_path / "s")
    with pytest.raises(InputError, match="no shards"):
        find_shards(tmp_path / "t")


@pytest.mark.parametrize("named", [True, False])
def test_images_that_parquet_does_not_name_are_counted(named: bool, tmp_path: Path) -> None:
    embeddings = pa.array(np.eye(4, dtype=np.float32).tolist(), pa.list_(pa.float32()))
    columns = {"image_embedding": embeddings, "caption_embedding": embeddings}
    pq.write_table(pa.table({"image": list("abcd"), **columns} if named else columns), tmp_path / "0.parquet")
    assert Pairs.read(tmp_path).named is named
