"""`l2rm audit`."""

import hashlib
import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from l2rm.commands.command import CaptionEncoder, Command, Data, Device, Flag, ImageRoot, SkipBad
from l2rm.errors import InputError
from l2rm.summaries import audit_summary

if TYPE_CHECKING:
    import torch

    from l2rm.auditing.audit import Audit as AuditResult
    from l2rm.data.pairs import Pairs
    from l2rm.sources import DataConfig
    from l2rm.training.run import Run

log = logging.getLogger("l2rm")


@dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Judge every pair: how likely it matches, a better partner for it, and whether to keep, rematch or drop it.

    What judges, one of: a trained model (--model); similarities from elsewhere (--similarity), images × captions in
    DATA's order; an encoder (--encoder), for image files: a CLIP or SigLIP that transformers knows, by folder or
    OWNER/MODEL, or efficientnet-lite0, beside which a reader of words is trained, by cross-fitting: no pair is judged
    by a model that has seen it. With none of them DATA judge themselves, where they are features: two embedding arrays
    by their cosine (or cross-fitted heads, --head), a precomp folder by cross-fitting.

    Audits all rows of a table or of embeddings, the train split of a folder with several. DIR gets audit.parquet, a row
    a pair, report.html, and left_out.csv where --skip-bad left rows out. Of pairs that RUN learned, the training's
    own match probabilities count. Known mismatches (--mismatch, or a true_image column) only measure the
    audit. A stopped audit is called again: it goes on where it stopped with encoding, and with cross-fitting.

    Examples:
      l2rm audit pairs.csv --encoder efficientnet-lite0 --out audit
      l2rm audit pairs.csv --encoder openai/clip-vit-base-patch32 --skip-bad --out audit
      l2rm audit pairs.csv --model runs/mine --out audit
      l2rm audit f30k_precomp --mismatch image_40.npy --model runs/f30k-40 --out audit
      l2rm audit images.npy,captions.npy --out audit
    """

    data: Data
    out: Annotated[Path, arg(metavar="DIR")]
    """Folder for audit.parquet and report.html."""
    model: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder that l2rm train left."""
    similarity: Annotated[Path | None, arg(metavar="FILE.npy")] = None
    """Similarities (images, captions) instead of a model."""
    encoder: Annotated[str | None, arg(metavar="NAME")] = None
    """efficientnet-lite0, or a CLIP or SigLIP of transformers by its folder or its name on the hub."""
    head: Flag = False
    """Judge embeddings by cross-fitted linear heads rather than by their cosine; where dimensions differ, that is done
    anyway."""
    grid: int = 1
    """With --encoder efficientnet-lite0: cells along each side of an image that it describes."""
    caption_encoder: CaptionEncoder = None
    evidence: Literal["pair", "image"] = "pair"
    """In cross-fitting: each caption is ranked by itself, or all captions of an image together, where they came
    together."""
    folds_by: Literal["image", "image+caption"] = "image"
    """In cross-fitting, what is new to the model that judges a pair: its image; or its caption's text too, on whatever
    image it stands, for data that give many images one caption (stale titles, names of collections)."""
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
        result = self._judge()
        result.write(self.out)
        shutil.rmtree(self._folds, ignore_errors=True)
        print(audit_summary(result))
        print(f"report: {self.out / 'report.html'}; every pair: {self.out / 'audit.parquet'}")

    def _judge(self) -> "AuditResult":
        from l2rm.auditing.audit import audit_scores
        from l2rm.auditing.judge import audit_without_model
        from l2rm.data.features import read_array
        from l2rm.earlier import data_for
        from l2rm.evaluation.scores import MatrixScores
        from l2rm.sources import DataConfig, open_rows
        from l2rm.training.run import load_run
        from l2rm.training.train import pick_device

        self._check()
        options: dict[str, Any] = {
            name: getattr(self, name) for name in ("keep_threshold", "rematch_threshold", "seed")
        }
        options["progress"] = not self.quiet
        data = DataConfig(source=self.data, image_root=self.image_root, skip_bad=self.skip_bad, mismatch=self.mismatch)
        if self.similarity is not None:
            scores = MatrixScores(read_array(self.similarity, mapped=True))
            return audit_scores(scores, open_rows(data, self.split), judge=str(self.similarity), **options)
        device = pick_device(self.device)
        if self.model is None:
            pairs = self._featured(data, device)
            options |= {"evidence": self.evidence, "folds_by": self.folds_by}
            head = self.head or self.caption_encoder is not None  # images and captions are of two spaces
            return audit_without_model(pairs, head=head, device=device, keep=self._folds, **options)
        return self._by_run(load_run(self.model, device), data_for([self.model], data), device, options)

    def _by_run(self, run: "Run", data: "DataConfig", device: "torch.device", options: dict[str, Any]) -> "AuditResult":
        """By a run that may have learned some of these pairs, or all."""
        from l2rm.auditing.audit import audit
        from l2rm.auditing.learned import verdict
        from l2rm.rematching.control import FEWEST
        from l2rm.sources import open_rows, open_unseen, with_features

        encoded = partial(
            with_features,
            encoder=data.encoder,
            skip_bad=data.skip_bad,
            progress=not self.quiet,
            device=device,
            model=run.model,
        )
        pairs = encoded(open_rows(data, self.split))
        if (found := verdict(run, pairs, seed=self.seed)) is not None:
            options["match_probability"] = found.match_probability
            if len(found.new) >= FEWEST:
                options["unseen"] = found.new
            elif (dev := open_unseen(data, pairs)) is not None:
                options["unseen"] = encoded(dev)
            else:
                log.info("%s has learned these pairs by heart, so confidences in partners are far too high", self.model)
        return audit(pairs, run.model, judge=f"the model {self.model}", **options)

    @property
    def _folds(self) -> Path:
        """Where a cross-fit keeps what it has finished, until the audit is written."""
        from l2rm.files import cache_folder

        return cache_folder() / "crossfit" / hashlib.sha256(str(self.out.absolute()).encode()).hexdigest()[:16]

    def _check(self) -> None:
        given = [name for name in ("model", "encoder", "similarity") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"audit: both --{given[0]} and --{given[1]} are there to judge by; give one of them")
        if self.caption_encoder is not None and given in (["model"], ["similarity"]):
            raise InputError(
                f"audit: --caption-encoder embeds captions for small models to learn on, and --{given[0]} judges "
                "already; give one of them"
            )
        if self.head and given in (["model"], ["similarity"]):
            raise InputError(f"audit: --head learns on embeddings, and --{given[0]} judges already; give one of them")

    def _featured(self, data: "DataConfig", device: "torch.device") -> "Pairs":
        """The pairs with the features that --encoder makes, or with their own."""
        from l2rm.sources import EncoderConfig, open_rows, pinned_encoder, refuse_embeddings, with_features

        encoder = pinned_encoder(EncoderConfig(name=self.encoder or "", grid=self.grid, captions=self.caption_encoder))
        pairs = open_rows(data, self.split)
        refuse_embeddings(pairs, encoder)
        if pairs.features is not None and self.encoder is not None:
            raise InputError(
                f"{self.data}: has features already, which --encoder {self.encoder} has no pixels to replace; leave "
                "it out"
            )
        if pairs.features is None and self.encoder is None:
            raise InputError(
                f"{self.data}: are image files, and what to judge by is open; give --encoder NAME, --model RUN or "
                "--similarity FILE.npy"
            )
        return with_features(pairs, encoder, skip_bad=self.skip_bad, progress=not self.quiet, device=device)
