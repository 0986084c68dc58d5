"""Natural mismatches: retrieval and detection on OpenClipart as it was uploaded.

`python benchmarks/openclipart.py --work FOLDER [--packages FOLDER] [--json FILE]`

Debian's packages `openclipart-png` and `openclipart-svg` are fetched by apt-get into the work folder, or taken unpacked
from `--packages`. What a title is worth is decided by the file's name (`openclipart_data.py`). Models learn from titles
as they were uploaded; dev and test are searched by the words of file names, so that no stale title is ever asked for. A
row a run is appended to FILE.jsonl beside the JSON; called again, the script does what is missing.
"""

import argparse
import dataclasses
import logging
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openclipart_data import CLASSES, CREDIT, ClipArt, distinct, read, share_a_word, title_words, unpacked
from provenance import provenance
from scipy.stats import rankdata

from l2rm.auditing.crossfit import cross_fit_pairs
from l2rm.auditing.duplicate_captions import find_duplicate_captions
from l2rm.auditing.uninformative import find_uninformative_captions
from l2rm.benchmark.grid import overridden
from l2rm.data.pairs import Pairs
from l2rm.data.texts import text_numbers
from l2rm.evaluation.detection import measure_detection
from l2rm.evaluation.evaluate import evaluate
from l2rm.recipes import quickstart
from l2rm.similarity.scoring import ModelScores
from l2rm.training.run import Run, read_lines, read_record, write_json, write_lines
from l2rm.training.settings import TrainConfig
from l2rm.training.train import train

RESULTS = Path(__file__).parent / "results" / "openclipart.json"
DEV, TEST = 400, 600
TINY = {"batch_size": 8, "warmup_epochs": 6, "rematching_epochs": 1, "device": "cpu"}
MEASURED = {"device": "cpu", "model": {"embed_dim": 256}, "rematching": {"rematch_weight": 0.1}}
"""What the recipe `quickstart` had when this was measured."""
FEW = 5
"""Pictures with one title, from which on the title counts as repeated."""
WRONG = ("stale", "generic")
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One seed's pictures: titles to learn from, file names to search dev and test with."""

    train: ClipArt
    dev: Pairs
    test: Pairs
    easy: Pairs
    """The pictures of test whose title fits: most others are icons of programs, with names that no title says."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the table: what it changes of the recipe, and which titles `oracle` takes."""

    name: str
    config: dict[str, Any]
    fits: Callable[[ClipArt], NDArray[np.bool_]] = lambda art: art.kinds == "fits"


SCE = {"objective": "symmetric_cross_entropy"}
"""What the others' warm-up and matched pairs are learned by; so `warmup` would be `plain` again."""
FOLDS = {"folds": 4, "fold_rounds": 2, "evidence": "pair"}
BY_TEXT = {**FOLDS, "folds_by": "image+caption"}
ONE_PLAN = {"scope": "dataset", "steps": "pairs", "rematch_weight": 0.5}
"""As in the recipe `dual`."""
METHODS = (
    Method(name="plain", config={"method": "plain", **SCE}),
    Method(name="oracle", config={"method": "oracle", **SCE}),
    Method(
        name="titles of fewer than 5 pictures",
        config={"method": "oracle", **SCE},
        fits=lambda art: repeats(art.pairs) < FEW,
    ),
    Method(name="division", config={"method": "division", "rematching": FOLDS}),
    Method(name="l2rm", config={"method": "l2rm", "rematching": FOLDS}),
    Method(name="division, folds by image and caption", config={"method": "division", "rematching": BY_TEXT}),
    Method(name="l2rm, folds by image and caption", config={"method": "l2rm", "rematching": BY_TEXT}),
    Method(
        name="l2rm, folds by image and caption, one plan",
        config={"method": "l2rm", "rematching": {**BY_TEXT, **ONE_PLAN}},
    ),
)


