"""Rematching a data set: partners, confidences, decisions, capacities, and files that are read back."""

import csv
import io
import json
import re
import shlex
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

import l2rm
from l2rm.auditing.rematch import Rematched, rematch_scores
from l2rm.auditing.rematch_files import write_filter, write_rematched
from l2rm.cli import parse_command
from l2rm.data.mismatch import inject_mismatches, read_index
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.scores import MatrixScores
from l2rm.rematching.candidates import EmbeddingScores
from l2rm.rematching.control import Control
from l2rm.rematching.together import Units, UnitScores


def world(
    noise: float, *, images: int = 150, captions: int = 2, level: Any = "image", seed: int = 0
) -> tuple[Pairs, EmbeddingScores]:
    """Images at random, captions near them, 40 % mismatched; the smaller the noise, the clearer."""
    rng = np.random.default_rng(seed)
    towers = rng.normal(size=(images, 16))
    true = np.repeat(np.arange(images), captions)
    heard = towers[true] + noise * rng.normal(size=(len(true), 16))
    pairs = Pairs(
        images=tuple(f"photos/{image}.jpg" for image in range(images)),
        image_of=true,
        captions=tuple(f"caption {row}, of {image}" for row, image in enumerate(true)),
        splits=("train",) * len(true),
        source="photos.csv",
    )
    return inject_mismatches(pairs, ratio=0.4, level=level, seed=seed).pairs, EmbeddingScores(towers, heard)


def repair(pairs: Pairs, scores: EmbeddingScores, **options: Any) -> Rematched:
    probability = np.where(pairs.is_mismatched, 0.05, 0.95)
    return rematch_scores(scores, pairs, progress=False, **({"match_probability": probability} | options))


@pytest.mark.parametrize("level", ["image", "caption"])
def test_clear_mismatches_are_repaired(level: Any) -> None:
    pairs, scores = world(0.4, level=level)
    found = repair(pairs, scores)
    assert found.rematch_hits is not None
    assert found.rematch_hits.hit1 > 0.95
    assert found.partners.share > 0.9
    assert found.counts["keep"] == int((~pairs.is_mismatched).sum())
    assert found.counts["rematch"] > 0.9 * pairs.is_mismatched.sum()
    assert found.pairs.is_mismatched.mean() < 0.05
    assert set(found.decision[pairs.is_mismatched]) <= {"rematch", "drop"}
    assert (found.image_of[found.decision == "rematch"] != pairs.image_of[found.decision == "rematch"]).all()


def test_without_probabilities_the_audit_says_what_is_mismatched() -> None:
    pairs, scores = world(0.4)
    found = rematch_scores(scores, pairs, progress=False)
    audited = l2rm.audit_scores(scores, pairs, progress=False)
    assert np.array_equal(found.match_probability, audited.match_probability)
    assert found.rematch_hits is not None
    assert found.rematch_hits.hit1 > 0.8


def test_confidence_ranks_and_does_not_promise_too_much() -> None:
    for noise in (1.2, 2.0):
        for share in (None, 1.0):
            confidence, right = [], []
            for seed in range(3):
                pairs, scores = world(noise, images=400, captions=1, seed=seed)
                found = repair(pairs, scores, share=share)
                rows = np.flatnonzero(pairs.is_mismatched)
                confidence.append(found.partners.confidence[rows])
                right.append(found.partners.suggested[rows, 0] == pairs.true_image_of[rows])
            chance, hit = np.concatenate(confidence), np.concatenate(right)
            assert 0.1 < hit.mean() < 0.9  # neither clear nor hopeless
            quarters = np.array_split(np.argsort(-chance), 4)
            assert hit[quarters[0]].mean() > 2 * hit[quarters[-1]].mean()
            for quarter in quarters:
                assert chance[quarter].mean() < hit[quarter].mean() + 0.05
                if share:
                    assert chance[quarter].mean() > hit[quarter].mean() - 0.3


def test_captions_without_a_partner_are_moved_less() -> None:
    pairs, scores = world(0.4, captions=1)
    gone = np.flatnonzero(pairs.is_mismatched)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(len(pairs), 16))  # captions of something that no image shows
    strange = scores.block(np.arange(pairs.n_images), np.arange(len(pairs))).numpy().copy()
    towers = np.random.default_rng(0).normal(size=(pairs.n_images, 16))
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (towers, vectors)]
    strange[:, gone] = (unit[0] @ unit[1].T)[:, gone]
    with_partner, without = repair(pairs, scores), repair(pairs, MatrixScores(strange))
    assert without.partners.share < 0.6 < 0.9 < with_partner.partners.share
    assert without.partners.confidence[gone].mean() < 0.5 * with_partner.partners.confidence[gone].mean()


