"""What a shortlist does to R@K and what it saves: the cascade against exact scores, on a trained run.

`python benchmarks/cascade.py RUN --data DATA [--split dev] [--shares 0.02 0.05] [--scores FILE.npy] --json FILE`

The first pass is the one that RUN has (`cascade.safetensors`); where it has none, one is distilled from the train split
and kept there. Queries are halved by image, candidates are always all. The share is chosen on the first half: the
smallest where no R@K is more than 0.2 points below that of exact scores. The second half is what to believe. Seconds
are medians of exact and cascade taking turns on the first 256 images and their captions, encoded before. `--scores`
keeps the exact scores of the whole split, which take longest, for the next time; what a cascade would give is read off
them, as it gives the same (tests/similarity/test_cascade.py).
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from l2rm.data.batches import Batches
from l2rm.data.formats import read_pairs, read_splits
from l2rm.evaluation.metrics import Recalls
from l2rm.evaluation.ranks import Ranks, exact_ranks
from l2rm.evaluation.scores import MatrixScores
from l2rm.files import written_whole
from l2rm.similarity.cascade import cascade, pooled, shortlist
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import Encoded, RetrievalModel
from l2rm.training.distil import FILE, distil, read_first_pass, write_first_pass
from l2rm.training.run import load_run, write_json

POINTS = 0.2
TIMED_IMAGES, ROUNDS = 256, 3


def learned(folder: Path, model: RetrievalModel, data: str, steps: int) -> tuple[FirstPass, float | None]:
    """The run's first pass, and how long it took to make, where it is made now."""
    if (folder / FILE).is_file():
        return read_first_pass(folder, model), None
    began = time.perf_counter()
    made = distil(model, read_splits(data)["train"], steps=steps, progress=True)
    write_first_pass(folder, made)
    return made, time.perf_counter() - began


def recalls(ranks: Ranks, image_of: np.ndarray, chosen: np.ndarray) -> list[float]:
    """R@1, R@5, R@10 both ways, of the queries that are chosen images or captions of theirs."""
    both = Recalls.of(ranks.i2t[chosen]), Recalls.of(ranks.t2i[np.isin(image_of, chosen)])
    return [recall for one in both for recall in (one.r1, one.r5, one.r10)]


def timed(model: RetrievalModel, images: Encoded, captions: Encoded, share: float, first: FirstPass) -> dict[str, Any]:
    """Medians of turns."""

    def seconds(run: Any) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    sides = (lambda: model.score(images, captions)), (lambda: cascade(model, images, captions, share, first))
    for side in sides:
        side()
    exact, ours, alone = zip(
        *(
            (seconds(sides[0]), seconds(sides[1]), seconds(lambda: first.score(images, captions)))
            for _ in range(ROUNDS)
        ),
        strict=True,
    )
    found = {"exact_s": exact, "cascade_s": ours, "first_pass_s": alone}
    medians = {key: statistics.median(value) for key, value in found.items()}
    size = {"images": len(images), "captions": len(captions), "share": share, "threads": torch.get_num_threads()}
    return {**size, **medians, "ratio": medians["exact_s"] / medians["cascade_s"]}


@torch.no_grad()
def exact_scores(model: RetrievalModel, images: Encoded, captions: Encoded, path: Path | None) -> torch.Tensor:
    """All scores, by `path` where it is there."""
    if path is not None and path.is_file():
        return torch.from_numpy(np.load(path, allow_pickle=False))
    S = model.score(images, captions)
    if path is not None:
        with written_whole(path) as beside:
            np.save(beside, S.numpy())
    return S


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=[0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4]
    )
    parser.add_argument("--steps", type=int, default=1000, help="of distilling, where the run has no first pass")
    parser.add_argument("--scores", type=Path, help="where exact scores are kept")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    model = load_run(options.run).model.eval()
    first, distilled_s = learned(options.run, model, options.data, options.steps)
    pairs = read_pairs(options.data, split=options.split)
    batches = Batches(pairs, model.vocabulary, next(model.parameters()).device)
    with torch.no_grad():
        images = model.encode_images(batches.images(np.arange(pairs.n_images)))
        captions = model.encode_captions(*batches.captions(np.arange(len(pairs))))
    halves = {"chosen on": np.arange(0, pairs.n_images, 2), "reported on": np.arange(1, pairs.n_images, 2)}
    halves["all"] = np.arange(pairs.n_images)
    result: dict[str, Any] = {**provenance(), "split": options.split, "images": pairs.n_images, "captions": len(pairs)}
    result |= {"distilled_s": distilled_s, "share": None, "rows": []}
    S = exact_scores(model, images, captions, options.scores)
    cheap = {"pooled": pooled(images, captions), "distilled": first.score(images, captions)}

    def row(by: str, share: float | None, scores: torch.Tensor) -> dict[str, Any]:
        ranks = exact_ranks(MatrixScores(scores), pairs.image_of)
        return {
            "by": by,
            "share": share,
            "recalls": {half: recalls(ranks, pairs.image_of, chosen) for half, chosen in halves.items()},
        }

    exact = row("exact", None, S)
    rows = [exact, *(row(by, None, scores) for by, scores in cheap.items())]
    for by in cheap:
        for share in options.shares:
            listed = shortlist(cheap[by], share)
            found = row(by, share, torch.where(listed, S, cheap[by] - cheap[by].max() - 1))
            found["scored"] = float(listed.float().mean())
            for name, sign in (("most_lost", 1), ("most_gained", -1)):
                found[name] = {
                    half: max(sign * np.subtract(exact["recalls"][half], found["recalls"][half])) for half in halves
                }
            rows.append(found)
            if by == "distilled" and result["share"] is None and found["most_lost"]["chosen on"] <= POINTS + 1e-9:
                result["share"] = share
    for found in rows:
        told = f"{found['by']:<10} {found['share'] or '':<5} scored {found.get('scored', 1):.3f}"
        lost = "".join(f"{half} {points:5.2f}  " for half, points in found.get("most_lost", {}).items())
        print(told, *(f"{cell:5.1f}" for cell in found["recalls"]["all"]), " most lost", lost, flush=True)
    result["rows"] = rows
    write_json(options.json, result)
    if result["share"] is not None:
        some = slice(0, TIMED_IMAGES)
        theirs = torch.from_numpy(np.flatnonzero(pairs.image_of < TIMED_IMAGES))
        result["timed"] = timed(model, images.take(some), captions.take(theirs), result["share"], first)
        print(result["timed"])
    write_json(options.json, result)


if __name__ == "__main__":
    main()