def main() -> None:
    """Run what is missing, then sum up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="packages (if not given) and runs lie here")
    parser.add_argument("--packages", type=Path, help="the unpacked packages; left out, apt-get fetches them")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="*", default=[one.name for one in METHODS], help="rows of retrieval")
    parser.add_argument("--tiny", action="store_true", help="a few pictures, only to see that it runs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    art = distinct(read(options.packages or unpacked(options.work)))
    rows = options.json.with_suffix(".jsonl")
    done = {(row["work"], row["seed"]) for row in read_lines(rows)}
    for seed in options.seeds:
        parts = split(art, seed, *((8, 8) if options.tiny else (DEV, TEST)))
        recipe = dataclasses.replace(overridden(quickstart(), TINY if options.tiny else MEASURED, "recipe"), seed=seed)
        works: dict[str, Callable[[], dict[str, Any]]] = {"detection": lambda: detected(parts, recipe, options.work)}  # noqa: B023
        for method in METHODS:
            if method.name in options.methods:
                works[method.name] = lambda method=method: retrieved(parts, method, recipe, options.work)  # type: ignore[misc]  # noqa: B023
        for name, work in works.items():
            if (name, seed) not in done:
                row = {"work": name, "seed": seed, **work()}
                write_lines(rows, [*read_lines(rows), {**row, **provenance()}])
                print(row, flush=True)
    summed_up(options.json, art, read_lines(rows))


# --------------------------------------------------------------------------------------------------------------- data


def split(art: ClipArt, seed: int, dev: int, test: int) -> Split:
    """Pictures at random, copies of one picture together. Dev and test take one of each, with a name of its own."""
    generator, count = np.random.default_rng(seed), Counter(art.names)
    asked: dict[int, int] = {}
    for row in generator.permutation(len(art.pairs)):
        if art.names[row] and count[art.names[row]] == 1:
            asked.setdefault(int(art.group[row]), int(row))
    chosen = generator.permutation(np.array(list(asked.values())))[: dev + test]
    learned = art.take(np.flatnonzero(~np.isin(art.group, art.group[chosen])))
    asked_in_test = np.sort(chosen[dev:])
    return Split(
        train=learned,
        dev=_by_name(art, chosen[:dev]),
        test=_by_name(art, asked_in_test),
        easy=_by_name(art, asked_in_test[art.kinds[asked_in_test] == "fits"]),
    )


def _by_name(art: ClipArt, rows: NDArray[np.integer]) -> Pairs:
    part = art.take(np.sort(rows))
    return dataclasses.replace(part.pairs, captions=part.names)


def repeats(pairs: Pairs) -> NDArray[np.int64]:
    """(rows,) how many pictures have the same title."""
    text = text_numbers(pairs.captions)
    return np.bincount(text)[text]


def with_truth(art: ClipArt, fits: NDArray[np.bool_]) -> Pairs:
    """The pairs, those that do not fit belonging to no picture that is known."""
    return dataclasses.replace(art.pairs, true_image_of=np.where(fits, art.pairs.image_of, -1))


# ---------------------------------------------------------------------------------------------------------- retrieval


def retrieved(parts: Split, method: Method, recipe: TrainConfig, work: Path) -> dict[str, Any]:
    """Train one method; its rSum by file names, and what its division and its plans found."""
    pairs = with_truth(parts.train, method.fits(parts.train))
    out = work / "runs" / f"{method.name.replace(' ', '-').replace(',', '')}-{recipe.seed}"
    config = overridden(recipe, method.config, method.name)
    run = train(pairs, parts.dev, config, out, resume=True, progress=False)
    row: dict[str, Any] = {
        "dev": read_record(out)["best"],
        "test": evaluate(run.model, parts.test).to_dict(),
        "test_fits": evaluate(run.model, parts.easy).to_dict(),
    }
    if "rematching" in method.config:
        probability = run.match_probability(pairs)
        row |= {"estimated_ratio": float(1 - probability.mean()), **measured(probability, parts.train)}
        if method.config["method"] == "l2rm":
            row["partners"] = partners(run, parts.train, recipe.seed)
    return row


def partners(run: Run, art: ClipArt, seed: int) -> dict[str, float]:
    """How often the picture that a stale or generic title was rematched with has a name that the title fits; by chance.

    A generic title fits next to no name, so it cannot be right often.
    """
    import pyarrow.parquet as pq

    rematch = pq.read_table(run.folder / "pairs.parquet")["rematch_image"].to_pylist()
    place = {image: row for row, image in enumerate(art.pairs.images)}
    generator = np.random.default_rng(seed)
    found: dict[str, float] = {}
    for kind in WRONG:
        rows = [row for row in np.flatnonzero(art.kinds == kind) if rematch[row] is not None]
        chance = generator.integers(len(art.names), size=(20, len(rows)))
        fits = [_fits(art, row, place[rematch[row]]) for row in rows]
        by_chance = [_fits(art, row, other) for others in chance for row, other in zip(rows, others, strict=True)]
        found |= {f"{kind}": len(rows)}
        if rows:
            found |= {f"{kind}_fit": float(np.mean(fits)), f"{kind}_by_chance": float(np.mean(by_chance))}
    return found


def _fits(art: ClipArt, title: int, name: int) -> bool:
    return share_a_word(title_words(art.pairs.captions[title]), art.names[name].split())


# ---------------------------------------------------------------------------------------------------------- detection


def measured(score: NDArray[np.floating], art: ClipArt) -> dict[str, Any]:
    """AUROC of fitting titles against those that do not fit, all and by class, and among repeated titles only."""
    rows = {"auroc": WRONG, "auroc_stale": ("stale",), "auroc_generic": ("generic",)}
    found = {name: _auroc(score, art, np.isin(art.kinds, ("fits", *kinds))) for name, kinds in rows.items()}
    often = repeats(art.pairs) >= FEW
    return found | {"auroc_repeated": _auroc(score, art, often & np.isin(art.kinds, ("fits", *WRONG)))}


def _auroc(score: NDArray[np.floating], art: ClipArt, among: NDArray[np.bool_]) -> float | None:
    wrong = art.kinds[among] != "fits"
    return None if wrong.all() or not wrong.any() else measure_detection(score[among], wrong).auroc


def detected(parts: Split, recipe: TrainConfig, work: Path) -> dict[str, Any]:
    """Every idea of what tells titles that do not fit, a number a pair that is lower for them; and an audit's flags."""
    art = parts.train
    ratios: dict[str, float] = {}
    flags = {"one caption on different images": find_duplicate_captions(art.pairs, art.group)[0]}
    scores: dict[str, Floats] = {"rarity of the title": -np.log(repeats(art.pairs))}
    own = train(
        art.pairs,
        parts.dev,
        overridden(recipe, METHODS[0].config, "plain"),
        work / "runs" / f"plain-{recipe.seed}",
        resume=True,
        progress=False,
    )
    scores |= by_model(own, art.pairs)
    folds = np.unique(art.group, return_inverse=True)[1]
    for name, settings in (("image", FOLDS), ("image and caption", BY_TEXT)):
        config = overridden(recipe, {"rematching": settings}, name)
        judged = cross_fit_pairs(art.pairs, config, groups=folds, progress=False)
        scores |= by_folds(f"folds by {name}", -judged.p_values, art.pairs)
        ratios[f"folds by {name}"] = judged.mixture.mismatch_ratio
        flags[f"says nothing, folds by {name}"] = find_uninformative_captions(art.pairs, judged.scores)[0]
    return {
        "pairs": len(art.pairs),
        "true_ratio": float(np.isin(art.kinds, WRONG).sum() / np.isin(art.kinds, ("fits", *WRONG)).sum()),
        "estimated_ratio": ratios,
        "scores": {name: measured(score, art) for name, score in scores.items()},
        "flagged": {
            name: {kind: float(flag[art.kinds == kind].mean()) for kind in ("fits", *WRONG)}
            for name, flag in flags.items()
        },
    }