def test_images_take_no_more_than_they_have_room_for() -> None:
    pairs, scores = world(2.0)
    probability = np.random.default_rng(0).random(len(pairs))
    for capacity in (None, 1, 3):
        found = repair(pairs, scores, match_probability=probability, capacity=capacity, share=1.0)
        held = np.bincount(pairs.image_of, probability, pairs.n_images)
        full = np.bincount(pairs.image_of, minlength=pairs.n_images) if capacity is None else capacity
        assert found.partners.plan is not None
        assert found.partners.plan.converged
        assert (found.partners.plan.column_mass <= np.maximum(full - held, 0) + 1e-4).all()
        assert (found.partners.plan.row_mass <= 1 - probability[probability < 0.5] + 1e-9).all()


def test_rematched_together_is_rematched_better() -> None:
    pairs, scores = world(2.5, captions=4)
    single, together = repair(pairs, scores), repair(pairs, scores, level="image")
    assert single.rematch_hits is not None
    assert together.rematch_hits is not None
    assert together.rematch_hits.hit1 > single.rematch_hits.hit1 + 0.1
    for image in np.unique(pairs.image_of[pairs.is_mismatched]):
        rows = np.flatnonzero(pairs.image_of == image)
        assert len(np.unique(together.partners.suggested[rows, 0])) == 1
        assert len(np.unique(together.partners.confidence[rows])) == 1


def test_unit_scores_are_means() -> None:
    S = np.random.default_rng(0).random((4, 7))
    image_of = np.array([2, 0, 2, 1, 0, 3, 2])
    units = Units.by_image(np.array([0, 1, 2, 4, 6]), image_of)
    scores = UnitScores(MatrixScores(S), units)
    wanted = np.stack([S[:, [1, 4]].mean(1), S[:, [0, 2, 6]].mean(1)], axis=1)
    assert np.allclose(scores.block(np.arange(4), np.arange(2)).numpy(), wanted)
    assert np.allclose(scores.block(np.array([3, 1]), np.array([1])).numpy(), wanted[[3, 1], 1:])
    assert np.allclose(scores.own(image_of), [wanted[0, 0], wanted[2, 1]])


def test_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4000, 12))
    chosen = np.array([rng.choice(12, p=row) for row in softmax(scores / 0.3, axis=1)])
    own = scores[np.arange(4000), chosen]
    others = np.stack([np.delete(row, place) for row, place in zip(scores, chosen, strict=True)])
    assert Control(own=own, others=others).temperature() == pytest.approx(0.3, rel=0.1)


