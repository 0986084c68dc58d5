"""What commands print of their results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit
    from l2rm.auditing.rematch import Rematched
    from l2rm.evaluation.metrics import Metrics
    from l2rm.sources import TrainingData
    from l2rm.training.run import Run


def training_summary(data: "TrainingData") -> str:
    """The size of every split, and what is known of mismatches."""
    lines = [f"{split}: {images} images, {captions} captions" for split, (images, captions) in data.sizes.items()]
    if data.level == "none":
        lines.append("train is known to be matched")
    elif data.level is not None:
        lines.append(f"train is known to be mismatched at level {data.level}, ratio {data.ratio:.3g}")
    return "\n".join(lines)


def run_names(runs: Sequence["Run"]) -> list[str]:
    """What rows of a table call each run and, of several, their ensemble."""
    similarities = [run.config.model.similarity for run in runs]
    names = [f"{run.folder} ({similarity})" for run, similarity in zip(runs, similarities, strict=True)]
    if len(runs) > 1:
        sgraf = sorted(similarities) == ["saf", "sgr"]
        names.append("SGRAF, the mean of both" if sgraf else f"mean of {len(runs)} runs")
    return names


def metrics_table(names: Sequence[str], metrics: Sequence["Metrics"]) -> str:
    """Recalls both ways and their sum, a row each, under a line that tells what was ranked."""
    images, captions = metrics[0].images, metrics[0].captions
    if metrics[0].protocol == "folds5":
        title = f"folds5: mean of five folds of {images // 5} images ({images} images, {captions} captions)"
    else:
        title = f"{metrics[0].protocol}: among all {images} images, {captions} captions"
    width = max(map(len, names))
    recalls = "".join(f"{name:>7}" for name in ("R@1", "R@5", "R@10"))
    lines = [title, f"{'':<{width}}{'image to caption':>21}  {'caption to image':>21}"]
    lines.append(f"{'':<{width}}{recalls}  {recalls}{'rSum':>8}")
    for name, row in zip(names, metrics, strict=True):
        ways = ("".join(f"{cell:>7.1f}" for cell in (way.r1, way.r5, way.r10)) for way in (row.i2t, row.t2i))
        lines.append(f"{name:<{width}}{'  '.join(ways)}{row.rsum:>8.1f}")
    return "\n".join(lines)


def audit_summary(audit: "Audit") -> str:
    """What the audit found, and how right it is where the truth is known."""
    total, suspected = len(audit.pairs), int(audit.is_mismatched.sum())
    rematch = int((audit.decision == "rematch").sum())
    text = f"{total} pairs, {suspected} suspected to be mismatched ({100 * suspected / total:.1f} %)"
    text += f": rematch {rematch}, drop {suspected - rematch}"
    if found := audit.detection:
        text += f"\nagainst the truth: AUROC {found.auroc:.3f}, average precision {found.ap:.3f}, F1 {found.f1:.3f}"
    if hits := audit.rematch_hits:
        text += f"\ntrue partner suggested first {100 * hits.hit1:.1f} %, among ten {100 * hits.hit10:.1f} %"
    return text


def rematch_summary(rematched: "Rematched") -> str:
    """What becomes of the pairs, and how right it is where the truth is known."""
    counts, plan = rematched.counts, rematched.plan
    text = f"{len(rematched.pairs_given)} pairs: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    if plan is not None:
        told = "" if plan.converged else f"; NOT converged, marginal error {plan.marginal_error:.1g}"
        text += (
            f"\nplan: {plan.mass:.0f} of {plan.weights.sum():.0f} mismatched captions moved, room for "
            f"{plan.capacities.sum():.0f}, reg {rematched.reg:.3g}{told}"
        )
    pairs = rematched.pairs_given
    if hits := rematched.rematch_hits:
        text += f"\ntrue partner suggested first {100 * hits.hit1:.1f} %, among ten {100 * hits.hit10:.1f} %"
    if pairs.is_mismatched is not None and pairs.true_image_of is not None:
        left = rematched.decision != "drop"
        wrong = (rematched.image_of != pairs.true_image_of)[left]
        after = f"{100 * wrong.mean():.1f} % of what is left" if left.any() else "nothing is left"
        text += f"\nmismatched before: {100 * pairs.is_mismatched.mean():.1f} %; after: {after}"
    return text
