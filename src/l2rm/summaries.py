"""What commands print of their results."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit
    from l2rm.auditing.rematch import Rematched
    from l2rm.evaluation.metrics import Metrics
    from l2rm.scale.folder import ShardsAudit
    from l2rm.search.index import Index
    from l2rm.search.queries import Hit
    from l2rm.sources import TrainingData
    from l2rm.training.run import Run


def training_summary(data: "TrainingData") -> str:
    """The size of every split, and what is known of mismatches."""
    lines = [f"{split}: {images} images, {captions} captions" for split, (images, captions) in data.sizes.items()]
    if data.level == "none":
        lines.append("train is known to be matched")
    elif data.level is not None:
        lines.append(f"train is known to be mismatched at level {data.level}, ratio {data.ratio:.3g}")
    if decided := data.facts.get("decisions"):
        line = f"decided: keep {decided['keep']}, rematch {decided['rematch']}, drop {decided['drop']}"
        if moved := decided["elsewhere"]:
            line += f" (of those, {moved} moved to another split and left out)"
        lines.append(line)
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
    from l2rm.auditing.advice import rematch_advice

    total, suspected = len(audit.pairs), int(audit.is_mismatched.sum())
    rematch = int((audit.decision == "rematch").sum())
    text = f"{total} pairs, {suspected} suspected to be mismatched ({100 * suspected / total:.1f} %)"
    text += f": rematch {rematch}, drop {suspected - rematch}"
    if advice := rematch_advice(audit):
        text += f"\n{advice}"
    if ratio := audit.mismatch_ratio:
        text += (
            f"\nestimated share of mismatched pairs: {100 * ratio.estimate:.1f} % ({100 * ratio.level:.0f} % interval "
            f"{100 * ratio.low:.1f} to {100 * ratio.high:.1f} %, {ratio.method}, bootstrap over images)"
        )
    for issue in audit.issues:
        if count := int(issue.is_issue.sum()):
            text += f"\n{issue.name.replace('_', ' ')}: {count} pairs"
    if audit.pairs.left_out:
        text += f"\nleft out as unusable: {len(audit.pairs.left_out)} rows, listed in left_out.csv"
    if found := audit.detection:
        text += f"\nagainst the truth: AUROC {found.auroc:.3f}, average precision {found.ap:.3f}, F1 {found.f1:.3f}"
    if hits := audit.rematch_hits:
        text += f"\ntrue partner suggested first {100 * hits.hit1:.1f} %, among ten {100 * hits.hit10:.1f} %"
    return text


def index_summary(index: "Index") -> str:
    """What an index holds, and how well it is searched where that is approximate."""
    images, captions = (len(index.items[kind]) for kind in ("image", "caption"))
    lines = [f"{images} images, {captions} captions, {index.manifest.dim} dimensions"]
    for kind, facts in index.manifest.approximate.items():
        lines.append(
            f"{kind}s are searched by FAISS, {facts['probes']} of {facts['lists']} lists: it finds "
            f"{100 * facts['recall']:.1f} % of the exact first ten of {facts['queries']} held queries"
        )
    asked = '"words"' if index.manifest.fingerprint is not None else f"--like image:{index.items['image'].ids[0]}"
    lines.append(
        f"the index is in {index.folder}; next: l2rm serve {index.folder}, or l2rm search {index.folder} {asked}"
    )
    return "\n".join(lines)


def hits_table(hits: Sequence["Hit"]) -> str:
    """A line a result: score, item, picture, and what it is called."""
    if not hits:
        return "nothing found"
    items = [f"{hit.kind}:{hit.id}" for hit in hits]
    widths = max(map(len, items)), max(len(hit.name) for hit in hits)
    return "\n".join(
        f"{hit.score:7.3f}  {item:<{widths[0]}}  {hit.name:<{widths[1]}}  {' | '.join(hit.captions)}"
        for item, hit in zip(items, hits, strict=True)
    )


def rematch_summary(rematched: "Rematched") -> str:
    """What becomes of the pairs, and how right it is where the truth is known."""
    counts, plan = rematched.counts, rematched.partners.plan
    text = f"{len(rematched.pairs_given)} pairs: " + ", ".join(f"{name} {count}" for name, count in counts.items())
    if plan is not None:
        told = "" if plan.converged else f"; NOT converged, marginal error {plan.marginal_error:.1g}"
        text += (
            f"\nplan: {plan.mass:.0f} of {plan.weights.sum():.0f} mismatched captions moved, room for "
            f"{plan.capacities.sum():.0f}, reg {rematched.partners.reg:.3g}{told}"
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


def shards_summary(audit: "ShardsAudit") -> str:
    """What an audit of shards counted, and how right it is where the truth is known."""
    counts = audit.counts
    lines = [
        f"{counts['pairs']:,} pairs of {counts['images']:,} images: {counts['mismatched']:,} look mismatched "
        f"(ratio {audit.mismatch_ratio:.1%})",
        f"keep {counts['keep']:,}, rematch {counts['rematch']:,}, drop {counts['drop']:,}",
    ]
    if counts["left_out"]:
        lines.append(f"left out as unusable: {counts['left_out']:,} rows, listed in left_out.csv")
    if audit.detection is not None:
        lines.append(f"against the truth: AUROC {audit.detection.auroc:.4f}, F1 {audit.detection.f1:.4f}")
    return "\n".join(lines)
