"""`l2rm distil`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from l2rm.commands.command import Command, DataOption, Device, ImageRoot, SkipBad


@dataclass(frozen=True, kw_only=True)
class Distil(Command):
    """Teach a run's SGR or SAF to a small first pass that orders pairs nearly as it does, for fast evaluation.

    It learns from the model's own scores of some of its training pairs, whichever of them match, and is kept in the
    RUN as cascade.safetensors. Then `l2rm evaluate RUN --shortlist 0.05` lets the model score only the few pairs that
    the first pass puts first.

    Examples:
      l2rm distil runs/sgr --data f30k_precomp
      l2rm distil runs/mine --data pairs.csv --image-root images
    """

    folder: Annotated[Path, Positional, arg(name="run", metavar="RUN")]
    """A folder that l2rm train left."""
    data: DataOption
    split: str = "train"
    """The split to learn from."""
    steps: int = 1000
    """Steps of learning."""
    seed: int = 0
    """Rules which pairs are drawn."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    device: Device = "auto"

    def run(self) -> None:
        from l2rm.earlier import data_for
        from l2rm.sources import DataConfig, open_split, with_features
        from l2rm.training.distil import distil, write_first_pass
        from l2rm.training.run import load_run
        from l2rm.training.train import pick_device

        device = pick_device(self.device)
        model = load_run(self.folder, device).model
        data = data_for([self.folder], DataConfig(source=self.data, image_root=self.image_root, skip_bad=self.skip_bad))
        progress = not self.quiet
        pairs = with_features(
            open_split(data, self.split), data.encoder, skip_bad=data.skip_bad, progress=progress, device=device
        )
        path = write_first_pass(self.folder, distil(model, pairs, steps=self.steps, seed=self.seed, progress=progress))
        print(f"written to {path}; next: l2rm evaluate {self.folder} --data {self.data} --shortlist 0.05")