def test_nothing_to_do() -> None:
    pairs, scores = world(0.4)
    found = repair(pairs, scores, match_probability=np.ones(len(pairs)))
    assert found.counts == {"keep": len(pairs), "rematch": 0, "drop": 0}
    assert found.partners.plan is None
    assert np.array_equal(found.pairs.image_of, pairs.image_of)
    gone = repair(
        pairs, scores, match_probability=np.zeros(len(pairs)), rematch_threshold=1.0
    )  # and nobody to learn from
    assert (gone.partners.reg, gone.partners.share) == (0.05, 0.5)
    unsure = replace(gone, partners=replace(gone.partners, confidence=np.zeros(len(pairs))))
    with pytest.raises(InputError, match="every pair would be dropped"):
        _ = unsure.pairs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keep_threshold": 1.5}, "keep_threshold"),
        ({"rematch_threshold": -0.1}, "rematch_threshold"),
        ({"capacity": 0}, "capacity"),
        ({"candidates": 0}, "candidates"),
        ({"share": 0.0}, "share"),
        ({"reg": -1.0}, "reg"),
        ({"level": "word"}, "level"),
        ({"wording": -0.2}, "wording"),
        ({"wording": np.nan}, "wording"),
        ({"match_probability": np.ones(3)}, "give one a pair"),
        ({"match_probability": np.full(300, 2.0)}, "row 1 is 2.0"),
    ],
)
def test_bad_arguments(change: dict[str, Any], words: str) -> None:
    pairs, scores = world(0.4)
    with pytest.raises(InputError, match=words) as caught:
        repair(pairs, scores, **change)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def repaired(tmp_path: Path) -> Rematched:
    pairs, scores = world(1.2)
    (tmp_path / "photos").mkdir()
    for image in pairs.images:
        (tmp_path / image).touch()
    found = repair(replace(pairs, image_root=tmp_path), scores)
    assert min(found.counts.values()) > 0
    return found


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_are_read_back(repaired: Rematched, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"repaired{suffix}"
    rows = write_rematched(repaired, out)
    back, wanted = Pairs.read(out), repaired.pairs
    assert rows == len(back) == len(wanted) == len(repaired.pairs_given) - repaired.counts["drop"]
    assert back.captions == wanted.captions
    assert back.pair_ids == wanted.pair_ids
    assert back.splits == wanted.splits
    assert [back.images[i] for i in back.image_of] == [wanted.images[i] for i in wanted.image_of]
    assert np.array_equal(back.is_mismatched, wanted.is_mismatched)
    with pytest.raises(InputError, match="is there already"):
        write_rematched(repaired, out)


def test_columns_and_dropped_rows(repaired: Rematched, tmp_path: Path) -> None:
    write_rematched(repaired, tmp_path / "all.parquet", keep_dropped=True)
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.column_names == [
        "pair_id", "image", "caption", "given_image", "match_probability", "rematch_confidence", "decision", "split",
        "is_mismatched", "true_image",
    ]  # fmt: skip
    assert table.num_rows == len(repaired.pairs_given)
    for row in table.to_pylist():
        assert (row["image"] != row["given_image"]) == (row["decision"] == "rematch")
        assert (row["rematch_confidence"] >= 0.5) or row["decision"] != "rematch"
    write_rematched(repaired, tmp_path / "left.csv")
    with (tmp_path / "left.csv").open(newline="") as file:
        assert {row["decision"] for row in csv.DictReader(file)} == {"keep", "rematch"}


def test_index_file_is_read_back(repaired: Rematched, tmp_path: Path) -> None:
    write_rematched(repaired, tmp_path / "repaired.npy")
    original = replace(repaired.pairs_given, image_of=repaired.pairs_given.true_image_of)
    back = read_index(tmp_path / "repaired.npy", original)
    assert np.array_equal(back.pairs.image_of, repaired.image_of)


def test_webdataset_filters(repaired: Rematched, tmp_path: Path) -> None:
    write_filter(repaired, tmp_path / "filter.jsonl")
    write_filter(repaired, tmp_path / "keep.txt")
    lines = [json.loads(line) for line in (tmp_path / "filter.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in lines] == repaired.decision.tolist()
    pairs = repaired.pairs_given
    for row, line in enumerate(lines):
        assert f"{line['key']}.jpg" == pairs.images[pairs.image_of[row]]
        wanted = {"keep": line["key"], "drop": None}.get(
            line["decision"], pairs.images[repaired.image_of[row]].removesuffix(".jpg")
        )
        assert (line["partner"], line["shard"]) == (wanted, "")
    kept = set((tmp_path / "keep.txt").read_text().splitlines())
    assert kept == {line["key"] for line in lines} - {line["key"] for line in lines if line["decision"] != "keep"}
    with pytest.raises(InputError, match=r"\.jsonl, \.txt"):
        write_filter(repaired, tmp_path / "filter.csv")


def test_filters_of_shards_select_what_webdataset_reads(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="the extra webdataset is not installed")
    images, shards = [], {"0.tar": ("0", "./a/1", "2"), "1.tar": ("0", "3", "4")}  # both have a key 0
    for shard, keys in shards.items():
        with tarfile.open(tmp_path / shard, "w") as tar:
            for key in keys:
                info = tarfile.TarInfo(f"{key}.seen.jpg")
                tar.addfile(info, io.BytesIO())
                images.append(f"{shard}/{info.name}")
    pairs = Pairs(images=tuple(images), image_of=np.arange(6), captions=tuple("abcdef"))
    probability = np.array([0.9, 0.9, 0.1, 0.1, 0.9, 0.9])
    repaired = rematch_scores(
        MatrixScores(np.eye(6)), pairs, match_probability=probability, rematch_threshold=0.0, progress=False
    )
    assert (repaired.decision == "keep").tolist() == (probability > 0.5).tolist()
    assert write_filter(repaired, tmp_path / "keep.txt") == 1  # the key 0 of the first shard
    assert write_filter(repaired, tmp_path / "filter.jsonl") == 0
    reading, choosing = re.findall(r"`(keys = .*?)`, `(dataset\.select\(.*?\))`", DOCUMENT)[0]
    known = {"dataset": wds.WebDataset([str(tmp_path / shard) for shard in shards], shardshuffle=False)}
    exec(reading.replace("keep.txt", str(tmp_path / "keep.txt")), known)
    assert [sample["__key__"] for sample in eval(choosing, known)] == ["./a/1", "3", "4"]
    lines = [json.loads(line) for line in (tmp_path / "filter.jsonl").read_text().splitlines()]
    theirs = [(Path(sample["__url__"]).name, sample["__key__"]) for sample in known["dataset"]]
    assert [(line["shard"], line["key"]) for line in lines] == theirs
    for line, image in zip(lines, repaired.image_of, strict=True):
        wanted = (None, None) if line["decision"] == "drop" else theirs[image]
        assert (line["partner_shard"], line["partner"]) == wanted


DOCUMENT = (Path(__file__).parents[2] / "docs/rematch.md").read_text(encoding="utf-8")


def test_the_snippet_of_the_documentation_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(compile(snippet, "docs/rematch.md", "exec"), {})


def test_the_commands_of_the_documentation_are_understood() -> None:
    lines = re.findall(r"^    l2rm (.*)$", DOCUMENT, re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        parse_command(shlex.split(line))
