import logging
import time

import numpy as np
import pytest

from l2rm.data.formats import read_pairs, read_splits
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError


def precomp(folder, split, images, captions, *, regions=2):
    rng = np.random.default_rng(len(split))
    array = rng.normal(size=(images, regions, 3)).astype(np.float32)
    np.save(folder / f"{split}_ims.npy", array)
    (folder / f"{split}_caps.txt").write_text("".join(f"caption {row}\n" for row in range(captions)))
    return array


def table(folder, text, *, images=("a.png", "b.png", "c.png"), name="pairs.csv"):
    for image in images:
        (folder / image).touch()
    (folder / name).write_text(text)
    return folder / name


def test_precomp(tmp_path):
    array = precomp(tmp_path, "train", 4, 12)
    pairs = read_pairs(tmp_path)
    assert pairs.images == ("train/0", "train/1", "train/2", "train/3")
    assert not pairs.named
    assert pairs.image_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert pairs.captions[11] == "caption 11"
    assert pairs.image_path(0) is None
    np.testing.assert_array_equal(pairs.features.batch(np.array([3])).numpy(), array[[3]])


def test_precomp_splits(tmp_path):
    for split, images in (("train", 6), ("val", 2), ("testall", 3)):
        precomp(tmp_path, split, images, 5 * images)
    np.save(tmp_path / "other_ims.npy", np.zeros((1, 2)))  # without captions it is no split
    assert {split: pairs.n_images for split, pairs in read_splits(tmp_path).items()} == {
        "train": 6,
        "dev": 2,
        "testall": 3,
    }
    assert read_pairs(tmp_path, split="dev").images == read_pairs(tmp_path, split="val").images == ("val/0", "val/1")
    assert Pairs.read(str(tmp_path), split="testall").n_images == 3
    with pytest.raises(InputError, match=r"no split 'test'; .*testall, train, dev"):
        read_pairs(tmp_path, split="test")
    with pytest.raises(InputError, match="holds the splits testall, train, dev; say which"):
        read_pairs(tmp_path)


def test_precomp_with_every_image_five_times(tmp_path):
    array = precomp(tmp_path, "dev", 4, 20)
    np.save(tmp_path / "dev_ims.npy", np.repeat(array, 5, axis=0))
    for _ in range(2):
        pairs = read_pairs(tmp_path)
        assert pairs.n_images == 4
        assert pairs.image_of.tolist() == np.repeat(np.arange(4), 5).tolist()
        np.testing.assert_array_equal(pairs.features.batch(np.arange(4)).numpy(), array)


def test_precomp_with_one_caption_an_image_is_not_taken_for_repeated(tmp_path):
    array = np.repeat(precomp(tmp_path, "dev", 4, 20), 5, axis=0)
    array[19] += 1
    np.save(tmp_path / "dev_ims.npy", array)
    assert read_pairs(tmp_path).n_images == 20


def cc(folder, lines, images=3):
    precomp(folder, "train", images, images)
    (folder / "train_caps.txt").unlink()
    (folder / "train_caps.tsv").write_text("".join(f"{line}\n" for line in lines))


def test_precomp_as_cc152k_has_it(tmp_path):
    cc(tmp_path, ["000123\ta dog", '77\t"he said ""no"""', '8\t"five" inches\tor so'])
    pairs = read_pairs(tmp_path)
    assert pairs.images == ("train/000123", "train/77", "train/8")
    assert pairs.named
    assert pairs.captions == ("a dog", 'he said "no"', '"five" inches\tor so')
    assert pairs.image_of.tolist() == [0, 1, 2]


