"""What fools similarity, kind by kind: each looks at pairs in a file of its own and says so in one form."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from l2rm.auditing.duplicate_captions import find_duplicate_captions
from l2rm.auditing.near_duplicates import NearDuplicates
from l2rm.auditing.uninformative import find_uninformative_captions
from l2rm.data.formats import are_made_up
from l2rm.data.pairs import Pairs
from l2rm.evaluation.scores import Scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Issue:
    """One kind of trouble, row by row.

    Attributes:
        name: as in the table's columns `is_<name>_issue` and `<name>_score`.
        is_issue: `(rows,)` bool.
        score: `(rows,)` in [0, 1]: 1 is as it should be, 0 the worst.
        group: `(rows,)` rows of one number belong together (copies of one picture, say); −1 for those without trouble.
    """

    name: str
    is_issue: NDArray[np.bool_]
    score: NDArray[np.float64]
    group: NDArray[np.int64]

    def columns(self) -> dict[str, pa.Array]:
        """For the table."""
        return {
            f"is_{self.name}_issue": pa.array(self.is_issue, pa.bool_()),
            f"{self.name}_score": pa.array(self.score, pa.float64()),
        }

    def groups(self, limit: int) -> list[NDArray[np.int64]]:
        """Rows of the largest groups, worst first within each."""
        numbers, counts = np.unique(self.group[self.is_issue], return_counts=True)
        largest = numbers[np.argsort(-counts, kind="stable")][:limit]
        rows = [np.flatnonzero(self.is_issue & (self.group == number)) for number in largest]
        return [one[np.argsort(self.score[one], kind="stable")] for one in rows]


def find_issues(pairs: Pairs, scores: Scores, copies: NearDuplicates | None, *, seed: int = 0) -> tuple[Issue, ...]:
    """All kinds that can be looked for in these pairs.

    Captions are looked at where they are words: those of bare embeddings are names that we made up.

    Args:
        pairs: as audited.
        scores: of all images and captions, to see whether a text that many pictures share says anything of them.
        copies: pictures that are the same, where they could be compared.
        seed: draws the images that a text is tried on.
    """
    issues = []
    if not are_made_up(pairs.captions):
        found = find_duplicate_captions(pairs, None if copies is None else copies.group)
        issues.append(Issue(name="duplicate_caption", **_fields(found)))
        issues.append(
            Issue(name="uninformative_caption", **_fields(find_uninformative_captions(pairs, scores, seed=seed)))
        )
    if copies is not None:
        of_row = pairs.image_of
        issues.append(
            Issue(
                name="near_duplicate_image",
                is_issue=copies.is_issue[of_row],
                score=copies.score[of_row],
                group=np.where(copies.is_issue, copies.group, -1)[of_row],
            )
        )
    return tuple(issues)


def _fields(found: tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]) -> dict[str, Any]:
    return dict(zip(("is_issue", "score", "group"), found, strict=True))
