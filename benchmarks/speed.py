"""How fast the similarities are, as ratios to the plain per-caption loop (`naive.py`), measured side by side.

`python benchmarks/speed.py --json benchmarks/results/speed.json [--similarity sgr saf] [--rounds 3]`

Paper dimensions: batch 128, 36 regions of 2,048, D = 1,024, similarity vectors of 256, captions of 8 to 18 words. The
two take turns; the ratio is of their medians. Outputs are compared before anything is timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from naive import naive_similarity
from provenance import provenance

from l2rm.rematching.objectives import symmetric_cross_entropy
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.run import write_json


def given(images: int, captions: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random features, tokens and lengths."""
    lengths = torch.randint(8, 19, (captions,))
    tokens = torch.randint(4, 8000, (captions, 18)) * (torch.arange(18) < lengths[:, None])
    return torch.randn(images, 36, 2048), tokens, lengths


def learn(model: RetrievalModel, similarity: Callable[..., torch.Tensor], batch: Any) -> None:
    """Forward and backward of a warm-up step."""
    model.zero_grad()
    symmetric_cross_entropy(similarity(*batch)).backward()


def turns(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def compare(model: RetrievalModel, rounds: int) -> dict[str, Any]:
    """Forward and backward at batch 128 in training mode; 200 × 500 similarities in evaluation mode."""
    batch, block = given(128, 128), given(200, 500)
    model.eval()
    with torch.no_grad():
        error = (model(*block) - naive_similarity(model, *block)).abs().max()
    model.train()
    step = turns(
        {
            "naive": lambda: learn(model, lambda *x: naive_similarity(model, *x), batch),
            "ours": lambda: learn(model, model, batch),
        },
        rounds,
    )
    model.eval()
    with torch.no_grad():
        pairs = turns({"naive": lambda: naive_similarity(model, *block), "ours": lambda: model(*block)}, rounds)
    found: dict[str, Any] = {"largest_difference": float(error)}
    for name, seconds in (("forward and backward", step), ("all pairs 200 x 500", pairs)):
        medians = {which: statistics.median(values) for which, values in seconds.items()}
        found[name] = {"ratio": medians["naive"] / medians["ours"], "seconds": seconds}
    return found


def main() -> None:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--similarity", nargs="+", default=["sgr", "saf"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {**provenance(), "threads": options.threads, "rounds": options.rounds}
    for name in options.similarity:
        torch.manual_seed(0)
        config = ModelConfig(similarity=name, embed_dim=1024, word_dim=300, similarity_dim=256, dropout=0.4)
        model = build_model(config, DataShape(image_dim=2048, regions=36, vocabulary_size=8000))
        result[name] = compare(model, options.rounds)
        for work in ("forward and backward", "all pairs 200 x 500"):
            print(f"{name} {work}: {result[name][work]['ratio']:.2f} times as fast", flush=True)
    write_json(options.json, result)


if __name__ == "__main__":
    main()
