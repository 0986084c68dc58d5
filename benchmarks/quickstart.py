"""The quick start over several seeds.

`python benchmarks/quickstart.py --out FOLDER --json benchmarks/results/quickstart.json`

Every seed has its own split, corruption and initial weights. A folder that holds finished runs is not trained again.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from provenance import provenance

from l2rm.quickstart import quickstart
from l2rm.training.run import write_json


def main() -> None:
    """Run, print means and deviations, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    options = parser.parse_args()
    rows = [quickstart(out=options.out / f"seed{seed}", seed=seed) for seed in options.seeds]
    rsums = {method: [row[method]["rsum"] for row in rows] for method in ("plain", "l2rm", "oracle")}
    means = {method: statistics.mean(values) for method, values in rsums.items()}
    result: dict[str, Any] = {
        "data": "OpenMoji, EfficientNet-Lite0 pooled features, MiniLM embeddings of English names, 40 % of the "
        "training pictures mismatched (image level)",
        **provenance(),
        "rsum": {name: {"mean": means[name], "stdev": statistics.stdev(values)} for name, values in rsums.items()},
        "gap_closed": (means["l2rm"] - means["plain"]) / (means["oracle"] - means["plain"]),
        "auroc": statistics.mean(row["detection"]["auroc"] for row in rows),
        "rows": rows,
    }
    write_json(options.json, result)
    for method in rsums:
        print(f"{method:<8}{means[method]:6.1f} ± {statistics.stdev(rsums[method]):.1f}")
    print(f"gap closed {100 * result['gap_closed']:.0f} %, AUROC {result['auroc']:.3f}")


if __name__ == "__main__":
    main()
