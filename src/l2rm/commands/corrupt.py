"""`l2rm corrupt`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from l2rm.commands.command import Command, Data, ImageRoot, SkipBad


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
