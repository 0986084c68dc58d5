"""An audit of a million pairs in Parquet shards by Ray, in bounded memory: what it finds, and what a pair costs.

`python benchmarks/scale.py --json benchmarks/results/scale.json [--pairs 1000000] [--dim 64] [--ratio 0.03]`

Embeddings are drawn: images at random on the sphere, captions their images' with noise, of which a share is permuted.
Memory is summed over this process and all that it starts (Ray's own ones too), looked at twice a second: `private_mib`
counts what processes have for themselves and Ray's shared memory (RssAnon + RssShmem); `proportional_mib` (Pss) also
pages of mapped files, each once, which the system may take back when it needs them. CPU seconds are of all these
processes; those of short life between two looks are missed. Reads /proc, so this runs on Linux only.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from provenance import provenance
from watching import Watch

from l2rm.scale.engine import opened_engine
from l2rm.scale.folder import ShardsConfig
from l2rm.scale.pipeline import audit_shards

PER_SHARD = 20_000
NOISE = 0.7


def write_shards(folder: Path, pairs: int, dim: int, ratio: float, seed: int) -> None:
    """Shards of embeddings; a caption that went astray is that of the mismatched pair before."""
    folder.mkdir(parents=True)
    bad = np.sort(np.random.default_rng(seed).choice(pairs, int(pairs * ratio), replace=False))
    source = np.arange(pairs)
    source[bad] = np.roll(bad, 1)

    def image(row: np.ndarray) -> np.ndarray:
        """Rows are drawn in blocks of 1,000, so that any can be drawn again."""
        found = np.empty((len(row), dim), dtype=np.float32)
        for block in np.unique(row // 1000):
            some = row // 1000 == block
            drawn = np.random.default_rng((seed, int(block))).normal(size=(1000, dim)).astype(np.float32)
            found[some] = drawn[row[some] % 1000]
        return found

    for number, start in enumerate(range(0, pairs, PER_SHARD)):
        rows = np.arange(start, min(start + PER_SHARD, pairs))
        noise = np.random.default_rng((seed, 1, number)).normal(size=(len(rows), dim))
        captions = (image(source[rows]) + NOISE * noise).astype(np.float32)
        columns = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            for name, vectors in (("image_embedding", image(rows)), ("caption_embedding", captions))
        }
        columns["is_mismatched"] = pa.array(source[rows] != rows)
        columns["true_image"] = pa.array([f"image {row}" for row in source[rows]])
        columns["image"] = pa.array([f"image {row}" for row in rows])
        pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet")


class Timed:
    """An engine that tells how long each stage took."""

    def __init__(self, engine: Any, watch: Watch) -> None:
        self._engine, self._watch = engine, watch
        self.stages: dict[str, dict[str, float]] = {}

    def run(self, work: Any, numbers: Any, what: str) -> None:
        began, cpu = time.perf_counter(), self._watch.cpu_seconds
        self._engine.run(work, numbers, what)
        time.sleep(0.6)  # for the next look
        self.stages[what] = {
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(self._watch.cpu_seconds - cpu, 1),
        }
        print(what, self.stages[what], flush=True)


def extrapolated(facts: dict[str, Any]) -> dict[str, Any]:
    """CPU hours and bytes of more pairs of 512 dimensions, by how each part grows; no larger run was made.

    Embedding and judging go with pairs × dimensions, tables with pairs. The search goes with pairs × suspects (both
    directions) × dimensions, which overrates more dimensions somewhat, as finding the best of a block does not grow.
    """
    stages, pairs = facts["stages"], facts["pairs"]
    wide, share = 512 / facts["dim"], facts["counts"]["mismatched"] / pairs
    found = {}
    for name, more in (("1 million", 10**6), ("100 million", 10**8), ("5 billion", 5 * 10**9)):
        times = more / pairs
        hours = {
            what: stages[what]["cpu_seconds"] * grows / 3600
            for what, grows in {
                "embedding shards": times * wide,
                "judging shards": times * wide,
                "finding partners": times**2 * wide,
                "writing tables": times,
            }.items()
        }
        found[name] = {
            "cpu_hours": {what: float(f"{one:.2g}") for what, one in hours.items()},
            "suspects": round(share * more),
            "search_teraflop": round(share * more * more * 512 * 2 * 2 / 1e12),
            "vectors_on_disk_gb_float16": round(2 * 512 * 2 * more / 1e9),
            "arrays_of_the_driver_gb": round(40 * more / 1e9, 2),
            "cells_of_a_plan": round(share * more) * 64,
        }
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, required=True)
    options.add_argument("--pairs", type=int, default=1_000_000)
    options.add_argument("--dim", type=int, default=64)
    options.add_argument("--ratio", type=float, default=0.03)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--engine", default="ray")
    options.add_argument("--folder", type=Path)
    options.add_argument("--costs", action="store_true", help="only work the costs out again, from the file")
    given = options.parse_args()
    if given.costs:
        facts = json.loads(given.json.read_text(encoding="utf-8"))
        given.json.write_text(json.dumps({**facts, "costs": extrapolated(facts)}, indent=1) + "\n", encoding="utf-8")
        return
    began_as = provenance()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        write_shards(folder / "shards", given.pairs, given.dim, given.ratio, seed=0)
        print("shards written", flush=True)
        with Watch() as watch, opened_engine(given.engine, processes=given.processes) as engine:
            timed = Timed(engine, watch)
            result = audit_shards(folder / "shards", folder / "audit", ShardsConfig(), timed)
        truth, found = [], []
        for shard, table in zip(
            sorted((folder / "shards").iterdir()), sorted((folder / "audit" / "audit").iterdir()), strict=True
        ):
            truth += pq.read_table(shard, columns=["true_image"])["true_image"].to_pylist()
            found += pq.read_table(table, columns=["rematch_image"])["rematch_image"].to_pylist()
    astray = [(true, one) for row, (true, one) in enumerate(zip(truth, found, strict=True)) if true != f"image {row}"]
    assert result.detection is not None
    facts = {
        **began_as,
        "pairs": given.pairs,
        "dim": given.dim,
        "ratio": given.ratio,
        "shards": -(-given.pairs // PER_SHARD),
        "engine": given.engine,
        "processes_asked_for": given.processes,
        **watch.facts(),
        "stages": timed.stages,
        "counts": result.counts,
        "mismatch_ratio": result.mismatch_ratio,
        "detection": result.detection.to_dict(),
        "true_image_suggested": sum(true == one for true, one in astray) / len(astray),
    }
    facts["costs"] = extrapolated(facts)
    given.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