def test_precomp_ids_of_images_with_several_captions(tmp_path):
    cc(tmp_path, ["a\tone", "a\ttwo", "b\tthree", "b\tfour"], images=2)
    assert read_pairs(tmp_path).images == ("train/a", "train/b")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\tone", "two", "c\tthree"], "train_caps.tsv:line 2: is no image id, a tab and a caption"),
        (["a\tone", "\ttwo", "c\tthree"], "train_caps.tsv:line 2: is no image id, a tab and a caption"),
        (["a\tone", "b\t ", "c\tthree"], "train_caps.tsv:line 2: the caption is empty"),
        (["a\tone", "b\ttwo", "a\tthree"], "train_caps.tsv:line 3: image id 'a' does not stand for one image alone"),
        (["a\tone", "b\ttwo"], "2 captions for 3 images"),
    ],
)
def test_bad_cc152k_lines_are_refused(tmp_path, lines, message, caplog):
    cc(tmp_path, lines)
    with pytest.raises(InputError) as error:
        read_pairs(tmp_path)
    assert message in str(error.value)
    if len(lines) == 3:
        assert len(read_pairs(tmp_path, skip_bad=True)) == 2


@pytest.mark.parametrize(
    ("ids", "kept", "images"),
    [("abcb", [0, 2], ("train/a", "train/c")), ("aaab", [0, 1, 3], ("train/a", "train/b")), ("axabbb", None, None)],
)
def test_only_rows_with_a_wrong_id_are_left_out(tmp_path, ids, kept, images, caplog):
    lines = [f"{name}\tcaption {row}" for row, name in enumerate(ids)]
    cc(tmp_path, lines, images=2)
    pairs = read_pairs(tmp_path, skip_bad=True)
    if kept is None:  # the second of the first image's three
        kept, images = [0, 2, 3, 4, 5], ("train/a", "train/b")
    assert pairs.captions == tuple(f"caption {row}" for row in kept)
    assert tuple(pairs.images[image] for image in sorted(set(pairs.image_of))) == images


def test_captions_in_both_forms_are_refused(tmp_path):
    precomp(tmp_path, "train", 2, 2)
    (tmp_path / "train_caps.tsv").write_text("a\tone\nb\ttwo\n")
    with pytest.raises(InputError, match=r"train_caps\.txt: and train_caps\.tsv stand side by side"):
        read_splits(tmp_path)


def test_precomp_lines_end_at_line_ends_only(tmp_path):
    precomp(tmp_path, "test", 1, 2)
    (tmp_path / "test_caps.txt").write_bytes("a\u2028b\x0c c\r\n犬".encode())
    assert read_pairs(tmp_path).captions == ("a\u2028b\x0c c", "犬")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (b"a\nb\nc\n", r"train_caps\.txt: 3 captions for 2 images in .*train_ims\.npy; "),
        (b"a\n", r"1 captions for 2 images"),
        (b"a\n\nb\nc\n", r"train_caps\.txt:line 2: the caption is empty; "),
        (b"a\nb\nc\n \n", r"train_caps\.txt:line 4: the caption is empty; "),
        (b"a\nb\xff\n", r"train_caps\.txt:line 2: not UTF-8; "),
    ],
)
def test_bad_precomp_captions_are_refused(tmp_path, captions, message):
    precomp(tmp_path, "train", 2, 4)
    (tmp_path / "train_caps.txt").write_bytes(captions)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path)


def test_precomp_skips_empty_captions(tmp_path, caplog):
    precomp(tmp_path, "train", 2, 4)
    (tmp_path / "train_caps.txt").write_text("a\n\nb\nc\n")
    with caplog.at_level(logging.WARNING, logger="l2rm"):
        pairs = read_pairs(tmp_path, skip_bad=True)
    assert (pairs.captions, pairs.image_of.tolist()) == (("a", "b", "c"), [0, 1, 1])
    assert "train_caps.txt:line 2: the caption is empty" in caplog.text


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no SPLIT_ims\.npy"):
        read_splits(tmp_path)