def by_model(run: Run, pairs: Pairs) -> dict[str, Floats]:
    """By one model that has learned from all of these pairs: similarity, and how specific it is."""
    every = np.arange(len(pairs))
    S = ModelScores(run.model, pairs).block(every, every).double()
    tau = run.config.rematching.tau
    specific = S.diagonal() - S.mean(0) - S.mean(1)
    softmax = (S / tau).log_softmax(0).diagonal() + (S / tau).log_softmax(1).diagonal()
    return {
        "similarity, of a model of all pairs": S.diagonal().numpy(),
        "the same less the means of its row and column": specific.numpy(),
        "the same, log softmax both ways": softmax.numpy(),
    }


def by_folds(name: str, unlikely: Floats, pairs: Pairs) -> dict[str, Floats]:
    """P-values (negative) by themselves, pooled over a title's pictures, and with how often the title is there."""
    text, often = text_numbers(pairs.captions), repeats(pairs)
    pooled = (np.bincount(text, unlikely) / np.bincount(text))[text]
    rarity = rankdata(-often) / len(often)
    return {
        name: unlikely,
        f"{name}, pictures of a title together": pooled,
        f"{name}, ranks of that and of rarity added": rankdata(pooled) / len(pooled) + rarity,
        f"{name}, together, titles of one or two pictures trusted": np.where(often < 3, 1.0, pooled),
    }


