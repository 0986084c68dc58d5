"""`l2rm evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from l2rm.commands.command import Command, DataOption, Device, ImageRoot, SkipBad
from l2rm.errors import InputError
from l2rm.summaries import metrics_table, run_names


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Measure retrieval: R@1, R@5, R@10 both ways and their sum, rSum. Several RUNs are an ensemble.

    Ranks are exact, and ties count against the model. An ensemble averages the runs' similarities; each run gets a row
    of its own too, so SGR, SAF and SGRAF are in one table. DATA without splits are split as the runs split theirs.

    Examples:
      l2rm evaluate runs/mine --data pairs.csv
      l2rm evaluate runs/sgr runs/saf --data coco_precomp --split testall --json coco.json
      l2rm evaluate runs/sgr --data coco_precomp --split testall --shortlist 0.05
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN")]
    """Folders that l2rm train left; several are an ensemble."""
    data: DataOption
    split: str = "test"
    """The split to rank."""
    protocol: Literal["full", "folds5"] | None = None
    """full: rank among everything. folds5: the mean over five folds. Default: full and, of 5,000 images, folds5 too:
    COCO 5K and 1K."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also write the metrics there: of the ensemble, where RUNs are several; full, where no protocol is chosen."""
    shortlist: Annotated[float | None, arg(metavar="SHARE")] = None
    """Let the model score only this share of the pairs, those that a first pass puts first: much faster, R@K nearly
    the same. Of one RUN, after l2rm distil."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    device: Device = "auto"

    def run(self) -> None:
        from l2rm.earlier import data_for
        from l2rm.evaluation.evaluate import evaluate_each, evaluate_shortlisted
        from l2rm.evaluation.metrics import usual_protocols
        from l2rm.sources import DataConfig, open_split, with_features
        from l2rm.training.distil import read_first_pass
        from l2rm.training.run import load_run, write_json
        from l2rm.training.train import pick_device

        if not self.runs:
            raise InputError("RUN: none is given; name one or more folders that `l2rm train` left")
        if self.shortlist is not None and len(self.runs) > 1:
            raise InputError("shortlist: it is of one run; evaluate the runs one by one, or leave --shortlist out")
        device = pick_device(self.device)
        runs = [load_run(folder, device) for folder in self.runs]
        data = data_for(self.runs, DataConfig(source=self.data, image_root=self.image_root, skip_bad=self.skip_bad))
        pairs = open_split(data, self.split)
        progress = not self.quiet
        pairs = with_features(
            pairs, data.encoder, skip_bad=data.skip_bad, progress=progress, device=device, model=runs[0].model
        )
        protocols = usual_protocols(pairs.n_images) if self.protocol is None else (self.protocol,)
        if self.shortlist is None:
            tables = evaluate_each([run.model for run in runs], pairs, protocols=protocols, progress=progress)
        else:
            first_pass = read_first_pass(self.runs[0], runs[0].model)
            metrics, scored = evaluate_shortlisted(
                runs[0].model, pairs, first_pass, share=self.shortlist, protocols=protocols, progress=progress
            )
            tables = [[one] for one in metrics]
            print(f"shortlist: the model scored {scored:.1%} of the pairs")
        if self.json is not None:
            write_json(self.json, tables[0][-1].to_dict())
        print("\n\n".join(metrics_table(run_names(runs), metrics) for metrics in tables))
