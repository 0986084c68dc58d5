"""What a reviewer sees: the pairs of an audit in order of suspicion, filtered, with what was decided about them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from l2rm.auditing.decisions import Answer, Choice, DecisionStore, Pair, Standing
from l2rm.auditing.folder import AuditFolder
from l2rm.data.decided import STORE, VERDICTS, Verdict

Show = Literal["undecided", "decided", "keep", "rematch", "drop", "all"]
Said = Literal["anything", "mismatched", "keep", "rematch", "drop"]
UNDECIDED = Choice(verdict="")
_CODE: dict[str, int] = {"": 0, **{verdict: number for number, verdict in enumerate(VERDICTS, start=1)}}


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which pairs to show.

    Attributes:
        show: by what was decided.
        said: by what the audit says; `mismatched` is anything but `keep`.
        words: that caption, image, pair id or suggested caption hold, all of them, in either case.
    """

    show: Show = "undecided"
    said: Said = "anything"
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Rows in order of suspicion, and how many the filter lets through in all."""

    rows: tuple[int, ...]
    total: int


class ReviewQueue:
    """An audit folder and its decisions, for many threads at once.

    Decisions of other processes show up by themselves: every question first reads what is new in the store.
    """

    def __init__(self, folder: AuditFolder, *, make_store: bool = True) -> None:
        """Read an audit, and the decisions beside it.

        Args:
            folder: the audit.
            make_store: make the store of decisions where there is none; without, the queue is for reading only.

        Raises:
            InputError: the store cannot be opened or made.
        """
        self.folder = folder
        store = folder.folder / STORE
        self.store = DecisionStore(store if make_store or store.exists() else Path(":memory:"))
        self.row_of = {pair_id: row for row, pair_id in enumerate(folder.pair_ids)}
        self.rank_of = np.empty(len(folder), dtype=np.int64)
        self.rank_of[folder.order] = np.arange(len(folder))
        self.strays = 0
        self._decided = np.zeros(len(folder), dtype=np.int8)  # codes, in order of suspicion
        self._said = np.array([_CODE[verdict] for verdict in folder.verdicts], dtype=np.int8)[folder.order]
        self._standing: dict[int, Standing] = {}
        self._strays: set[str] = set()
        self._images = {"", *folder.images}
        self._version = 0
        self._lock = threading.Lock()
        self._texts: list[str] | None = None
        self._with_words = lru_cache(maxsize=32)(self._search)

    def warm_up(self) -> None:
        """Prepare what the first page and the first search would otherwise wait for."""
        self._search_texts()
        _ = self.folder.rows_of_image

    def refresh(self) -> int:
        """Take in what was decided since the last time, here or elsewhere; the newest version."""
        with self._lock:
            for standing in self.store.since(self._version):
                self._version = standing.version
                row = self.row_of.get(standing.pair.pair_id)
                if row is not None:
                    self._standing[row] = standing
                    self._decided[self.rank_of[row]] = _CODE[self._valid(row).verdict]
                if row is None or not self._fits(row, standing):
                    self._strays.add(standing.pair.pair_id)
                else:
                    self._strays.discard(standing.pair.pair_id)
            self.strays = len(self._strays)
            return self._version

    def pair(self, row: int) -> Pair:
        """The pair as the audit has it."""
        folder = self.folder
        return Pair(
            pair_id=folder.pair_ids[row], image=folder.images[folder.image_of[row]], caption=folder.captions[row]
        )

    def choice(self, row: int) -> Choice:
        """What was decided about a row, as of the last `refresh`."""
        return self._valid(row)

    def version(self, row: int) -> int:
        """The version of a row's decision, as of the last `refresh`."""
        standing = self._standing.get(row)
        return 0 if standing is None else standing.version

    def page(self, wanted: Filter, *, after: int = -1, limit: int = 30) -> Page:
        """Rows that the filter lets through, those of ranks above `after`."""
        self.refresh()
        ranks = np.flatnonzero(self._mask(wanted))
        start = int(np.searchsorted(ranks, after, side="right"))
        return Page(rows=tuple(self.folder.order[ranks[start : start + limit]].tolist()), total=len(ranks))

    def changes(self, since: int, limit: int = 1000) -> tuple[list[int], int]:
        """Rows decided about after a version, and the version up to which that is told."""
        found = self.store.since(since)[:limit]
        self.refresh()  # afterwards: no row may be told as it was before its version
        known = (self.row_of.get(standing.pair.pair_id) for standing in found)
        return [row for row in known if row is not None], found[-1].version if found else since

    def counts(self) -> dict[str, int]:
        """How many pairs there are, how many look mismatched, and how many of each are decided, and how."""
        self.refresh()
        suspects = self._said != _CODE["keep"]
        return {
            "pairs": len(self.folder),
            "decided": int((self._decided > 0).sum()),
            "suspects": int(suspects.sum()),
            "suspects_decided": int((self._decided[suspects] > 0).sum()),
            **{verdict: int((self._decided == _CODE[verdict]).sum()) for verdict in VERDICTS},
            "strays": self.strays,
        }

    def decide(self, row: int, choice: Choice, *, seen: int, tab: str, request: str) -> Answer:
        """`DecisionStore.decide` about a row."""
        return self.store.decide(self.pair(row), choice, seen=seen, tab=tab, request=request)

    def images(self, words: str, limit: int = 24) -> list[int]:
        """Images whose name, or one of whose captions, holds the words; those of the likeliest pairs first."""
        hits = self.folder.order[np.flatnonzero(self._with_words(tuple(words.casefold().split()), False))][::-1]
        return list(dict.fromkeys(self.folder.image_of[hits].tolist()))[:limit]

    def decisions(self) -> dict[int, Choice]:
        """Every decision that is in force, by row."""
        self.refresh()
        rows = self.folder.order[np.flatnonzero(self._decided)]
        return {int(row): self._valid(int(row)) for row in np.sort(rows)}

    def said(self, row: int) -> Verdict:
        """What the audit says of a row."""
        return VERDICTS[_CODE[self.folder.verdicts[row]] - 1]

    def _valid(self, row: int) -> Choice:
        """The decision that counts."""
        standing = self._standing.get(row)
        return UNDECIDED if standing is None or not self._fits(row, standing) else standing.choice

    def _fits(self, row: int, standing: Standing) -> bool:
        """Whether the pair is the one that was decided about, and the image that it was to get is still there."""
        return standing.pair == self.pair(row) and standing.choice.new_image in self._images

    def _mask(self, wanted: Filter) -> NDArray[np.bool_]:
        mask = np.ones(len(self.folder), dtype=bool)
        if wanted.show == "undecided":
            mask &= self._decided == 0
        elif wanted.show == "decided":
            mask &= self._decided > 0
        elif wanted.show != "all":
            mask &= self._decided == _CODE[wanted.show]
        if wanted.said == "mismatched":
            mask &= self._said != _CODE["keep"]
        elif wanted.said != "anything":
            mask &= self._said == _CODE[wanted.said]
        words = tuple(wanted.words.casefold().split())
        return mask & self._with_words(words, True) if words else mask

    def _search(self, words: Sequence[str], suggestions: bool) -> NDArray[np.bool_]:
        """Which pairs, in order of suspicion, hold all the words, in what is suggested too or in their own texts."""
        found = np.array([all(word in text for word in words) for text in self._search_texts()], dtype=bool)
        if not suggestions:
            for rank in np.flatnonzero(found):
                own = self._search_texts()[rank].rsplit("\n\n", 1)[0]
                found[rank] = all(word in own for word in words)
        return found

    def _search_texts(self) -> list[str]:
        """What is searched of each pair, in order of suspicion."""
        if self._texts is None:
            folder = self.folder
            self._texts = [
                (
                    f"{folder.captions[row]}\n{folder.images[folder.image_of[row]]}\n{folder.pair_ids[row]}"
                    f"\n\n{' '.join(folder.rematch_captions[row].split())}"
                ).casefold()
                for row in folder.order
            ]
        return self._texts
