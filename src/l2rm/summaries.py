"""What commands print of their results."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit
    from l2rm.evaluation.metrics import Metrics
    from l2rm.sources import TrainingData


def training_summary(data: "TrainingData") -> str:
    """The size of every split, and what is known of mismatches."""
    lines = [f"{split}: {images} images, {captions} captions" for split, (images, captions) in data.sizes.items()]
    if data.level is not None:
        lines.append(f"train is known to be mismatched at level {data.level}, ratio {data.ratio:.3g}")
    return "\n".join(lines)


def metrics_table(metrics: "Metrics") -> str:
    """Recalls both ways, and their sum."""
    lines = [f"{'':<17}" + "".join(f"{name:>8}" for name in ("R@1", "R@5", "R@10", "median", "mean"))]
    for name, way in (("image to caption", metrics.i2t), ("caption to image", metrics.t2i)):
        cells = (way.r1, way.r5, way.r10, way.medr, way.meanr)
        lines.append(f"{name:<17}" + "".join(f"{cell:>8.1f}" for cell in cells))
    lines.append(f"rSum {metrics.rsum:.1f}  ({metrics.images} images, {metrics.captions} captions, {metrics.protocol})")
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
