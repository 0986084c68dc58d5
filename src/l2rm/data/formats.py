"""What `DATA` can be, and how each form becomes `Pairs`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from l2rm.data.features import Features
from l2rm.data.packed import is_file
from l2rm.data.pairs import LeftOut, Pairs
from l2rm.data.shards import find_shards, is_sharded, read_samples
from l2rm.data.tables import BadRows, read_table, read_text
from l2rm.errors import InputError

SPLIT_NAMES = {"val": "dev", "valid": "dev", "validation": "dev"}
BUILT_IN = "openmoji:"
DEV_SHARE = TEST_SHARE = 0.05
REPEATS = 5
"""Precomp folders may list every image once a caption, and then it is five times."""
_MADE_UP = re.compile(r"caption \d+")
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def read_pairs(
    source: str | Path,
    *,
    image_root: str | Path | None = None,
    split: str | None = None,
    skip_bad: bool = False,
    least: int = 2,
) -> Pairs:
    """Read pairs from any source, all of it or one split.

    Args:
        source: One of
            - a precomp folder: `{split}_ims.npy` (features of one image a row) beside `{split}_caps.txt` (one caption a
              line, those of an image together, equally many an image) or, as CC152K has it, `{split}_caps.tsv` (image
              id, tab, caption). Images listed once a caption are merged;
            - a table .csv, .tsv, .jsonl or .parquet with columns `image, caption` and optionally `pair_id, split,
              is_mismatched, true_image`. Rows of one image path are one image;
            - "images.npy,captions.npy": two embedding arrays, (N, D) and (k·N, D), those of an image together;
            - shards: WebDataset .tar files or Parquet files of embeddings, as a folder, a pattern such as
              "shards/*.tar" or "shards/{00000..00099}.tar", or one file; see `l2rm.data.shards.read_samples`;
            - "openmoji:", the data of the quick start.
        image_root: Folder that a table's image paths start from; the table's own when left out. No path may lead out of
            it, or a table from elsewhere could have any picture on this machine read and shown in a report.
        split: Take this split only ("val" is "dev"). A precomp folder of several splits needs it.
        skip_bad: Leave bad rows out and log them as warnings, instead of stopping at the first.
        least: Rows that a table must have.

    Raises:
        InputError: Anything that cannot be read or understood; names the file and the row.
    """
    split = None if split is None else _split_name(split)
    if (folder := Path(source)).is_dir() and not is_sharded(source):
        prefixes = _precomp_prefixes(folder)
        if split is None and len(prefixes) > 1:
            raise InputError(f"{folder}: holds the splits {', '.join(prefixes)}; say which one is meant")
        split = split or next(iter(prefixes))
        _require_split(split, prefixes, source)
        return _read_precomp(folder, prefixes[split], image_root=image_root, skip_bad=skip_bad)
    pairs = _read_whole(source, image_root=image_root, skip_bad=skip_bad, least=least)
    if split is None:
        return pairs
    if pairs.splits is None:
        raise InputError(
            f"{source}: has no splits, so no {split!r}; add a column 'split', or leave the choice to a seed"
        )
    _require_split(split, pairs.splits, source)
    return pairs.take([name == split for name in pairs.splits])


def read_splits(
    source: str | Path,
    *,
    image_root: str | Path | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> dict[str, Pairs]:
    """Read every split of a source: "train", "dev", "test" and any other that it has.

    A source without splits is split by images, 90/5/5, with `seed`. Arguments and errors otherwise as in `read_pairs`.
    """
    if (folder := Path(source)).is_dir() and not is_sharded(source):
        return {
            split: _read_precomp(folder, prefix, image_root=image_root, skip_bad=skip_bad)
            for split, prefix in _precomp_prefixes(folder).items()
        }
    pairs = _read_whole(source, image_root=image_root, skip_bad=skip_bad)
    if pairs.splits is not None:
        return _by_split(pairs)
    train, dev, test = pairs.split(dev=DEV_SHARE, test=TEST_SHARE, seed=seed)
    return {"train": train, "dev": dev, "test": test}


def files_of(source: str | Path) -> tuple[Path, ...]:
    """The paths that DATA name: two where they are embedding arrays, else one, whatever commas are in it.

    Example:
        >>> [path.name for path in files_of("a/images.npy,a/captions.npy")], [path.name for path in files_of("a,b.csv")]
        (['images.npy', 'captions.npy'], ['a,b.csv'])
    """
    parts = str(source).split(",")
    arrays = len(parts) == 2 and all(part.endswith(".npy") for part in parts)
    return tuple(map(Path, parts)) if arrays else (Path(source),)


def _read_whole(source: str | Path, *, image_root: str | Path | None, skip_bad: bool, least: int = 2) -> Pairs:
    """Any source but a precomp folder, with all of its splits."""
    files = files_of(source)
    embeddings = len(files) == 2
    if not embeddings and is_sharded(source):
        _refuse_image_root(source, image_root)
        return _read_shards(source, skip_bad=skip_bad)
    if not embeddings and str(source) != BUILT_IN:
        path = Path(source)
        root = path.parent if image_root is None else Path(image_root)
        return _read_table(path, root, skip_bad=skip_bad, least=least)
    _refuse_image_root(source, image_root)
    if embeddings:
        return _read_embeddings(*files)
    from l2rm.data import openmoji

    return openmoji.read()


def _read_precomp(folder: Path, prefix: str, *, image_root: str | Path | None, skip_bad: bool) -> Pairs:
    _refuse_image_root(folder, image_root)
    path = _captions_file(folder, prefix)
    assert path is not None
    captions = read_text(path).removesuffix("\n").replace("\r\n", "\n").split("\n")
    bad = BadRows(path, skip=skip_bad, unit="line")
    ids: list[str] | None = None
    if path.suffix == ".tsv":
        ids, captions = _identified(captions, bad)
    features = Features.open(folder / f"{prefix}_ims.npy")
    if len(features) == len(captions) and features.repeats(REPEATS):
        features = features.take(slice(None, None, REPEATS))
    for row, caption in enumerate(captions):
        if not caption.strip() and row not in bad.reasons:
            bad.add(row, "the caption is empty", "write one")
    image_of = _grouped(path, features, len(captions))
    names = list(range(len(features))) if ids is None else _image_ids(ids, image_of, len(features), bad)
    pairs = Pairs(
        images=tuple(f"{prefix}/{name}" for name in names),
        image_of=image_of,
        captions=tuple(captions),
        features=features,
        source=str(path),
        named=ids is not None,
    )
    if not bad.reasons:
        return pairs
    told = (LeftOut(row=f"line {row + 1}", image="", reason=bad.reasons[row]) for row in sorted(bad.reasons))
    return replace(pairs.take(bad.rest(len(pairs))), left_out=tuple(told))


def _captions_file(folder: Path, prefix: str) -> Path | None:
    """The captions of a split, in either form; None if it has none.

    Raises:
        InputError: it has both.
    """
    found = [path for ending in ("txt", "tsv") if (path := folder / f"{prefix}_caps.{ending}").exists()]
    if len(found) > 1:
        raise InputError(f"{found[0]}: and {found[1].name} stand side by side; take away the one that is not meant")
    return found[0] if found else None


def _identified(lines: list[str], bad: BadRows) -> tuple[list[str], list[str]]:
    """Image ids and captions of lines `id<tab>caption`; a caption in quotes is taken out of them."""
    ids, captions = [], []
    for row, line in enumerate(lines):
        image, tab, caption = line.partition("\t")
        if not tab or not image.strip():
            bad.add(row, "is no image id, a tab and a caption", "write all three")
        if len(caption) > 1 and caption[0] == caption[-1] == '"':
            caption = caption[1:-1].replace('""', '"')
        ids.append(image.strip())
        captions.append(caption)
    return ids, captions


def _image_ids(ids: list[str], image_of: NDArray[np.int64], images: int, bad: BadRows) -> list[str]:
    """The id of each image; the rows of an image must agree on it, and no two images may share one."""
    names: list[str] = [""] * images
    owner: dict[str, int] = {}
    for row, (image, name) in enumerate(zip(image_of.tolist(), ids, strict=True)):
        if row in bad.reasons:
            continue
        if owner.get(name, image) != image or names[image] not in ("", name):
            bad.add(row, f"image id {name!r} does not stand for one image alone", "give every image one id of its own")
            continue
        names[image], owner[name] = name, image
    return [name or f"without id, {image}" for image, name in enumerate(names)]


def made_up(row: int) -> str:
    """What stands for the caption of a row of which only an embedding is there."""
    return f"caption {row}"


def are_made_up(captions: Iterable[str]) -> bool:
    """Whether captions only stand for rows, so that nothing can be read from them.

    Example:
        >>> are_made_up([made_up(0), made_up(1)]), are_made_up(["a dog", "caption 7"])
        (True, False)
    """
    return all(_MADE_UP.fullmatch(caption) for caption in captions)


def _read_embeddings(images: Path, captions: Path) -> Pairs:
    features, caption_features = Features.open(images), Features.open(captions)
    for path, opened in ((images, features), (captions, caption_features)):
        if opened.regions is not None:
            raise InputError(f"{path}: shape {opened.shape}; embeddings are (rows, dimensions)")
    return Pairs(
        images=tuple(f"image {image}" for image in range(len(features))),
        image_of=_grouped(captions, features, len(caption_features)),
        captions=tuple(map(made_up, range(len(caption_features)))),
        features=features,
        caption_features=caption_features,
        source=f"{images},{captions}",
        named=False,
    )


def _read_shards(source: str | Path, *, skip_bad: bool) -> Pairs:
    shards = find_shards(source)
    if len({shard.parent for shard in shards}) > 1:
        raise InputError(f"{source}: shards of several folders; move them into one, or take one after the other")
    samples = read_samples(shards, skip_bad=skip_bad)
    columns = samples.columns
    for row, flag in enumerate(columns.get("is_mismatched", [])):
        if flag.lower() not in _FLAGS:
            raise InputError(f"{source}:row {row + 1}: is_mismatched is {flag!r}; write true or false")
    number = {image: place for place, image in enumerate(dict.fromkeys(columns["image"]))}
    image_of = np.array([number[image] for image in columns["image"]])
    first = np.unique(image_of, return_index=True)[1]
    return Pairs(
        images=tuple(number),
        image_of=image_of,
        captions=tuple(columns["caption"]),
        pair_ids=tuple(columns.get("pair_id", ())),
        splits=tuple(map(_split_name, columns["split"])) if "split" in columns else None,
        true_image_of=_truth(columns, image_of, number),
        image_root=shards[0].parent if samples.images is None else None,
        features=None if samples.images is None else samples.images.take(first),
        caption_features=samples.captions,
        source=str(source),
        named=samples.named,
        left_out=samples.left_out,
    )


def _read_table(path: Path, image_root: Path, *, skip_bad: bool, least: int) -> Pairs:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    bad = BadRows(path, skip=skip_bad)
    columns = read_table(path, bad, least=least)
    _check_cells(columns, image_root, bad)
    good = bad.rest(len(columns["image"]))
    left_out = tuple(
        LeftOut(row=f"row {row + 1}", image=columns["image"][row], reason=bad.reasons[row])
        for row in sorted(bad.reasons)
    )
    columns = {name: [cells[row] for row in good] for name, cells in columns.items()}
    number = {image: place for place, image in enumerate(dict.fromkeys(columns["image"]))}
    image_of = np.array([number[image] for image in columns["image"]])
    return Pairs(
        images=tuple(number),
        image_of=image_of,
        captions=tuple(columns["caption"]),
        pair_ids=tuple(columns.get("pair_id", map(str, good))),
        splits=tuple(map(_split_name, columns["split"])) if "split" in columns else None,
        true_image_of=_truth(columns, image_of, number),
        image_root=image_root,
        source=str(path),
        left_out=left_out,
    )


def _check_cells(columns: dict[str, list[str]], image_root: Path, bad: BadRows) -> None:
    """Hand over to `bad` the rows with an empty cell, a pair id that is taken, unclear truth, or no image file."""
    for name in ("image", "caption", "pair_id", "split"):
        for row, cell in enumerate(columns.get(name, [])):
            if not cell.strip():
                bad.add(row, f"the {name} is empty", "fill it in")
    first: dict[str, int] = {}
    for row, pair_id in enumerate(columns.get("pair_id", [])):
        if first.setdefault(pair_id, row) != row:
            bad.add(row, f"pair_id {pair_id!r} is row {first[pair_id] + 1}'s already", "give every row its own")
    for row, flag in enumerate(columns.get("is_mismatched", [])):
        if flag.lower() not in _FLAGS:
            bad.add(row, f"is_mismatched is {flag!r}", "write true or false")
        elif "true_image" in columns and _FLAGS[flag.lower()] == (columns["true_image"][row] == columns["image"][row]):
            bad.add(row, f"is_mismatched is {flag}, but true_image says otherwise", "correct one of them")
    for row, image in enumerate(columns["image"]):
        if leaves(image_root, image):
            bad.add(
                row,
                f"image {image!r} leaves the image root {image_root}",
                "give paths inside it, with --image-root DIR above them all (for absolute paths, --image-root /)",
            )
    missing = {image for image in sorted(set(columns["image"])) if not is_file(image_root / image)}
    for row, image in enumerate(columns["image"]):
        if image in missing:
            bad.add(row, f"no image file {os.path.join(image_root, image)}", "check the path and the image root")


def leaves(root: str | Path, name: str) -> bool:
    """Whether a relative path leads out of `root` by `..`, or is an absolute one to elsewhere. Links are not looked at.

    Example:
        >>> leaves("data", "images/a.jpg"), leaves("data", "images/../../etc/passwd"), leaves("/", "/etc/passwd")
        (False, True, False)
    """
    start = os.path.abspath(root)
    return os.path.commonpath([start, os.path.abspath(os.path.join(start, name))]) != start


def _truth(
    columns: dict[str, list[str]], image_of: NDArray[np.int64], number: dict[str, int]
) -> NDArray[np.int64] | None:
    if "true_image" in columns:
        return np.array([number.get(image, -1) for image in columns["true_image"]])
    if "is_mismatched" in columns:
        return np.where([_FLAGS[flag.lower()] for flag in columns["is_mismatched"]], -1, image_of)
    return None


def _grouped(path: Path, features: Features, captions: int) -> NDArray[np.int64]:
    """(captions,) image of each caption, where those of an image stand together, equally many an image."""
    images = len(features)
    if not images or not captions or captions % images:
        raise InputError(
            f"{path}: {captions} captions for {images} images in {features.path}; "
            "every image needs the same number of captions, one or more"
        )
    return np.repeat(np.arange(images), captions // images)


def _precomp_prefixes(folder: Path) -> dict[str, str]:
    """Split name -> how its files' names begin, for every split in the folder."""
    prefixes = sorted(file.name.removesuffix("_ims.npy") for file in folder.glob("*_ims.npy"))
    found = {_split_name(prefix): prefix for prefix in prefixes if _captions_file(folder, prefix)}
    if not found:
        raise InputError(
            f"{folder}: no SPLIT_ims.npy beside a SPLIT_caps.txt (or .tsv); give a precomp folder or a table"
        )
    return found


def _by_split(pairs: Pairs) -> dict[str, Pairs]:
    names = pairs.splits or ()
    return {split: pairs.take([name == split for name in names]) for split in dict.fromkeys(names)}


def _require_split(split: str, found: Iterable[str], source: str | Path) -> None:
    if split not in (names := dict.fromkeys(found)):
        raise InputError(f"{source}: no split {split!r}; take one that it has: {', '.join(names)}")


def _split_name(name: str) -> str:
    return SPLIT_NAMES.get(name, name)


def _refuse_image_root(source: str | Path, image_root: str | Path | None) -> None:
    if image_root is not None:
        raise InputError(f"{source}: has no image files, so an image root ({image_root}) means nothing; leave it out")
