"""How fast and how small the method is, as ratios to the plain per-caption loop (`naive.py`), side by side in one run.

`python benchmarks/speed.py [--json benchmarks/results/speed.json] [--device cpu|cuda] [--tiny] [--work NAME ...]`

With `--merge` the file keeps the rows that are not measured now; each row says when, where and of which commit it is.

Paper dimensions: batch 128, 36 regions of 2,048, D = 1,024, similarity vectors of 256, captions of 8 to 18 words.
Times are medians of runs that take turns, after one run of each that does not count. They include the encoders where
there is a gradient; the all-pairs rows are of encoded images and captions. Memory is the peak of one subprocess for
each side of a row, libraries included (on a card: of its tensors). Before anything is timed the outputs are compared.

The loop is float32 everywhere, in the bf16 rows too. `similarity_cascade` scores the share of pairs given by `--share`;
the loop is timed on its exact 200 × 500 block; the first pass is timed, too, with random weights. What a shortlist does
to R@K, and which share is needed, is measured by `cascade.py`, on real data.
`transport` solves the costs of a trained model (`data/similarities.npz`: SGR on Flickr8k dev, 128 images and 128
captions drawn at random); uniform random costs, which every solver settles at once, would say nothing. The naive side
is NumPy in float64, as float32 does not reach the marginal error of 1e-6 that both are asked for.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from naive import naive_score, naive_similarity, naive_step, naive_transport
from provenance import provenance
from torch import Tensor

from l2rm.rematching.cost import COST_FLOOR, LinearCost, known_match_loss
from l2rm.rematching.few import few_pairs
from l2rm.rematching.objectives import max_violation, symmetric_cross_entropy, symmetric_kl
from l2rm.rematching.transport import partial_transport
from l2rm.similarity.cascade import cascade
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.run import write_json

Run = Callable[[], Tensor]
REG, MASS = 0.01, 0.1
SIMILARITIES = Path(__file__).with_name("data") / "similarities.npz"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    batch: int = 128
    block: tuple[int, int] = (200, 500)
    feature: int = 2048
    embed: int = 1024
    similarity: int = 256
    rounds: int = 3


TINY = Sizes(batch=12, block=(10, 15), feature=24, embed=16, similarity=8, rounds=1)


class Bench:
    """A model with random weights and random data, and each work by the loop and by us."""

    def __init__(self, sizes: Sizes, device: str, share: float) -> None:
        self.sizes, self.device, self.share = sizes, torch.device(device), share

    def model(self, similarity: str, precision: str = "float32") -> RetrievalModel:
        torch.manual_seed(0)
        config = ModelConfig(
            similarity=similarity,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            embed_dim=self.sizes.embed,
            similarity_dim=self.sizes.similarity,
        )
        shape = DataShape(image_dim=self.sizes.feature, regions=36, vocabulary_size=8000)
        return build_model(config, shape).to(self.device)

    def data(self, images: int, captions: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Features, tokens, lengths."""
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(8, 19, (captions,), generator=generator)
        tokens = torch.randint(4, 8000, (captions, 18), generator=generator) * (torch.arange(18) < lengths[:, None])
        features = torch.randn(images, 36, self.sizes.feature, generator=generator)
        return features.to(self.device), tokens.to(self.device), lengths

    def warmup(self, similarity: str, precision: str) -> tuple[Run, Run]:
        """Forward and backward of a warm-up step; returns the similarities."""
        batch = self.data(self.sizes.batch, self.sizes.batch, 1)

        def learn(model: RetrievalModel, score: Callable[..., Tensor]) -> Tensor:
            torch.manual_seed(2)
            model.train().zero_grad()
            S = score(*batch)
            symmetric_cross_entropy(S).backward()
            return S.detach()

        loop, ours = self.model(similarity), self.model(similarity, precision)
        return partial(learn, loop, partial(naive_similarity, loop)), partial(learn, ours, ours)

    def step(self, precision: str) -> tuple[Run, Run]:
        """A whole rematching step, division excluded; returns its losses."""
        size = self.sizes.batch
        matched, mismatched = self.data(size, size, 1), self.data(size, size, 3)

        def side(model: RetrievalModel, losses: Callable[..., tuple[Tensor, Tensor]]) -> Run:
            cost = LinearCost(size).to(self.device)
            optimiser = torch.optim.Adam(cost.parameters(), lr=2e-6)

            def learn() -> Tensor:
                torch.manual_seed(2)
                model.train().zero_grad()
                found = torch.stack(losses(model, cost, optimiser, matched, mismatched, REG))
                found.sum().backward()
                return found.detach()

            return learn

        return side(self.model("sgr"), naive_step), side(self.model("sgr", precision), our_step)

    def all_pairs(self, share: float | None) -> tuple[Run, Run]:
        """Every image against every caption, both encoded; with `share`, ours by a shortlist."""
        model = self.model("sgr").eval()
        features, tokens, lengths = self.data(*self.sizes.block, 4)
        with torch.no_grad():
            image, caption = model.encode_images(features), model.encode_captions(tokens, lengths)
        ours = partial(model.score, image, caption)
        if share is not None:
            first_pass = FirstPass(self.sizes.embed).to(self.device)
            ours = partial(cascade, model, image, caption, share, first_pass)
        return torch.no_grad()(partial(naive_score, model, image, caption)), torch.no_grad()(ours)

    def transport(self) -> tuple[Run, Run]:
        """Masked partial transport at reg 0.01, to a marginal error of 1e-6, of a trained model's costs."""
        size = self.sizes.batch
        with np.load(SIMILARITIES) as file:
            cost = 1 - torch.from_numpy(file["similarity"])[:size, :size]
        forbidden = torch.eye(size, dtype=torch.bool)
        known = cost.double().numpy(), forbidden.numpy()
        given = cost.to(self.device), forbidden.to(self.device)

        def loop() -> Tensor:
            return torch.from_numpy(naive_transport(*known, mass=MASS, reg=REG, tolerance=1e-6)[0])

        def ours() -> Tensor:
            plan = partial_transport(given[0], mass=MASS, reg=REG, forbidden=given[1], tolerance=1e-6)
            if not plan.converged:
                raise RuntimeError(f"the plan stopped at a marginal error of {plan.marginal_error:.1e}")
            return plan.matrix

        return loop, ours

    def works(self) -> dict[str, Callable[[], tuple[Run, Run]]]:
        return {
            "sgr_fp32": partial(self.warmup, "sgr", "float32"),
            "sgr_bf16": partial(self.warmup, "sgr", "bfloat16"),
            "step_fp32": partial(self.step, "float32"),
            "step_bf16": partial(self.step, "bfloat16"),
            "saf_fp32": partial(self.warmup, "saf", "float32"),
            "similarity_exact": partial(self.all_pairs, None),
            "similarity_cascade": partial(self.all_pairs, self.share),
            "transport": self.transport,
        }


