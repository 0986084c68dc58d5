"""How fast the exact method could be at most on this processor: its arithmetic at the speed of a large matrix product.

`python benchmarks/bound.py --speed benchmarks/results/speed.json --json benchmarks/results/bound.json [--tiny]`

For each row of `speed.py` that is made of matrix products: the floating-point operations of the loop and of ours in one
run, counted as they are dispatched (`torch.utils.flop_counter`); the fastest that this processor multiplies two
2,048 × 2,048 matrices in the row's precision; the ratio that would be reached if ours did nothing else and all of it at
that speed, against the loop as `speed.json` has it; and the ratio that it has. Everything else (softmax, norms, gaps
between products, shapes that no library runs at full speed) comes on top, so this is a bound, not an aim.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from provenance import provenance
from speed import TINY, Bench, Run, Sizes
from torch.utils.flop_counter import FlopCounterMode

from l2rm.encoders.linear import product
from l2rm.training.run import write_json

WORKS = ("sgr_fp32", "sgr_bf16", "step_fp32", "step_bf16", "saf_fp32", "similarity_exact")
SIDE = 2048


def operations(run: Run) -> int:
    """Floating-point operations of the matrix products of one run, two a multiplication and addition."""

    def linear(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
        rows = 1
        for size in x[:-1]:
            rows *= size
        return 2 * rows * weight[0] * weight[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: linear}) as counter:
        run()
    return int(counter.get_total_flops())


def peak(dtype: torch.dtype, rounds: int = 20) -> float:
    """The highest speed of a large product, in operations a second."""
    x, weight = torch.randn(SIDE, SIDE, dtype=dtype), torch.randn(SIDE, SIDE, dtype=dtype)
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        product(x, weight)
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best


def main() -> None:
    """Count, measure, print a row each, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=Path, required=True, help="what speed.py wrote on this machine")
    parser.add_argument("--json", type=Path, help="where the table goes")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    options = parser.parse_args()
    measured = {row["work"]: row for row in json.loads(options.speed.read_text(encoding="utf-8"))["rows"]}
    bench = Bench(TINY if options.tiny else Sizes(), "cpu", share=1.0)
    peaks = {name: peak(dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    rows = []
    for work in (work for work in WORKS if work in measured):
        loop, ours = (operations(side) for side in bench.works()[work]())
        speed = peaks["bf16" if work.endswith("bf16") else "fp32"]
        row = {"work": work, "naive_gflop": loop / 1e9, "l2rm_gflop": ours / 1e9, "peak_gflops": speed / 1e9}
        row |= {"ratio": measured[work]["ratio"], "ratio_at_most": measured[work]["naive_s"] / (ours / speed)}
        rows.append(row)
        print(
            f"{work:<18}{row['naive_gflop']:8.0f} GFLOP{row['l2rm_gflop']:8.0f} GFLOP at "
            f"{row['peak_gflops']:4.0f} a second: at most {row['ratio_at_most']:5.2f} x, is {row['ratio']:5.2f} x",
            flush=True,
        )
    if options.json:
        write_json(options.json, {**provenance(), "threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))
    main()