def test_table(tmp_path):
    path = table(tmp_path, "caption,image,more\na dog,b.png,1\na cat,a.png,2\na hound,b.png,3\n")
    pairs = read_pairs(path)
    assert pairs.images == ("b.png", "a.png")
    assert pairs.image_of.tolist() == [0, 1, 0]
    assert pairs.captions == ("a dog", "a cat", "a hound")
    assert pairs.pair_ids == ("0", "1", "2")
    assert (pairs.splits, pairs.true_image_of, pairs.features) == (None, None, None)
    assert pairs.image_path(1) == tmp_path / "a.png"


def test_table_with_an_image_root(tmp_path):
    (tmp_path / "images").mkdir()
    table(tmp_path / "images", "")
    path = table(tmp_path, "image,caption\na.png,x\nb.png,y\n", images=())
    with pytest.raises(InputError, match=r"pairs\.csv:row 1: no image file .*a\.png; .*image root"):
        read_pairs(path)
    assert read_pairs(path, image_root=tmp_path / "images").image_path(0) == tmp_path / "images" / "a.png"


def test_table_splits(tmp_path):
    path = table(tmp_path, "image,caption,split\na.png,x,train\nb.png,y,val\nc.png,z,train\n")
    splits = read_splits(path)
    assert {split: pairs.captions for split, pairs in splits.items()} == {"train": ("x", "z"), "dev": ("y",)}
    assert splits["dev"].images == read_pairs(path, split="valid").images == ("b.png",)
    with pytest.raises(InputError, match=r"no split 'test'; .*train, dev"):
        read_pairs(path, split="test")


def test_table_without_splits_is_split_by_images(tmp_path):
    names = [f"{n}.png" for n in range(40)]
    path = table(tmp_path, "image,caption\n" + "".join(f"{n},x\n{n},y\n" for n in names), images=names)
    splits = read_splits(path, seed=1)
    assert {split: (pairs.n_images, len(pairs)) for split, pairs in splits.items()} == {
        "train": (36, 72),
        "dev": (2, 4),
        "test": (2, 4),
    }
    assert splits["dev"].images == read_splits(path, seed=1)["dev"].images != read_splits(path, seed=2)["dev"].images
    with pytest.raises(InputError, match="has no splits"):
        read_pairs(path, split="dev")


def test_truth(tmp_path):
    text = "image,caption,is_mismatched,true_image\na.png,x,false,a.png\nb.png,y,True,a.png\nb.png,z,1,gone.png\n"
    pairs = read_pairs(table(tmp_path, text))
    assert pairs.true_image_of.tolist() == [0, 0, -1]
    assert pairs.is_mismatched.tolist() == [False, True, True]
    pairs = read_pairs(table(tmp_path, "image,caption,is_mismatched\na.png,x,0\nb.png,y,true\n"))
    assert pairs.true_image_of.tolist() == [0, -1]
    pairs = read_pairs(table(tmp_path, "image,caption,true_image\na.png,x,b.png\nb.png,y,\n"))
    assert pairs.true_image_of.tolist() == [1, -1]


