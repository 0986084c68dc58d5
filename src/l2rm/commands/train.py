"""`l2rm train`."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import arg

from l2rm.commands.command import CaptionEncoder, Command, Data, Flag, ImageRoot, SkipBad
from l2rm.errors import InputError
from l2rm.recipes import RECIPES, faithful
from l2rm.summaries import training_summary
from l2rm.training.settings import TrainConfig

if TYPE_CHECKING:
    from l2rm.sources import EncoderConfig, Injection


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train a retrieval model that mismatched pairs cannot spoil, into the folder RUN.

    DATA need a split train to learn from and a split dev to choose the best epoch on; without any splits, images are
    drawn 90/5/5 by --seed. Every field of the configuration is an option. A recipe (and --paper) sets their defaults.
    Ctrl-C saves; --resume goes on to the same result.

    Examples:
      l2rm train pairs.csv --image-root images --out runs/mine --recipe quickstart
      l2rm train f30k_precomp --mismatch image_40.npy --recipe f30k --paper --out runs/f30k-40
      l2rm train f30k_precomp --ratio 0.4 --level image --recipe f30k --out runs/f30k-40
      l2rm train pairs.csv --decisions audit/decisions.sqlite --recipe quickstart --out runs/reviewed
      l2rm train pairs.csv --recipe clip --model.encoder openai/clip-vit-base-patch32 --out runs/clip
      l2rm train f30k_precomp --out runs/f30k-40 --resume
    """

    data: Data
    out: Annotated[Path, arg(metavar="RUN")]
    """Folder of the run: new, or an unfinished run with --resume."""
    recipe: Literal["f30k", "coco", "cc152k", "quickstart", "dual", "clip", "clip-full"] | None = None
    """Named settings; explicit options override them."""
    paper: Flag = False
    """Every choice as it was published, where a default improves on it. Without --mismatch or --ratio that is no mask
    on the plan: the public code forbids given pairs only where mismatches were injected."""
    resume: Flag = False
    """Go on with the run in RUN, by its own settings."""
    mismatch: Annotated[Path | None, arg(metavar="INDEX.npy")] = None
    """Mismatch the train split by a published index file."""
    ratio: float | None = None
    """Mismatch this share of the train split, drawn by --seed as l2rm corrupt does; the index goes to RUN."""
    level: Literal["image", "caption"] | None = None
    """With --ratio: mismatch whole images or single captions."""
    decisions: Annotated[Path | None, arg(metavar="FILE")] = None
    """What people decided about pairs: an audit folder's decisions.sqlite, or a table exported from it. Pairs kept or
    rematched are taken as matched for certain, dropped ones are left out."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    encoder: Annotated[str, arg(metavar="NAME")] = "efficientnet-lite0"
    """What makes features of images, where DATA are images; they are cached."""
    grid: int = 6
    """Cells along each side of an image that the encoder describes."""
    caption_encoder: CaptionEncoder = None
    config: Annotated[TrainConfig, arg(name="")] = field(default_factory=TrainConfig)

    @property
    def lighter(self) -> str:
        queue = self.config.rematching.queue_size
        return (
            f"train anew with a lower --batch-size (it is {self.config.batch_size})"
            + (f", a lower --rematching.queue-size ({queue})" if queue else "")
            + (
                " or --model.checkpointing"
                if self.config.model.similarity == "clip"
                else " or a lower --model.embed-dim"
            )
        )

    def run(self) -> None:
        from l2rm.sources import TRAIN, DataConfig, corrupt, open_training
        from l2rm.training.processes import first_goes_first, is_first, join, leave
        from l2rm.training.train import pick_device, train

        device = pick_device(join(self.config.device))
        first = is_first()
        telling = first and not self.quiet
        injection = self._injection()
        data = DataConfig(
            source=self.data,
            image_root=self.image_root,
            seed=self.config.seed,
            skip_bad=self.skip_bad,
            mismatch=self.mismatch,
            injection=injection,
            decisions=self.decisions,
            encoder=self._encoder(),
        )
        with first_goes_first():
            found = open_training(data, progress=telling, device=device)
        if telling:
            print(training_summary(found), flush=True)
        if self.resume:
            from l2rm.earlier import refuse_other_encoder

            refuse_other_encoder(self.out, found.facts)
        facts = {"data": found.facts}
        run = train(found.train, found.dev, self.config, self.out, facts=facts, resume=self.resume, progress=telling)
        leave()
        if not first:
            return
        if injection is not None:
            corrupt(data, **dataclasses.asdict(injection), split=TRAIN, out=self.out / "mismatch.npy")
        best = run.record["best"]
        print(f"dev rSum {best['rsum']:.1f} at epoch {best['epoch']} of {run.config.epochs} ({best['stage']})")
        print(f"the run is in {self.out}; next: l2rm evaluate {self.out} --data {self.data}")

    def _encoder(self) -> "EncoderConfig":
        """What makes features of images; a model that is fine-tuned takes their pixels."""
        from l2rm.sources import EncoderConfig

        if self.config.model.similarity != "clip":
            return EncoderConfig(name=self.encoder, grid=self.grid, captions=self.caption_encoder)
        if self.caption_encoder is not None:
            raise InputError("caption encoder: a model that is fine-tuned reads captions by itself; leave it out")
        from l2rm.training.check import check_config
        from l2rm.training.train import rooted

        check_config(self.config)
        return EncoderConfig(name=rooted(self.config).model.encoder, finetuned=True)

    def _injection(self) -> "Injection | None":
        """The mismatches that --ratio and --level ask for."""
        from l2rm.sources import Injection

        if self.ratio is None and self.level is None:
            return None
        if self.ratio is None or self.level is None:
            raise InputError("ratio, level: one stands without the other; give both, such as --ratio 0.4 --level image")
        if self.mismatch is not None:
            raise InputError(f"ratio: the train split is mismatched by {self.mismatch} already; give one or the other")
        return Injection(ratio=self.ratio, level=self.level, seed=self.config.seed)


def train_defaults(arguments: list[str]) -> Train:
    """What `train` starts from: a recipe, the published choices, or the run to be resumed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--recipe", "--out", "--mismatch"):
        parser.add_argument(name, nargs="?")
    parser.add_argument("--ratio", nargs="?", type=float)
    for name in ("--paper", "--resume", "--help", "-h"):
        parser.add_argument(name, action="store_true")
    start = Train(data=tyro.MISSING, out=tyro.MISSING)
    try:
        chosen, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:  # tyro says what is wrong
        return start
    folder = Path(chosen.out or "")
    if chosen.resume and (folder / "config.json").exists() and not (chosen.help or chosen.h):
        start = _resumed(start, folder)
    config = RECIPES[chosen.recipe]() if chosen.recipe in RECIPES else start.config
    if chosen.paper:
        injected = any((chosen.mismatch, chosen.ratio, start.mismatch, start.ratio))
        config = faithful(config, injected=injected)
    return dataclasses.replace(start, config=config)


def _resumed(start: Train, folder: Path) -> Train:
    from l2rm.earlier import saved_run

    config, data = saved_run(folder)
    return dataclasses.replace(
        start,
        config=config,
        mismatch=data.mismatch,
        ratio=None if data.injection is None else data.injection.ratio,
        level=None if data.injection is None else data.injection.level,
        decisions=data.decisions,
        image_root=data.image_root,
        skip_bad=data.skip_bad,
        encoder=data.encoder.name,
        grid=data.encoder.grid,
        caption_encoder=data.encoder.captions,
    )
