"""What the review's API takes and tells, as JSON."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from l2rm.auditing.decisions import Answer
from l2rm.auditing.queue import ReviewQueue
from l2rm.data.decided import Verdict

LONGEST_TEXT = 2_000
"""Characters of a caption that are sent; nobody reads further."""

Row = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]


class ImageView(BaseModel):
    """An image by number and name, and some of its captions."""

    image: int
    name: str
    captions: list[str]


class PairView(BaseModel):
    """A pair as the page shows it. `row` names it in requests; `version` is what a decision about it must have seen."""

    row: int
    rank: int
    pair_id: str
    caption: str
    given: ImageView
    probability: float | None
    said: Verdict
    suggested: ImageView | None
    confidence: float | None
    suggested_caption: str
    decision: Verdict | Literal[""]
    new_image: ImageView | None
    new_caption: str
    version: int


class Progress(BaseModel):
    """How many pairs there are and how many are decided; `suspects` are those that the audit would not keep."""

    pairs: int
    decided: int
    suspects: int
    suspects_decided: int
    keep: int
    rematch: int
    drop: int
    strays: int
    undoable: int


class PageView(BaseModel):
    """Pairs in order of suspicion, and how many the filter lets through in all."""

    pairs: list[PairView]
    total: int


class Summary(BaseModel):
    """What is under review."""

    source: str
    has_images: bool
    has_index: bool
    version: int
    progress: Progress


class DecisionIn(BaseModel):
    """A decision: of a rematch, the `suggested image` or the `suggested caption`, or any `image` by its number."""

    row: Row
    verdict: Verdict | Literal[""]
    partner: Literal["image", "caption"] = "image"
    image: Row | None = None
    seen: Annotated[int, Field(ge=0, lt=2**62)]
    tab: Name
    request: Name


class UndoIn(BaseModel):
    """Take back the last decision of a tab."""

    tab: Name
    request: Name


class Outcome(BaseModel):
    """How the pair stands now. `conflict`: it was decided elsewhere since, and nothing was changed."""

    pair: PairView | None
    conflict: bool
    progress: Progress


class Changes(BaseModel):
    """Pairs decided about since a version, here or elsewhere."""

    pairs: list[PairView]
    version: int
    progress: Progress


class View:
    """Rows and images of a queue as the API tells them."""

    def __init__(self, queue: ReviewQueue) -> None:
        self.queue, self.folder = queue, queue.folder
        self._number = {name: place for place, name in enumerate(queue.folder.images)}

    def image(self, number: int, *, but: int = -1) -> ImageView:
        captions = [_short(text, 280) for text in self.folder.captions_of(number, but=but)]
        return ImageView(image=number, name=self.folder.images[number], captions=captions)

    def pair(self, row: int) -> PairView:
        queue, folder = self.queue, self.folder
        choice, suggested = queue.choice(row), int(folder.rematch_image_of[row])
        new = self._number.get(choice.new_image)
        return PairView(
            row=row,
            rank=int(queue.rank_of[row]),
            pair_id=folder.pair_ids[row],
            caption=_short(folder.captions[row]),
            given=self.image(int(folder.image_of[row]), but=row),
            probability=_number_or_none(folder.match_probability[row]),
            said=queue.said(row),
            suggested=self.image(suggested) if suggested >= 0 else None,
            confidence=_number_or_none(folder.confidence[row]),
            suggested_caption=_short(folder.rematch_captions[row]),
            decision=choice.verdict,
            new_image=None if new is None else self.image(new),
            new_caption=_short(choice.new_caption),
            version=queue.version(row),
        )

    def progress(self, tab: str) -> Progress:
        return Progress(**self.queue.counts(), undoable=self.queue.store.undoable(tab))

    def outcome(self, answer: Answer, tab: str) -> Outcome:
        progress = self.progress(tab)  # reads what is new first
        row = self.queue.row_of.get(answer.standing.pair.pair_id)
        return Outcome(
            pair=None if row is None else self.pair(row),
            conflict=answer.conflict,
            progress=progress,
        )


def _number_or_none(value: float) -> float | None:
    return None if value != value else float(value)


def _short(text: str, limit: int = LONGEST_TEXT) -> str:
    """A text of bounded length, without the control characters that no page can show."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", " ", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