BAD_ROWS = [
    ("image,caption\na.png,x\nb.png, \nc.png,z\n", "row 2: the caption is empty; "),
    ("image,caption\na.png,x\n,y\nc.png,z\n", "row 2: the image is empty; "),
    ("image,caption\na.png,x\ngone.png,y\nc.png,z\n", "row 2: no image file .*gone.png; "),
    ("image,caption\na.png,x\n.,y\nc.png,z\n", "row 2: no image file "),
    ("image,caption\na.png,x\nb.png\nc.png,z\n", "row 2: 1 fields under 2 columns; "),
    ("image,caption,pair_id\na.png,x,7\nb.png,y,7\nc.png,z,8\n", "row 2: pair_id '7' is row 1's already; "),
    ("image,caption,pair_id\na.png,x,7\nb.png,y,\nc.png,z,8\n", "row 2: the pair_id is empty; "),
    ("image,caption,split\na.png,x,train\nb.png,y,\nc.png,z,dev\n", "row 2: the split is empty; "),
    ("image,caption,is_mismatched\na.png,x,0\nb.png,y,maybe\nc.png,z,1\n", "row 2: is_mismatched is 'maybe'; "),
    (
        "image,caption,is_mismatched,true_image\na.png,x,0,a.png\nb.png,y,0,a.png\nc.png,z,1,a.png\n",
        "row 2: is_mismatched is 0, but true_image says otherwise; ",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD_ROWS)
def test_bad_rows_are_refused_or_left_out(tmp_path, caplog, text, message):
    path = table(tmp_path, text)
    with pytest.raises(InputError, match=rf"pairs\.csv:{message}"):
        read_pairs(path)
    with caplog.at_level(logging.WARNING, logger="l2rm"):
        pairs = read_pairs(path, skip_bad=True)
    assert (pairs.captions, pairs.images) == (("x", "z"), ("a.png", "c.png"))
    assert pairs.pair_ids in (("0", "2"), ("7", "8"))
    assert [record.message.count("pairs.csv:row 2: ") for record in caplog.records] == [1]


def test_a_table_of_bad_rows_only_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing is left"):
        read_pairs(table(tmp_path, "image,caption\na.png,\nb.png,\n"), skip_bad=True)


def test_a_missing_source_is_refused(tmp_path):
    for name in ("gone.csv", "gone", "gone.parquet"):
        with pytest.raises(InputError, match=f"{name}: no such file or folder"):
            read_pairs(tmp_path / name)
    with pytest.raises(InputError, match=r"gone\.npy: no such file"):
        read_pairs(f"{tmp_path}/gone.npy,{tmp_path}/gone.npy")


def test_large_tables_read_fast(tmp_path):
    rows = 30_000
    path = table(tmp_path, "image,caption\n" + "".join(f"{'abc'[n % 3]}.png,caption {n}\n" for n in range(rows)))
    start = time.process_time()
    assert len(read_pairs(path)) == rows
    assert time.process_time() - start < 2


def test_embeddings(tmp_path):
    rng = np.random.default_rng(0)
    images, captions = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(6, 5)).astype(np.float16)
    np.save(tmp_path / "i.npy", images)
    np.save(tmp_path / "c.npy", captions)
    source = f"{tmp_path}/i.npy,{tmp_path}/c.npy"
    pairs = read_pairs(source)
    assert pairs.image_of.tolist() == [0, 0, 1, 1, 2, 2]
    assert pairs.captions[5] == "caption 5"
    np.testing.assert_array_equal(pairs.features.batch(np.arange(3)).numpy(), images)
    part = pairs.take([4])
    np.testing.assert_array_equal(part.caption_features.batch(np.arange(1)).numpy(), captions[4:5].astype(np.float32))
    np.testing.assert_array_equal(part.features.batch(np.arange(1)).numpy(), images[2:])
    assert {split: len(pairs) for split, pairs in read_splits(source).items()} == {"train": 2, "dev": 2, "test": 2}


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        ((3, 4), (7, 4), r"c\.npy: 7 captions for 3 images in .*i\.npy; "),
        ((3, 2, 4), (6, 4), r"i\.npy: shape \(3, 2, 4\); "),
        ((3, 4), (6,), r"c\.npy: shape \(6,\); "),
    ],
)
def test_bad_embeddings_are_refused(tmp_path, images, captions, message):
    np.save(tmp_path / "i.npy", np.zeros(images, dtype=np.float32))
    np.save(tmp_path / "c.npy", np.zeros(captions, dtype=np.float32))
    with pytest.raises(InputError, match=message):
        read_pairs(f"{tmp_path}/i.npy,{tmp_path}/c.npy")


def test_an_image_root_means_nothing_without_image_files(tmp_path):
    precomp(tmp_path, "train", 2, 4)
    with pytest.raises(InputError, match="leave it out"):
        read_pairs(tmp_path, image_root=tmp_path)