def our_step(
    model: RetrievalModel, cost: LinearCost, optimiser: torch.optim.Optimizer, matched: Any, mismatched: Any, reg: float
) -> tuple[Tensor, Tensor]:
    """The same as `naive_step`, by the parts of `l2rm.rematching.step`, which takes batches of pairs."""
    learned = few_pairs(model, model.encode_images(matched[0]), model.encode_captions(*matched[1:]), max_violation)
    count = int(torch.randint(1, max(1, int(0.1 * len(matched[0]))) + 1, ()))
    own = torch.randperm(len(matched[0]))[:count].to(matched[0].device)
    charged = known_match_loss(cost, model.similarity(matched[0][own], *matched[1:]), own)
    optimiser.zero_grad()
    charged.backward()
    optimiser.step()
    S = model(*mismatched)
    with torch.no_grad():
        forbidden = torch.eye(len(S), dtype=torch.bool, device=S.device)
        plan = partial_transport(cost(S.detach()).clamp(min=COST_FLOOR), mass=MASS, reg=reg, forbidden=forbidden)
    return learned, symmetric_kl(S, plan.matrix)


def timed(run: Run, device: torch.device) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(bench: Bench, work: str) -> dict[str, Any]:
    """Difference, seconds and ratio of one work."""
    loop, ours = bench.works()[work]()
    expected, got = loop(), ours().to(torch.float32)
    scored = got >= 0  # what a shortlist leaves out lies below
    difference = float((got.cpu() - expected.cpu().float())[scored.cpu()].abs().max())
    turns = [(timed(loop, bench.device), timed(ours, bench.device)) for _ in range(bench.sizes.rounds)]
    naive_s, l2rm_s = (statistics.median(side) for side in zip(*turns, strict=True))
    found = {"work": work, "naive_s": naive_s, "l2rm_s": l2rm_s, "ratio": naive_s / l2rm_s, "max_abs_diff": difference}
    if work == "similarity_cascade":
        found["share"] = float(scored.float().mean())
    return found


