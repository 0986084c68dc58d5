"""The command line: parses arguments, calls the rooms below, prints what they return.

Nothing here imports torch before a command that needs it runs, so that `--help` and wrong arguments answer at once.
"""

import argparse
import dataclasses
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from l2rm import __version__
from l2rm.errors import InputError
from l2rm.recipes import RECIPES, faithful
from l2rm.summaries import audit_summary, metrics_table, run_names, training_summary
from l2rm.terminal import guarded
from l2rm.training.settings import TrainConfig

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit as AuditResult
    from l2rm.sources import Injection

DATA_HELP = (
    "A precomp folder, a table (.csv .tsv .jsonl .parquet with columns image, caption), images.npy,captions.npy, or "
    "openmoji:"
)
Flag = FlagCreatePairsOff[bool]
Data = Annotated[str, Positional, arg(metavar="DATA", help=DATA_HELP)]
ImageRoot = Annotated[
    Path | None, arg(metavar="DIR", help="Where a table's image paths start; default: its own folder.")
]
SkipBad = Annotated[Flag, arg(help="Leave bad rows out and list them, instead of stopping at the first.")]


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """What every command takes."""

    quiet: Flag = False
    """Say only what came out and what is wrong."""
    debug: Flag = False
    """Show the traceback of an error."""

    @abstractmethod
    def run(self) -> None:
        """Do it, and print what came out."""


@dataclass(frozen=True, kw_only=True)
class Quickstart(Command):
    """See L2RM at work on real data: OpenMoji's pictures, 40 % of them mismatched.

    Trains a plain model, L2RM and an oracle that knows the truth, audits the pairs, prints one table and writes
    DIR/report.html. A few minutes on two cores; needs the extra quickstart (pip install 'l2rm[quickstart]').

    Examples:
      l2rm quickstart
      l2rm quickstart --out runs/seed1 --seed 1
    """

    out: Annotated[Path, arg(metavar="DIR")] = Path("quickstart")
    """Folder for summary.json, report.html and the runs."""
    seed: int = 0
    """Rules the split, the corruption and the initial weights."""

    def run(self) -> None:
        from l2rm.quickstart import quickstart

        quickstart(out=self.out, seed=self.seed, progress=not self.quiet)


