"""`l2rm rematch`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from l2rm.commands.command import Command, Data, Device, Flag, ImageRoot, SkipBad
from l2rm.errors import InputError
from l2rm.summaries import rematch_summary

if TYPE_CHECKING:
    from l2rm.auditing.rematch import Rematched
    from l2rm.sources import DataConfig


@dataclass(frozen=True, kw_only=True)
class Rematch(Command):
    """Repair a data set: give mismatched captions the images they fit, all at once, and drop what fits none.

    Judges by a trained model (--model) or by similarities from elsewhere (--similarity), images × captions in DATA's
    order; all rows of a table or of embeddings, the train split of a folder with several. TABLE can be read as DATA. Of
    pairs that RUN was trained on, the training's own match probabilities count. Nothing is overwritten.

    Examples:
      l2rm rematch pairs.csv --model runs/mine --dry-run
      l2rm rematch pairs.csv --model runs/mine --out repaired.csv
      l2rm rematch f30k_precomp --mismatch image_40.npy --model runs/f30k-40 --out repaired.npy
    """

    data: Data
    out: Annotated[Path | None, arg(metavar="TABLE")] = None
    """.csv .tsv .jsonl .parquet for a table; .npy for an index file, in which dropped captions keep their image."""
    model: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder that l2rm train left."""
    similarity: Annotated[Path | None, arg(metavar="FILE.npy")] = None
    """Similarities (images, captions) instead of a model."""
    dry_run: Flag = False
    """Only count and print; write nothing."""
    split: str | None = None
    """The split to rematch."""
    mismatch: Annotated[Path | None, arg(metavar="INDEX.npy")] = None
    """Rematch the pairs as this index file mismatches them, and measure how often the true image is found."""
    keep_threshold: float = 0.5
    """Keep a pair whose match probability is at least this."""
    rematch_threshold: float = 0.5
    """Rematch a pair that is not kept where the confidence in its new image is at least this; drop it otherwise."""
    capacity: Annotated[int | None, arg(metavar="N")] = None
    """Captions that an image has room for; without it, as many as each is given now."""
    level: Literal["auto", "image", "caption"] = "auto"
    """image: captions that are given one image went astray together, and go to a new one together. caption: each by
    itself. auto: as the pairs of RUN were divided, else caption."""
    wording: float | None = None
    """How much the words of an image's other captions count beside the scores, in standard deviations, where each
    caption goes by itself; without it, as in RUN's training, else not at all."""
    candidates: int = 64
    """Images that a caption may choose from."""
    share: float | None = None
    """How much of the mismatched captions to move at most; without it, estimated."""
    keep_dropped: Flag = False
    """Leave dropped rows in the table, with the image that they had; the column decision tells them."""
    webdataset_filter: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write what to do with each sample of a WebDataset: .jsonl a line a pair, .txt the keys to keep."""
    seed: int = 0
    """Draws the matched pairs that confidences are learned from."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    device: Device = "auto"

    def run(self) -> None:
        from l2rm.auditing.rematch_files import write_filter, write_rematched
        from l2rm.sources import DataConfig

        self._check()
        data = DataConfig(source=self.data, image_root=self.image_root, skip_bad=self.skip_bad, mismatch=self.mismatch)
        self._check_index(data)
        result = self._judge(data)
        print(rematch_summary(result))
        if self.dry_run:
            print("dry run: nothing is written")
            return
        if self.out is not None:
            rows = write_rematched(result, self.out, keep_dropped=self.keep_dropped)
            print(f"{rows} rows written to {self.out}" + self._advice(result, self.out))
        if self.webdataset_filter is not None:
            unlisted = write_filter(result, self.webdataset_filter)
            note = f"; {unlisted} kept samples are not listed, as other shards have their keys: .jsonl tells shards"
            print(f"filter written to {self.webdataset_filter}" + note * bool(unlisted))

    def _check(self) -> None:
        from l2rm.auditing.rematch_files import FILTERS, INDEX, check_new
        from l2rm.data.tables import SUFFIXES

        if (self.model is None) == (self.similarity is None):
            raise InputError(
                "rematch: what to judge by is open; give --model RUN or --similarity FILE.npy, one of them"
            )
        if self.out is None and self.webdataset_filter is None and not self.dry_run:
            raise InputError("rematch: nowhere to write to; give --out TABLE, or --dry-run to only count")
        if self.out is not None:
            check_new(self.out, (*SUFFIXES, INDEX))
        if self.webdataset_filter is not None:
            check_new(self.webdataset_filter, FILTERS)
            if self.out is not None and self.out.absolute() == self.webdataset_filter.absolute():
                raise InputError(f"{self.out}: is table and filter at once; give the filter another name")

    def _check_index(self, data: "DataConfig") -> None:
        """An index file of a split that was only drawn would fit nothing."""
        from l2rm.data.formats import read_pairs

        if self.out is None or self.out.suffix.lower() != ".npy" or self.split is None or data.is_folder:
            return
        if read_pairs(data.source, image_root=data.image_root, skip_bad=data.skip_bad).splits is None:
            raise InputError(
                f"{self.out}: an index file of DATA without splits is for all rows; leave out --split, or write a table"
            )

    def _judge(self, data: "DataConfig") -> "Rematched":
        from l2rm.auditing.learned import verdict
        from l2rm.auditing.rematch import rematch, rematch_scores
        from l2rm.data.features import read_array
        from l2rm.earlier import data_for
        from l2rm.evaluation.scores import MatrixScores
        from l2rm.sources import open_rows, with_features
        from l2rm.training.run import load_run
        from l2rm.training.train import pick_device

        names = ("keep_threshold", "rematch_threshold", "capacity", "candidates", "share", "seed")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        options["progress"] = not self.quiet
        if self.similarity is not None:
            scores = MatrixScores(read_array(self.similarity, mapped=True))
            options["level"] = "caption" if self.level == "auto" else self.level
            options["wording"] = self.wording or 0.0
            return rematch_scores(scores, open_rows(data, self.split), **options)
        assert self.model is not None
        device = pick_device(self.device)
        run = load_run(self.model, device)
        data = data_for([self.model], data)
        pairs = with_features(
            open_rows(data, self.split),
            data.encoder,
            skip_bad=data.skip_bad,
            progress=not self.quiet,
            device=device,
            model=run.model,
        )
        divided = "image" if run.evidence == "image" else "caption"
        trained = run.config.rematching.wording if divided == "caption" else 0.0
        options["level"] = divided if self.level == "auto" else self.level
        options["wording"] = trained if self.wording is None else self.wording
        found = verdict(run, pairs, seed=self.seed)
        probability = None if found is None else found.match_probability
        return rematch(pairs, run.model, match_probability=probability, **options)

    def _advice(self, result: "Rematched", out: Path) -> str:
        """How to read what was written."""
        pairs, dropped = result.pairs_given, result.counts["drop"]
        if out.suffix.lower() == ".npy":
            kept = f"; {dropped} pairs that should be dropped keep their image" if dropped else ""
            return f"; read it with --mismatch {out}{kept}"
        if pairs.image_root is None:
            return "; DATA have no image files, so it is for reading only: write a .npy to train on"
        elsewhere = pairs.image_root.resolve() != out.parent.resolve()
        return f"; read it with --image-root {pairs.image_root}" if elsewhere else ""