def peak(side: str, work: str, options: argparse.Namespace) -> float:
    """Peak memory in MiB of one run of one side, in a process of its own."""
    command = [sys.executable, __file__, "--peak-of", side, "--work", work, "--device", options.device]
    command += ["--share", str(options.share), *(["--tiny"] if options.tiny else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{work} by {side} failed: {done.stderr.strip().splitlines()[-1]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def own_peak(bench: Bench, side: str, work: str) -> float:
    """Run one side once; the peak of this process, or of the card's tensors."""
    loop, ours = bench.works()[work]()
    (loop if side == "naive" else ours)()
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage would count what the parent held when it forked
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def kept_rows(path: Path, works: list[str]) -> list[dict[str, Any]]:
    """The rows of a file of results that are not among `works`, each with what it was measured by."""
    known = json.loads(path.read_text(encoding="utf-8"))
    head = {key: value for key, value in known.items() if key != "rows"}
    return [head | row for row in known["rows"] if row["work"] not in works]


def main() -> None:
    """Measure, print a row as it is known, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the table goes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that outputs agree")
    parser.add_argument("--work", nargs="+", help="these rows only")
    parser.add_argument("--share", type=float, default=0.03, help="of the pairs on the shortlist")
    parser.add_argument("--rounds", type=int, help="timed runs of each side")
    parser.add_argument("--merge", action="store_true", help="keep the rows of FILE that are not measured now")
    parser.add_argument("--peak-of", choices=["naive", "l2rm"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.merge and not (options.json and options.json.is_file()):
        parser.error("--merge needs a --json FILE that is there")
    sizes = TINY if options.tiny else Sizes()
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds)
    bench = Bench(sizes, options.device, options.share)
    if options.peak_of:
        print(json.dumps(own_peak(bench, options.peak_of, options.work[0])))
        return
    works = options.work or list(bench.works())
    source = provenance()
    now: dict[str, Any] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    now |= {"device": options.device, "rounds": sizes.rounds}
    rows = kept_rows(options.json, works) if options.merge else []
    peaks = {work: {f"{side}_peak_mib": peak(side, work, options) for side in ("naive", "l2rm")} for work in works}
    for work in works:  # after all peaks, as a process keeps some of what a run held
        row = measure(bench, work) | peaks[work] | source | now
        rows.append(row)
        rows.sort(key=lambda row: list(bench.works()).index(row["work"]))
        print(
            f"{work:<20}{row['naive_s']:9.3f} s{row['l2rm_s']:9.3f} s{row['ratio']:7.2f} x   difference "
            f"{row['max_abs_diff']:.1e}   {row['naive_peak_mib']:7.0f} MiB{row['l2rm_peak_mib']:7.0f} MiB",
            flush=True,
        )
        if options.json:
            write_json(options.json, {**source, **now, "rows": rows})


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))
    main()