# ---------------------------------------------------------------------------------------------------------- the table


def summed_up(path: Path, art: ClipArt, rows: list[dict[str, Any]]) -> None:
    """Write the JSON: what the data are, means and deviations over seeds; print them."""
    retrieval: dict[str, Any] = {}
    for name in dict.fromkeys(row["work"] for row in rows if row["work"] != "detection"):
        mine = [row for row in rows if row["work"] == name]
        values = {f"{part}_rsum": [row[part]["rsum"] for row in mine] for part in ("test", "test_fits", "dev")}
        values |= {
            key: [row[key] for row in mine]
            for key in ("auroc", "auroc_stale", "auroc_generic", "auroc_repeated", "estimated_ratio")
            if key in mine[0]
        }
        retrieval[name] = {key: spread(one) for key, one in values.items()}
        if "partners" in mine[0]:
            retrieval[name]["partners"] = {
                key: spread([row["partners"].get(key) for row in mine]) for key in mine[0]["partners"]
            }
    judged = [row for row in rows if row["work"] == "detection"]
    detection, flagged = (
        {
            name: {key: spread([row[what][name][key] for row in judged]) for key in judged[0][what][name]}
            for name in (judged[0][what] if judged else {})
        }
        for what in ("scores", "flagged")
    )
    write_json(
        path,
        {
            "data": CREDIT,
            **provenance(),
            "pictures": len(art.pairs),
            "classes": {kind: int((art.kinds == kind).sum()) for kind in CLASSES},
            "left_out": art.left_out,
            "examples": {kind: examples(art, kind) for kind in CLASSES},
            "retrieval": retrieval,
            "detection": detection,
            "flagged": flagged,
            "true_ratio": spread([row["true_ratio"] for row in judged]),
            "estimated_ratio": {
                name: spread([row["estimated_ratio"][name] for row in judged])
                for name in (judged[0]["estimated_ratio"] if judged else {})
            },
        },
    )
    for kind in CLASSES:
        print(f"{kind:<10}{(art.kinds == kind).sum():6d}  " + "; ".join(examples(art, kind)[:3]))
    for name, one in retrieval.items():
        rsums = "  ".join(f"{part} {told(one[f'{part}_rsum'])}" for part in ("test", "test_fits", "dev"))
        print(f"{name:<40}rSum {rsums}")
    for name, one in (detection | flagged).items():
        print(f"{name:<76}" + "  ".join(told(value, 3) for value in one.values()))


def examples(art: ClipArt, kind: str, number: int = 5) -> list[str]:
    """Titles and names of a class, the same ones every time."""
    rows = np.flatnonzero(art.kinds == kind)
    some = np.random.default_rng(0).permutation(rows)[:number]
    return [f"{art.pairs.captions[row]} | {art.names[row]}" for row in some]


def spread(values: list[float | None]) -> dict[str, Any]:
    """Mean, deviation and all values."""
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "stdev": statistics.stdev(known) if len(known) > 1 else None,
        "values": values,
    }


def told(one: dict[str, Any], digits: int = 1) -> str:
    """Mean ± deviation."""
    if one["mean"] is None:
        return "–"
    return f"{one['mean']:.{digits}f}" + ("" if one["stdev"] is None else f" ± {one['stdev']:.{digits}f}")


if __name__ == "__main__":
    main()
