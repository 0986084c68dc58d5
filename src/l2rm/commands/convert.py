"""`l2rm convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from l2rm.commands.command import Command
from l2rm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Make a run of a checkpoint of the public code (L2RM, SGRAF and their kin), or such a checkpoint of a run.

    The checkpoint's pickle is not executed: tensors and the options are read, anything else in it is refused by name.
    The converted run evaluates and audits like any other. The other way round, RUN --out FILE.pth.tar also writes the
    vocabulary, as FILE_vocab.json.

    Examples:
      l2rm convert model_best.pth.tar --vocab f30k_precomp_vocab.json --out runs/published
      l2rm convert runs/mine --out mine.pth.tar
    """

    source: Annotated[Path, Positional, arg(metavar="CHECKPOINT|RUN")]
    """model_best.pth.tar, or a folder that l2rm train left."""
    out: Annotated[Path, arg(metavar="RUN|FILE")]
    """The RUN folder, or the checkpoint, to be written."""
    vocab: Annotated[Path | None, arg(metavar="V.json")] = None
    """The vocabulary that the checkpoint was trained with."""

    def run(self) -> None:
        from l2rm.training.published import convert, export
        from l2rm.training.run import load_run

        if self.source.is_dir():
            if self.vocab is not None:
                raise InputError("vocab: a RUN has its own; leave --vocab out, it is written beside the checkpoint")
            beside = export(load_run(self.source), self.out)
            print(f"written to {self.out}, its vocabulary to {beside}")
            return
        if self.vocab is None:
            raise InputError(
                "vocab: is not given; give the vocabulary that the checkpoint was trained with: --vocab V.json"
            )
        run = convert(self.source, self.vocab, self.out)
        model, shape = run.config.model, run.model.shape
        print(
            f"{model.similarity}, {shape.regions} regions of {shape.image_dim}, embed {model.embed_dim}, "
            f"{shape.vocabulary_size} words"
        )
        print(f"the run is in {self.out}; next: l2rm evaluate {self.out} --data DATA")