@dataclass(frozen=True, kw_only=True)
class Corrupt(Command):
    """Mismatch a known share of the pairs on purpose, to measure what a method makes of it.

    At level image all captions of an image go wrong together; at level caption single ones do. Numbers under the two
    are not comparable. A .npy file holds the image (from 0) that each caption of the split is given; a table holds all
    splits, with the truth in the columns is_mismatched and true_image, which only the oracle and the metrics read.

    Examples:
      l2rm corrupt f30k_precomp --ratio 0.4 --level image --out image_40.npy
      l2rm corrupt pairs.csv --ratio 0.2 --level caption --seed 1 --out noisy.csv
    """

    data: Data
    ratio: float
    """Share to mismatch, at least 0 and below 1: of the images, or of the captions."""
    level: Literal["image", "caption"]
    """Mismatch whole images or single captions."""
    out: Annotated[Path, arg(metavar="FILE")]
    """.npy for an index file; .csv .tsv .jsonl .parquet for a table with the truth."""
    split: str = "train"
    """The split to mismatch; the others stay as they are."""
    seed: int = 0
    """Draws the mismatches, and the 90/5/5 split of DATA without one."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False

    def run(self) -> None:
        from l2rm.sources import DataConfig, corrupt

        data = DataConfig(source=self.data, image_root=self.image_root, seed=self.seed, skip_bad=self.skip_bad)
        noisy = corrupt(data, ratio=self.ratio, level=self.level, seed=self.seed, split=self.split, out=self.out)
        images, rows = noisy.pairs.n_images, len(noisy.pairs)
        print(
            f"{self.split}: {noisy.is_mismatched.sum()} of {rows} captions of {images} images are mismatched "
            f"(ratio {self.ratio:g}, level {self.level}, seed {self.seed})"
        )
        root = noisy.pairs.image_root
        elsewhere = self.out.suffix != ".npy" and root is not None and root.resolve() != self.out.parent.resolve()
        print(f"written to {self.out}" + (f"; read it with --image-root {root}" if elsewhere else ""))


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
      l2rm train f30k_precomp --out runs/f30k-40 --resume
    """

    data: Data
    out: Annotated[Path, arg(metavar="RUN")]
    """Folder of the run: new, or an unfinished run with --resume."""
    recipe: Literal["f30k", "coco", "cc152k", "quickstart"] | None = None
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
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    encoder: Annotated[str, arg(metavar="NAME")] = "efficientnet-lite0"
    """What makes features of images, where DATA are images; they are cached."""
    grid: int = 6
    """Cells along each side of an image that the encoder describes."""
    config: Annotated[TrainConfig, arg(name="")] = field(default_factory=TrainConfig)

    def run(self) -> None:
        from l2rm.sources import TRAIN, DataConfig, EncoderConfig, corrupt, open_training, refuse_other_encoder
        from l2rm.training.train import pick_device, train

        injection = self._injection()
        data = DataConfig(
            source=self.data,
            image_root=self.image_root,
            seed=self.config.seed,
            skip_bad=self.skip_bad,
            mismatch=self.mismatch,
            injection=injection,
            encoder=EncoderConfig(name=self.encoder, grid=self.grid),
        )
        found = open_training(data, progress=not self.quiet, device=pick_device(self.config.device))
        if not self.quiet:
            print(training_summary(found), flush=True)
        if self.resume:
            refuse_other_encoder(self.out, found.facts)
        facts = {"data": found.facts}
        run = train(
            found.train, found.dev, self.config, self.out, facts=facts, resume=self.resume, progress=not self.quiet
        )
        if injection is not None:
            corrupt(data, **dataclasses.asdict(injection), split=TRAIN, out=self.out / "mismatch.npy")
        best = run.record["best"]
        print(f"dev rSum {best['rsum']:.1f} at epoch {best['epoch']} of {run.config.epochs} ({best['stage']})")
        print(f"the run is in {self.out}; next: l2rm evaluate {self.out} --data {self.data}")

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


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure retrieval: R@1, R@5, R@10 both ways and their sum, rSum. Several RUNs are an ensemble.

    Ranks are exact, and ties count against the model. An ensemble averages the runs' similarities; each run gets a row
    of its own too, so SGR, SAF and SGRAF are in one table. DATA without splits are split as the runs split theirs.

    Examples:
      l2rm evaluate runs/mine --data pairs.csv
      l2rm evaluate runs/sgr runs/saf --data coco_precomp --split testall --json coco.json
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN")]
    """Folders that l2rm train left; several are an ensemble."""
    data: Annotated[str, arg(metavar="DATA", help=DATA_HELP)]
    split: str = "test"
    """The split to rank."""
    protocol: Literal["full", "folds5"] | None = None
    """full: rank among everything. folds5: the mean over five folds. Default: full and, of 5,000 images, folds5 too:
    COCO 5K and 1K."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write the metrics there: of the ensemble, where RUNs are several; full, where no protocol is chosen."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    device: str = "auto"
    """auto, or a torch device."""

    def run(self) -> None:
        from l2rm.evaluation.evaluate import evaluate_each
        from l2rm.evaluation.metrics import usual_protocols
        from l2rm.sources import DataConfig, data_for, open_split, with_features
        from l2rm.training.run import load_run, write_json
        from l2rm.training.train import pick_device

        if not self.runs:
            raise InputError("RUN: none is given; name one or more folders that `l2rm train` left")
        device = pick_device(self.device)
        runs = [load_run(folder, device) for folder in self.runs]
        data = data_for(self.runs, DataConfig(source=self.data, image_root=self.image_root, skip_bad=self.skip_bad))
        pairs = open_split(data, self.split)
        progress = not self.quiet
        pairs = with_features(pairs, data.encoder, skip_bad=data.skip_bad, progress=progress, device=device)
        protocols = usual_protocols(pairs.n_images) if self.protocol is None else (self.protocol,)
        tables = evaluate_each([run.model for run in runs], pairs, protocols=protocols, progress=progress)
        if self.json is not None:
            write_json(self.json, tables[0][-1].to_dict())
        print("\n\n".join(metrics_table(run_names(runs), metrics) for metrics in tables))


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
    device: str = "auto"
    """auto, or a torch device."""

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


COMMANDS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "corrupt": Corrupt,
    "train": Train,
    "evaluate": Evaluate,
    "audit": Audit,
    "convert": Convert,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit status: 0 done, 1 failed, 2 bad input or arguments, 130 and 143 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def parse() -> Command | None:
        if arguments == ["--version"]:
            print(f"l2rm {__version__}")
            return None
        return parse_command(arguments)

    return guarded(parse, debug="--debug" in arguments)


def parse_command(arguments: list[str]) -> Command:
    """The command that arguments ask for.

    Raises:
        SystemExit: help was printed (0), or an argument is wrong (2).
    """
    first = next(iter(arguments), "--help")
    if first in COMMANDS:
        kind: Any = COMMANDS[first]
        command: Command = tyro.cli(
            kind,
            prog=f"l2rm {first}",
            description=inspect.getdoc(kind),
            args=arguments[1:],
            default=_train_defaults(arguments[1:]) if kind is Train else tyro.MISSING_NONPROP,
            config=(tyro.conf.DisallowNone,),
        )
        return command
    overview: Any = _overview()
    nothing: Command = tyro.cli(overview, prog="l2rm", description=OVERVIEW, args=arguments or ["--help"])
    return nothing


OVERVIEW = """L2RM finds mismatched image-text pairs, rematches them, and trains retrieval that they cannot spoil.

Each command tells more: l2rm train --help. `l2rm --version` prints the version.

Examples:
  l2rm quickstart
  l2rm train pairs.csv --out runs/mine --recipe quickstart
  l2rm audit pairs.csv --model runs/mine --out audit"""


def _overview() -> Any:
    """The commands as tyro lists them, each by the first line of its help."""
    annotated: Any = Annotated  # types made at run time are no business of a type checker
    union: Any = None
    for name, kind in COMMANDS.items():
        line = (kind.__doc__ or "").splitlines()[0]
        one = annotated[kind, subcommand(name, description=line)]
        union = one if union is None else union | one
    return union


def _train_defaults(arguments: list[str]) -> Train:
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
    from l2rm.sources import saved_run

    config, data = saved_run(folder)
    return dataclasses.replace(
        start,
        config=config,
        mismatch=data.mismatch,
        ratio=None if data.injection is None else data.injection.ratio,
        level=None if data.injection is None else data.injection.level,
        image_root=data.image_root,
        skip_bad=data.skip_bad,
        encoder=data.encoder.name,
        grid=data.encoder.grid,
    )
