"""`l2rm encode`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from l2rm.commands.command import Command, Data, Device, ImageRoot, SkipBad
from l2rm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Encode(Command):
    """Turn image files into features, once, and write them as a folder that every command reads as DATA.

    efficientnet-lite0 makes a precomp folder: SPLIT_ims.npy and SPLIT_caps.txt. A CLIP or SigLIP of transformers, by
    its folder or its name on the hub, makes images.npy and captions.npy, of one space. pairs.csv tells which row is
    which. What is encoded is kept in $L2RM_CACHE too, so that a command that was stopped goes on where it was.

    Examples:
      l2rm encode pairs.csv --out features
      l2rm encode pairs.csv --encoder openai/clip-vit-base-patch32 --skip-bad --out clip
    """

    data: Data
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder for the features; those that this command left in it are replaced."""
    encoder: Annotated[str, arg(metavar="NAME")] = "efficientnet-lite0"
    """efficientnet-lite0, or a transformers model by its folder or as OWNER/MODEL."""
    grid: int = 6
    """With efficientnet-lite0: cells along each side of an image; it becomes grid × grid regions."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    device: Device = "auto"

    def run(self) -> None:
        from l2rm.encoders.export import refuse_folder, refuse_splits, write_features
        from l2rm.encoders.image import is_transformers_name
        from l2rm.sources import DataConfig, EncoderConfig, open_rows, with_features
        from l2rm.training.train import pick_device

        refuse_folder(self.out, self.data)
        pairs = open_rows(DataConfig(source=self.data, image_root=self.image_root, skip_bad=self.skip_bad))
        if pairs.features is not None:
            raise InputError(f"{self.data}: has features already; give image files")
        if not is_transformers_name(self.encoder):
            refuse_splits(pairs)
        encoder = EncoderConfig(name=self.encoder, grid=self.grid)
        device = pick_device(self.device)
        encoded = with_features(pairs, encoder, skip_bad=self.skip_bad, progress=not self.quiet, device=device)
        data = write_features(encoded, self.out)
        assert encoded.features is not None
        shape = " × ".join(map(str, encoded.features.shape[1:]))
        print(f"{encoded.n_images} images, {len(encoded)} captions; {shape} numbers an image")
        if encoded.left_out:
            print(f"left out as unusable: {len(encoded.left_out)} rows")
        print(f"read it as {data}")
