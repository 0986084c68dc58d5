import errno
import json
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2rm.data.pairs import Pairs
from l2rm.data.tables import BadRows, read_table, write_table
from l2rm.errors import InputError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
AWKWARD = [
    "a, b",
    'say "hi"',
    "two\nlines",
    "two\r\nlines",
    "a\rb",
    "tab\there",
    " spaces ",
    "NA",
    "2020-01-01",
    "犬 🐶",
    "ˮ\u2028",
]


def read(path, *, skip=False):
    return read_table(path, BadRows(path, skip=skip))


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(captions=st.lists(TEXT, min_size=2, max_size=6))
def test_round_trip_of_any_text(tmp_path_factory, suffix, captions):
    path = tmp_path_factory.mktemp("table") / f"table{suffix}"
    columns = {"image": [f"{text}.png" for text in captions], "caption": captions}
    write_table(path, columns)
    assert read(path) == columns


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_of_pairs(tmp_path, suffix):
    rows = len(AWKWARD)
    names = [f"{n}, é.png" for n in range(rows - 1)]
    for name in names:
        (tmp_path / name).touch()
    pairs = Pairs(
        images=tuple(names),
        image_of=np.minimum(np.arange(rows), rows - 2),
        captions=tuple(AWKWARD),
        pair_ids=tuple(f"00{row}" for row in range(rows)),
        splits=("train", "dev") + ("test",) * (rows - 2),
        true_image_of=np.array([-1, 2, 1, *range(3, rows - 1), rows - 2]),
        image_root=tmp_path,
    )
    pairs.write(tmp_path / f"pairs{suffix}")
    back = Pairs.read(tmp_path / f"pairs{suffix}")
    for name in ("images", "captions", "pair_ids", "splits", "image_root"):
        assert getattr(back, name) == getattr(pairs, name)
    for name in ("image_of", "true_image_of", "is_mismatched"):
        np.testing.assert_array_equal(getattr(back, name), getattr(pairs, name))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, suffix):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    monkeypatch.setattr("csv.writer", full)
    monkeypatch.setattr("json.dumps", full)
    path = tmp_path / f"table{suffix}"
    path.write_text("old")
    with pytest.raises(OSError, match="No space"):
        write_table(path, {"image": ["a"], "caption": ["b"]})
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_cells_of_other_types_become_text(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"image": "a", "caption": "x", "pair_id": 7, "is_mismatched": true}\n\n{"image": "b", "caption": "y"}\n'
    )
    assert read(tmp_path / "t.jsonl") == {
        "image": ["a", "b"],
        "caption": ["x", "y"],
        "pair_id": ["7", ""],
        "is_mismatched": ["true", ""],
    }
    table = {"image": ["a", "b"], "caption": ["x", None], "pair_id": [1.5, float("nan")], "extra": [[1], [2]]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == {"image": ["a", "b"], "caption": ["x", ""], "pair_id": ["1.5", ""]}


def test_a_byte_order_mark_blank_lines_and_line_ends_are_no_content(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfimage,caption\r\na,x\r\n\r\nb,y\r\n")
    assert read(tmp_path / "t.csv") == {"image": ["a", "b"], "caption": ["x", "y"]}


BAD = [
    ("t.csv", b"image,caption\na,x\nb,y,z\nc,w\n", r":row 2: 3 fields under 2 columns"),
    ("t.tsv", b"image\tcaption\na\tx\nb\nc\tw\n", r":row 2: 1 fields under 2 columns"),
    ("t.csv", b'image,caption\na,x\nb,"y\nc,w\n', r":row 2: .*a quote that is not closed"),
    ("t.csv", b'image,caption\na,x\nb,"y"z\nc,w\n', r":row 2: "),
    ("t.csv", b"image,caption\na,x\nb,\xff\nc,w\n", r":line 3: not UTF-8"),
    ("t.jsonl", b'{"image": "a", "caption": "x"}\n{"image"\n', r":row 2: not a JSON object"),
    ("t.jsonl", b'{"image": "a", "caption": "x"}\n[1]\n', r":row 2: not a JSON object"),
    ("t.jsonl", b'{"image": "a", "caption": "x"}\n{"image": "a", "caption": ["x"]}\n', r":row 2: caption is a list"),
    ("t.csv", b"image,text\na,x\nb,y\n", r"no column 'caption' among its columns \(image, text\)"),
    ("t.jsonl", b'{"caption": "x"}\n{"caption": "y"}\n', r"no column 'image' among its columns \(caption\)"),
    ("t.csv", b"", r"no column 'image' among its columns \(none\)"),
    ("t.csv", b"image,caption,image\na,x,b\nc,y,d\n", r"two columns of one name"),
    ("t.csv", b"image,caption\na,x\n", r"1 row; a table needs at least two"),
    ("t.tsv", b"image\tcaption\n", r"0 rows; a table needs at least two"),
    ("t.parquet", b"PAR1 broken", r"cannot be read as Parquet"),
    ("t.xlsx", b"", r"\.xlsx is no table"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*{message}") as caught:
        read(tmp_path / name)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_parquet_without_the_columns_is_refused(tmp_path):
    pq.write_table(pa.table({"image": ["a", "b"], "text": ["x", "y"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"no column 'caption' among its columns \(image, text\)"):
        read(tmp_path / "t.parquet")


def test_unknown_suffix_is_not_written(tmp_path):
    with pytest.raises(InputError, match=r"no suffix is no table.*\.csv"):
        write_table(tmp_path / "table", {"image": ["a"]})
    assert not list(tmp_path.iterdir())


def test_skipped_rows_keep_the_others_numbers(tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"image": "a", "caption": "x"}\noops\n' + json.dumps({"image": "b", "caption": "y"})
    )
    bad = BadRows("t", skip=True)
    assert read_table(tmp_path / "t.jsonl", bad) == {"image": ["a", "", "b"], "caption": ["x", "", "y"]}
    assert bad.rest(3).tolist() == [0, 2]


def test_bad_rows_are_listed_and_then_counted(caplog):
    bad = BadRows("t.csv", skip=True)
    for row in range(30):
        bad.add(row, "the caption is empty", "write one")
        bad.add(row, "another reason", "anything")
    with caplog.at_level(logging.WARNING, logger="l2rm"):
        assert bad.rest(31).tolist() == [30]
    assert caplog.messages[0] == "t.csv:row 1: the caption is empty; left out"
    assert len(caplog.messages) == 21
    assert caplog.messages[-1] == "t.csv: 10 more rows left out"
    with pytest.raises(InputError, match="nothing is left"):
        bad.rest(30)
