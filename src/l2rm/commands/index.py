"""`l2rm index`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from l2rm.commands.command import DATA_HELP, Command, Device, Flag, ImageRoot, SkipBad
from l2rm.errors import InputError
from l2rm.summaries import index_summary

if TYPE_CHECKING:
    from l2rm.data.pairs import Pairs
    from l2rm.search.index import Index as SearchIndex
    from l2rm.sources import DataConfig
    from l2rm.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Index(Command):
    """Make an index of images and captions, for l2rm search and l2rm serve; or change one.

    A model (--model) encodes DATA, and is kept in INDEX; the index refuses any other. Without one, DATA are two
    embedding arrays of one space. Search is exact; above --approximate-above items FAISS searches, and its recall is
    measured and printed. --add, --remove and --compact change the index in --out.

    Examples:
      l2rm index --model runs/mine --data pairs.csv --out index
      l2rm index --data images.npy,captions.npy --out index
      l2rm index --out index --add new.csv
      l2rm index --out index --remove photos/0001.jpg image:17 caption:40
    """

    out: Annotated[Path, arg(metavar="INDEX")]
    """Folder of the index."""
    data: Annotated[str | None, arg(metavar="DATA", help=DATA_HELP)] = None
    model: Annotated[Path | None, arg(metavar="RUN")] = None
    """Folder that l2rm train left."""
    split: str | None = None
    """Take this split of DATA only."""
    add: Annotated[str | None, arg(metavar="DATA")] = None
    """Add these pairs; images that are there already, by the name that DATA give them, are replaced with their
    captions."""
    remove: Annotated[tuple[str, ...], arg(metavar="ID")] = ()
    """Remove images, by name or as image:ID, with their captions; or single captions, as caption:ID."""
    compact: Flag = False
    """Write the index anew without what was removed; approximate indexes are learned anew."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the vectors that are kept; float16 takes half the space."""
    exact: Flag = False
    """Never approximate."""
    approximate_above: int = 100_000
    """Items of a kind above which FAISS searches them (extra faiss)."""
    recall: float = 0.95
    """Share of the exact first ten that an approximate search is aimed at."""
    image_root: ImageRoot = None
    skip_bad: SkipBad = False
    device: Device = "auto"

    def run(self) -> None:
        asked = [name for name in ("data", "add", "remove", "compact") if getattr(self, name)]
        if len(asked) != 1:
            raise InputError(
                f"index: {' and '.join(asked) or 'nothing'} is asked for; give --data to make an index, or one of "
                "--add, --remove, --compact to change one"
            )
        print(index_summary(self._make() if self.data is not None else self._change()))

    def _make(self) -> "SearchIndex":
        from l2rm.search.index import Index as SearchIndex

        assert self.data is not None
        run, encoder = self._run(), None
        pairs, data = self._pairs(self.data, run)
        if run is not None and pairs.image_root is not None:
            encoder = {"name": data.encoder.name, "grid": data.encoder.grid}
        return SearchIndex.build(
            pairs,
            None if run is None else run.model,
            out=self.out,
            encoder=encoder,
            caption_encoder=None if run is None else data.encoder.captions,
            dtype=self.dtype,
            approximate_above=None if self.exact else self.approximate_above,
            recall=self.recall,
        )

    def _change(self) -> "SearchIndex":
        from l2rm.search.index import Index as SearchIndex

        run = self._run()
        index = SearchIndex(self.out, model=None if run is None else run.model)
        if self.add is not None:
            pairs, _ = self._pairs(self.add, run, index)
            replaced = index.add(pairs)
            print(
                f"added {pairs.n_images} images, {len(pairs)} captions" + (f"; {replaced} replaced" if replaced else "")
            )
        elif self.compact:
            index.compact(recall=self.recall)
        else:
            gone = _removed(self.remove)
            images, captions = index.remove(images=gone[0], captions=gone[1])
            print(f"removed {images} images, {captions} captions")
        return index

    def _run(self) -> "Run | None":
        from l2rm.training.run import load_run
        from l2rm.training.train import pick_device

        return None if self.model is None else load_run(self.model, pick_device(self.device))

    def _pairs(self, source: str, run: "Run | None", index: "SearchIndex | None" = None) -> "tuple[Pairs, DataConfig]":
        """The pairs with features, made by the encoder that the model knows."""
        from math import isqrt

        from l2rm.earlier import data_for, saved_data
        from l2rm.sources import DataConfig, EncoderConfig, open_rows, with_features
        from l2rm.training.train import pick_device

        data = DataConfig(source=source, image_root=self.image_root, skip_bad=self.skip_bad)
        if run is not None:
            data = data_for([run.folder], data)
            if saved_data(run.folder) is None:  # as many regions as the model takes
                data = replace(data, encoder=EncoderConfig(grid=isqrt(run.model.shape.regions)))
        if index is not None:
            captions = index.manifest.caption_encoder or {}
            made_by = replace(data.encoder, **(index.manifest.encoder or {}))
            made_by = replace(made_by, captions=captions.get("name"), captions_checksum=captions.get("checksum"))
            data = replace(data, encoder=made_by)
        pairs = open_rows(data, self.split, least=1)
        encoded = run is not None or (index is not None and index.manifest.fingerprint is not None)
        if encoded:
            device = pick_device(self.device)
            model = run.model if run is not None else None if index is None else index.encoder.model
            pairs = with_features(
                pairs, data.encoder, skip_bad=self.skip_bad, progress=not self.quiet, device=device, model=model
            )
        return pairs, data


def _removed(given: tuple[str, ...]) -> tuple[list[int | str], list[int]]:
    """Images and captions of `image:17`, `caption:40` and names."""
    images: list[int | str] = []
    captions: list[int] = []
    for one in given:
        kind, colon, number = one.rpartition(":")
        if colon and kind in ("image", "caption") and number.isdecimal():
            images.append(int(number)) if kind == "image" else captions.append(int(number))
        else:
            images.append(one)
    return images, captions
