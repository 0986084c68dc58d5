"""What the report shows of duplicates and of captions that say nothing: a few groups of each kind, with pictures."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from l2rm.auditing.pictures import thumbnail

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit
    from l2rm.auditing.issues import Issue

GROUPS = 6
MEMBERS = 4
LONGEST = 140

_TOLD = {
    "duplicate_caption": (
        "One caption on different images",
        "The same words on pictures that are not the same: a generic title, or a row that was copied down. Such a "
        "caption cannot tell its pictures apart.",
    ),
    "uninformative_caption": (
        "Captions that say nothing",
        "File names, bare numbers, and texts shared by many pictures that fit theirs no better than any other. They "
        "are neither right nor wrong; write new ones or leave them out.",
    ),
    "near_duplicate_image": (
        "The same picture more than once",
        "The same file, or nearly the same pixels. Copies with different captions contradict each other; copies on "
        "both sides of a split flatter a test.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """A row of a group: its image, pixels where there are any, and its caption."""

    name: str
    uri: str | None
    caption: str


@dataclass(frozen=True, kw_only=True)
class FlagSection:
    """One kind of trouble: how many rows in how many groups, and a few of them."""

    name: str
    title: str
    text: str
    rows: int
    groups: int
    one_caption: bool
    shown: tuple[tuple[int, tuple[Member, ...]], ...]


def flag_sections(audit: "Audit") -> list[FlagSection]:
    """A section for every kind of which there is any, the largest groups first."""
    return [_section(audit, issue) for issue in audit.issues if issue.is_issue.any()]


def _section(audit: "Audit", issue: "Issue") -> FlagSection:
    title, text = _TOLD[issue.name]
    shown = []
    for rows in issue.groups(GROUPS):
        _, first = np.unique(audit.pairs.image_of[rows], return_index=True)
        shown.append((len(rows), tuple(_member(audit, int(row)) for row in rows[np.sort(first)][:MEMBERS])))
    return FlagSection(
        name=issue.name,
        title=title,
        text=text,
        rows=int(issue.is_issue.sum()),
        groups=len(np.unique(issue.group[issue.is_issue])),
        one_caption=issue.name != "near_duplicate_image",
        shown=tuple(shown),
    )


def _member(audit: "Audit", row: int) -> Member:
    image, caption = int(audit.pairs.image_of[row]), audit.pairs.captions[row]
    return Member(
        name=audit.pairs.images[image],
        uri=thumbnail(audit.pairs.image_path(image)),
        caption=caption if len(caption) <= LONGEST else caption[: LONGEST - 1].rstrip() + "…",
    )
