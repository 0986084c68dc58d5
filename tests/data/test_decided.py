"""Decisions: read from every form, applied as truth, refused where they do not fit the data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2rm.data.decided import Decision, apply_decisions, read_decisions
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.tables import write_table
from l2rm.errors import InputError

PAIRS = Pairs(
    images=("a", "b", "c", "d"),
    image_of=np.array([0, 0, 1, 2, 3]),
    captions=("one", "two", "three", "four", "five"),
    pair_ids=("p0", "p1", "p2", "p3", "p4"),
    source="shop.csv",
)


def about(row: int, verdict: str, **new: str) -> Decision:
    image, caption = PAIRS.images[PAIRS.image_of[row]], PAIRS.captions[row]
    return Decision(pair_id=f"p{row}", image=image, caption=caption, verdict=verdict, **new)  # type: ignore[arg-type]


def rows(pairs: Pairs) -> list[tuple[str, str, str]]:
    return [
        (pair_id, pairs.images[image], caption)
        for pair_id, image, caption in zip(pairs.pair_ids, pairs.image_of, pairs.captions, strict=True)
    ]


def test_kept_dropped_and_rematched_rows() -> None:
    decided = apply_decisions(
        PAIRS,
        [
            about(0, "keep"),
            about(1, "drop"),
            about(2, "rematch", new_image="d"),
            about(3, "rematch", new_caption="five"),
        ],
    )
    assert rows(decided.pairs) == [("p0", "a", "one"), ("p2", "d", "three"), ("p3", "c", "five"), ("p4", "d", "five")]
    assert decided.pairs.trusted.tolist() == [True, True, True, False]
    assert (decided.keep, decided.rematch, decided.drop, decided.elsewhere) == (1, 2, 1, 0)
    assert PAIRS.trusted is None  # the pairs given are as they were


def test_a_new_caption_brings_its_features() -> None:
    features = Features(array=np.arange(10, dtype=np.float32).reshape(5, 2), path=Path("captions.npy"))
    pairs = replace(PAIRS, caption_features=features)
    decided = apply_decisions(pairs, [about(3, "rematch", new_caption="one"), about(0, "drop")])
    assert decided.pairs.captions == ("two", "three", "one", "five")
    np.testing.assert_array_equal(
        decided.pairs.caption_features.batch(np.arange(4)).numpy(), [[2, 3], [4, 5], [0, 1], [8, 9]]
    )


def test_a_rematch_into_another_split_leaves() -> None:
    other = Pairs(images=("z",), image_of=np.array([0]), captions=("far",), pair_ids=("q",))
    decided = apply_decisions(PAIRS, [about(0, "rematch", new_image="z"), about(1, "keep")], others=[other])
    assert rows(decided.pairs)[0] == ("p1", "a", "two")
    assert (decided.rematch, decided.elsewhere) == (1, 1)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([replace(about(0, "keep"), pair_id="p9")], "pair 'p9' is not in shop.csv"),
        ([replace(about(0, "keep"), caption="other")], "pair 'p0' was decided with caption 'other', but has 'one'"),
        ([replace(about(0, "keep"), image="d")], "with image 'd', but has 'a'"),
        ([about(0, "keep"), about(0, "drop")], "pair 'p0' is decided twice"),
        ([about(0, "rematch", new_image="zz")], "pair 'p0' is rematched with image 'zz', which is not in shop.csv"),
        ([about(0, "rematch", new_caption="zz")], "with caption 'zz'"),
        ([about(row, "drop") for row in range(5)], "every pair of shop.csv is dropped"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(decisions: list[Decision], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        apply_decisions(PAIRS, decisions, source="decisions.csv")
    assert str(raised.value).startswith("decisions.csv: ")
    assert "\n" not in str(raised.value)


@given(st.data())
def test_rows_nobody_decided_about_are_untouched(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(range(5)), unique=True, max_size=4))
    verdicts = [data.draw(st.sampled_from(["keep", "drop", "image", "caption"])) for _ in chosen]
    new = {"image": {"new_image": "d"}, "caption": {"new_caption": "one"}}
    decisions = [
        about(row, "rematch" if verdict in new else verdict, **new.get(verdict, {}))
        for row, verdict in zip(chosen, verdicts, strict=True)
    ]
    decided = apply_decisions(PAIRS, decisions)
    expected = {pair_id: (image, caption) for pair_id, image, caption in rows(PAIRS)}
    for decision in decisions:  # the plain meaning, row by row
        if decision.verdict == "drop":
            del expected[decision.pair_id]
        else:
            image, caption = expected[decision.pair_id]
            expected[decision.pair_id] = (decision.new_image or image, decision.new_caption or caption)
    assert {pair_id: (image, caption) for pair_id, image, caption in rows(decided.pairs)} == expected
    trusted = {one.pair_id for one in decisions if one.verdict != "drop"}
    assert {one for one, sure in zip(decided.pairs.pair_ids, decided.pairs.trusted, strict=True) if sure} == trusted


def columns(**changed: list[str]) -> dict[str, list[str]]:
    whole = {
        "pair_id": ["p0", "p1", "p2"],
        "image": ["a", "a", "b"],
        "caption": ["one", "two,\n“three”", "four"],
        "decision": ["keep", "", "rematch"],
        "new_image": ["", "", "d"],
        "new_caption": ["", "", ""],
    }
    return {**whole, **changed}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_are_read_in_every_form(tmp_path: Path, suffix: str) -> None:
    write_table(tmp_path / f"decisions{suffix}", columns())
    found = read_decisions(tmp_path / f"decisions{suffix}")
    assert [(one.pair_id, one.verdict, one.new_image) for one in found] == [("p0", "keep", ""), ("p2", "rematch", "d")]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"decision": ["keep", "perhaps", "drop"]}, "row 2: decision 'perhaps'; write one of keep, rematch, drop"),
        ({"decision": ["rematch", "", "rematch"]}, "row 1: rematch without a new_image or new_caption"),
        ({"new_image": ["b", "", "d"]}, "row 1: keep with a new_image"),
    ],
)
def test_rows_without_sense_are_named(tmp_path: Path, changed: dict[str, list[str]], message: str) -> None:
    write_table(tmp_path / "decisions.csv", columns(**changed))
    with pytest.raises(InputError, match=message):
        read_decisions(tmp_path / "decisions.csv")


def test_what_is_no_table_of_decisions_is_refused(tmp_path: Path) -> None:
    without = {name: cells for name, cells in columns().items() if name != "new_image"}
    write_table(tmp_path / "audit.parquet", without)
    (tmp_path / "decisions.sqlite").write_bytes(b"no database at all")
    (tmp_path / "truncated.sqlite").write_bytes(b"SQLite format 3\0" + b"\0" * 50)
    for name, message in (
        ("audit.parquet", "no column 'new_image'.*no decisions"),
        ("decisions.sqlite", "cannot be read"),
        ("truncated.sqlite", "cannot be read|format 0"),
        ("missing.csv", "no such file"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            read_decisions(tmp_path / name)
        assert name in str(raised.value)
