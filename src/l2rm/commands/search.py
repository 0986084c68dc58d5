"""`l2rm search`."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from l2rm.commands.command import Command, Flag
from l2rm.errors import InputError
from l2rm.summaries import hits_table


@dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Search an index: by words, by a picture, or by one of its items.

    Results are images for words and items, captions for a picture; --target says otherwise. Scores are the model's. SGR
    and SAF score a shortlist of what their vectors find.

    Examples:
      l2rm search index "a red kite"
      l2rm search index "a red kite" --target captions -k 5
      l2rm search index --image kite.jpg
      l2rm search index --like image:17 --json
    """

    index: Annotated[Path, Positional, arg(metavar="INDEX")]
    """Folder that l2rm index made."""
    text: Annotated[str, Positional, arg(metavar="WORDS")] = ""
    """What to look for."""
    image: Annotated[Path | None, arg(metavar="FILE")] = None
    """A picture to look for, instead of words."""
    like: Annotated[str | None, arg(metavar="ID")] = None
    """An item to look for, image:ID or caption:ID, instead of words."""
    target: Literal["images", "captions"] | None = None
    """What to look among."""
    k: Annotated[int, arg(aliases=["-k"])] = 10
    """Results."""
    shortlist: int = 200
    """Items that SGR and SAF score."""
    model: Annotated[Path | None, arg(metavar="RUN")] = None
    """Refuse unless this is the model that made the index."""
    json: Flag = False
    """Print JSON."""

    def run(self) -> None:
        from l2rm.search.index import Index
        from l2rm.search.queries import Query
        from l2rm.training.run import load

        given = [name for name in ("text", "image", "like") if getattr(self, name)]
        if len(given) != 1:
            raise InputError(
                f"search: {' and '.join(given) or 'nothing'} is given; give words, --image or --like, one of them"
            )
        index = Index(self.index, model=None if self.model is None else load(self.model))
        query = Query(text=self.text) if self.text else Query(picture=self.image) if self.image else None
        if query is None:
            kind, _, number = (self.like or "").partition(":")
            if kind not in ("image", "caption") or not number.isdecimal():
                raise InputError(f"like: {self.like!r} is no item; give image:ID or caption:ID, as search prints them")
            query = Query(image=int(number)) if kind == "image" else Query(caption=int(number))
        target = self.target or ("captions" if self.image else "images")
        kind_of = {"images": "image", "captions": "caption"}
        hits = index.search([query], target=kind_of[target], k=self.k, shortlist=self.shortlist)[0]  # type: ignore[arg-type]
        if self.json:
            print(json.dumps([dataclasses.asdict(hit) for hit in hits], ensure_ascii=False))
        else:
            print(hits_table(hits))
