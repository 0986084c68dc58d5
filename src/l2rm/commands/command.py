"""What every command takes, and options that several share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

DATA_HELP = (
    "A precomp folder, a table (.csv .tsv .jsonl .parquet with columns image, caption), images.npy,captions.npy, "
    "shards (a folder or pattern of WebDataset .tar or Parquet files), or openmoji:"
)
Flag = FlagCreatePairsOff[bool]
Data = Annotated[str, Positional, arg(metavar="DATA", help=DATA_HELP)]
DataOption = Annotated[str, arg(metavar="DATA", help=DATA_HELP)]
ImageRoot = Annotated[
    Path | None, arg(metavar="DIR", help="Where a table's image paths start; default: its own folder.")
]
CaptionEncoder = Annotated[
    str | None,
    arg(
        metavar="NAME",
        help="Embed captions first, by a sentence encoder: minilm-l6 (English; extra quickstart), or one of "
        "transformers by its folder or as OWNER/MODEL. Words that no training pair has then mean something too.",
    ),
]
SkipBad = Annotated[Flag, arg(help="Leave bad rows out and list them, instead of stopping at the first.")]
Device = Annotated[str, arg(help="auto, or a torch device.")]


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """What every command takes."""

    quiet: Flag = False
    """Say only what came out and what is wrong."""
    debug: Flag = False
    """Show the traceback of an error."""

    @property
    def lighter(self) -> str:
        """What to do where memory does not suffice."""
        return "free some memory, or give fewer pairs at a time"

    @abstractmethod
    def run(self) -> None:
        """Do it, and print what came out."""
