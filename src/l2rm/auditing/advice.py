"""What to do about suspects whose suggested partners are not sure enough."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit

LOWER = (0.4, 0.3, 0.2, 0.1)
"""Thresholds that are tried."""
ENOUGH = 0.1
"""A threshold is worth telling where it rematches this share of the suspects, at least."""


def rematch_advice(audit: "Audit") -> str | None:
    """One sentence on suspects without a sure partner; None where at least half of the suspects have one.

    It tells how many have one, which lower threshold rematches how many, and, where confidences are calibrated,
    what share of those partners is right by the audit's own reckoning.

    Args:
        audit: of any kind.

    Example:
        >>> rematch_advice(audit)  # doctest: +SKIP
        '38 of 681 suspects have a partner of confidence 0.5 or more; --rematch-threshold 0.3 rematches 200, of which
        about 42 % rightly'
    """
    confidence = audit.rematch_confidence[audit.is_mismatched]
    threshold, suspects = audit.rematch_threshold, len(confidence)
    sure = int((confidence >= threshold).sum())
    if 2 * sure >= suspects:
        return None
    told = f"{sure:,} of {suspects:,} suspects have a partner of confidence {threshold:g} or more"
    for lower in LOWER:
        taken = confidence[confidence >= lower]
        if lower < threshold and len(taken) > sure and len(taken) >= ENOUGH * suspects:
            right = "" if not audit.calibrated else f", of which about {100 * float(np.mean(taken)):.0f} % rightly"
            return f"{told}; --rematch-threshold {lower:g} rematches {len(taken):,}{right}"
    return f"{told}, and no threshold of {LOWER[-1]:g} or more helps many: the judge cannot tell which is right"
