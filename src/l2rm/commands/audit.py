"""`l2rm audit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from l2rm.commands.command import Command, Data, Device, ImageRoot, SkipBad
from l2rm.errors import InputError
from l2rm.summaries import audit_summary

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit as AuditResult


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Judge every pair: how likely it matches, a better partner for it, and whether to keep, rematch or drop it.

    Give a trained model (--model) or similarities from elsewhere (--similarity), images × captions in DATA's order.
    Audits all rows of a table or of embeddings, the train split of a folder with several. DIR gets audit.parquet, a row
    a pair, and report.html. Of pairs that RUN was trained on, the training's own match probabilities count. Known
    mismatches (--mismatch, or a true_image column) only measure the audit.

    Examples:
      l2rm audit pairs.csv --model runs/mine --out audit
      l2rm audit f30k_precomp --mismatch image_40.npy --model runs/f30k-40 --out audit
      l2rm audit images.npy,captions.npy --similarity clip.npy --out audit
    """

    data: Data
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for audit.parquet and report.html."""
    model: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder that l2rm train left."""
    similarity: Annotated[Path | None, arg(metavar="FILE.npy")] = None
    """Similarities (images, captions) instead of a model."""
    split: str | None = None
    """The split to audit."""
    mismatch: Annotated[Path | None, arg(metavar="INDEX.npy")] = None
    """Audit the pairs as this index file mismatches them, and measure how well that is found."""
    keep_threshold: float = 0.5
    """Keep a pair whose match probability is at least this."""
    rematch_threshold: float = 0.5
    """Rematch a pair that is not kept where the confidence in its suggestion is at least this; drop it otherwise."""
    seed: int = 0
    """Draws the negatives that losses are measured against."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    device: Device = "auto"

    def run(self) -> None:
        if (self.model is None) == (self.similarity is None):
            raise InputError("audit: what to judge by is open; give --model RUN or --similarity FILE.npy, one of them")
        result = self._judge()
        result.write(self.out)
        print(audit_summary(result))
        print(f"report: {self.out / 'report.html'}; every pair: {self.out / 'audit.parquet'}")

    def _judge(self) -> "AuditResult":
        from l2rm.auditing.audit import audit, audit_scores
        from l2rm.data.features import read_array
        from l2rm.evaluation.scores import MatrixScores
        from l2rm.sources import DataConfig, data_for, open_rows, with_features
        from l2rm.training.run import load_run
        from l2rm.training.train import pick_device

        options: dict[str, Any] = {
            name: getattr(self, name) for name in ("keep_threshold", "rematch_threshold", "seed")
        }
        options["progress"] = not self.quiet
        data = DataConfig(source=self.data, image_root=self.image_root, skip_bad=self.skip_bad, mismatch=self.mismatch)
        if self.similarity is not None:
            scores = MatrixScores(read_array(self.similarity, mapped=True))
            return audit_scores(scores, open_rows(data, self.split), **options)
        assert self.model is not None
        device = pick_device(self.device)
        run = load_run(self.model, device)
        data = data_for([self.model], data)
        pairs = with_features(
            open_rows(data, self.split), data.encoder, skip_bad=data.skip_bad, progress=not self.quiet, device=device
        )
        return audit(pairs, run.model, match_probability=run.match_probability(pairs), **options)
