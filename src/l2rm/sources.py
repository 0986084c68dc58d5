"""From DATA, as a command names it, to pairs with features. Imports no torch before features are to be made."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from l2rm.data.decided import VERDICTS, Decision, apply_decisions, read_decisions
from l2rm.data.formats import BUILT_IN, DEV_SHARE, SPLIT_NAMES, TEST_SHARE, files_of, read_pairs, read_splits
from l2rm.data.mismatch import Mismatched, inject_mismatches, read_index, recognise_level, write_index
from l2rm.data.pairs import Pairs
from l2rm.data.shards import is_sharded
from l2rm.data.tables import SUFFIXES
from l2rm.errors import InputError

if TYPE_CHECKING:
    import torch

    from l2rm.similarity.model import RetrievalModel

TRAIN, DEV = "train", "dev"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How images become features, where DATA are images; and captions embeddings, where they are not read as words."""

    name: str = "efficientnet-lite0"
    grid: int = 6
    """Cells along each side of an image."""
    finetuned: bool = False
    """Images do not become features: the model learns from their pixels, which this one's preprocessing makes."""
    captions: str | None = None
    """A sentence encoder; None: captions stay words, unless `name` embeds them too."""
    captions_checksum: str | None = None
    """Which encoder of that name: a run's or an index's; None: whichever there is."""

    @property
    def facts(self) -> dict[str, Any]:
        """For `config.json`."""
        how = {"finetuned": True} if self.finetuned else {"grid": self.grid}
        return {"name": self.name, **how, **self.caption_facts}

    @property
    def caption_facts(self) -> dict[str, Any]:
        """The part of them that is about captions."""
        known = {"captions": self.captions, "captions_checksum": self.captions_checksum}
        return {} if self.captions is None else known


@dataclass(frozen=True, kw_only=True)
class Injection:
    """Mismatches to put into the train split at random: what `corrupt` draws by the same ratio, level and seed."""

    ratio: float
    level: Literal["image", "caption"]
    seed: int


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What pairs to read, and how.

    Attributes:
        source: a precomp folder, a table, `images.npy,captions.npy` or `openmoji:`; see `read_pairs`.
        image_root: folder that a table's image paths start from; None for the table's own.
        seed: draws the 90/5/5 split of a source that has none; None where several runs drew different ones.
        skip_bad: leave bad rows out and name them in warnings.
        mismatch: an index file that says which image each caption is given. It counts the captions of the split that
            it mismatches; where the source has no splits of its own, all captions, whichever seed splits them.
        injection: mismatches for training, drawn instead of read from an index file.
        decisions: what people decided about pairs, as `read_decisions` takes it; truth for training.
        encoder: makes the features of images, and embeddings of captions.
    """

    source: str
    image_root: Path | None = None
    seed: int | None = 0
    skip_bad: bool = False
    mismatch: Path | None = None
    injection: Injection | None = None
    decisions: Path | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)

    @property
    def is_folder(self) -> bool:
        """The source is a precomp folder."""
        return Path(self.source).is_dir() and not is_sharded(self.source)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """What a run learns from and is chosen on.

    Attributes:
        train, dev: with features; `train` is mismatched where that was asked for.
        sizes: (images, captions) of every split of the source.
        level, ratio: at which level, and to what share, `train` is known to be mismatched; None where that is unknown.
        facts: all this for `config.json`.
    """

    train: Pairs
    dev: Pairs
    sizes: dict[str, tuple[int, int]]
    level: str | None
    ratio: float | None
    facts: dict[str, Any]


def absolute(source: str) -> str:
    """DATA, whose paths start from the root of the file system."""
    return ",".join(str(path.absolute()) for path in files_of(source))


def open_splits(
    source: str | Path, *, image_root: str | Path | None = None, seed: int = 0, skip_bad: bool = False
) -> dict[str, Pairs]:
    """Every split of a source by name, without features where DATA are images: `l2rm.data.formats.read_splits`."""
    return read_splits(source, image_root=image_root, seed=seed, skip_bad=skip_bad)


def with_features(
    pairs: Pairs,
    encoder: EncoderConfig,
    *,
    skip_bad: bool = False,
    progress: bool = True,
    device: "torch.device | str" = "cpu",
    model: "RetrievalModel | None" = None,
) -> Pairs:
    """The pairs with features: their own where they have any, else the encoder's (cached).

    For a `model` that takes pixels it is their pictures instead.

    Raises:
        InputError: an image that does not decode (without `skip_bad`), no such encoder.
    """
    if encoder.captions is not None and pairs.caption_features is None:
        return _with_captions(pairs, encoder, skip_bad=skip_bad, progress=progress, device=device)
    if pairs.features is not None:
        return pairs
    if encoder.finetuned or (model is not None and model.reading is not None):
        from l2rm.encoders.pictures import pictured
        from l2rm.encoders.pretrained import Reading

        reading = Reading.open(encoder.name) if model is None or model.reading is None else model.reading
        return pictured(pairs, reading, skip_bad=skip_bad, progress=progress)
    from l2rm.encoders.image import encode

    return encode(pairs, encoder=encoder.name, grid=encoder.grid, skip_bad=skip_bad, progress=progress, device=device)


def _with_captions(
    pairs: Pairs, encoder: EncoderConfig, *, skip_bad: bool, progress: bool, device: "torch.device | str"
) -> Pairs:
    """The same with captions embedded by a sentence encoder, which is looked at before images take their time."""
    from l2rm.encoders.sentences import SentenceEncoder, encode_captions

    assert encoder.captions is not None
    network = SentenceEncoder(encoder.captions, device, checksum=encoder.captions_checksum)
    images = replace(encoder, captions=None)
    pairs = with_features(pairs, images, skip_bad=skip_bad, progress=progress, device=device)
    return encode_captions(pairs, network, progress=progress)


def pinned_encoder(encoder: EncoderConfig) -> EncoderConfig:
    """The same with the checksum of the sentence encoder that goes by its name now; a folder by its absolute path.

    Raises:
        InputError: no such sentence encoder, or one for captions that `name` embeds already.
    """
    if encoder.captions is None:
        return encoder
    from l2rm.encoders.image import is_transformers_name
    from l2rm.encoders.sentences import SentenceEncoder

    if encoder.name and is_transformers_name(encoder.name):
        raise InputError(
            f"encoder {encoder.name}: embeds captions too; give it without --caption-encoder {encoder.captions}"
        )
    network = SentenceEncoder(encoder.captions)
    return replace(encoder, captions=network.name, captions_checksum=network.checksum)


def refuse_embeddings(pairs: Pairs, encoder: EncoderConfig) -> None:
    """What embeds captions is asked for, and they are embeddings already.

    Raises:
        InputError: so it is.
    """
    if encoder.captions is not None and pairs.caption_features is not None:
        raise InputError(f"{pairs.source}: captions are embeddings already; leave --caption-encoder out")


def open_training(data: DataConfig, *, progress: bool = True, device: "torch.device | str" = "cpu") -> TrainingData:
    """Read and encode what a run needs.

    Raises:
        InputError: no split to train on or to choose the model on, and whatever is wrong with DATA.
    """
    encoder = pinned_encoder(data.encoder)
    splits = _open_splits(data, mismatched=TRAIN)
    for name, purpose in ((TRAIN, "there is nothing to learn from"), (DEV, "the model is chosen on it")):
        if name not in splits:
            remedy = f"add {name}_ims.npy and {name}_caps.txt" if data.is_folder else f"add rows whose split is {name}"
            raise InputError(f"{data.source}: no split {name!r} among {', '.join(splits)}; {remedy}: {purpose}")
    if data.injection is not None:
        splits[TRAIN] = inject_mismatches(splits[TRAIN], **asdict(data.injection)).pairs
    decided = None if data.decisions is None else _decide(data, splits)
    refuse_embeddings(splits[TRAIN], encoder)
    train, dev = (
        with_features(splits[name], encoder, skip_bad=data.skip_bad, progress=progress, device=device)
        for name in (TRAIN, DEV)
    )
    level, ratio = measured_mismatch(train)
    encoded = splits[TRAIN].features is None
    facts = {
        "source": data.source if data.source == BUILT_IN else absolute(data.source),
        "image_root": None if data.image_root is None else str(data.image_root.absolute()),
        "seed": data.seed,
        "skip_bad": data.skip_bad,
        "mismatch": None
        if level is None
        else {
            "index": None if data.mismatch is None else str(data.mismatch.absolute()),
            "level": level,
            "ratio": ratio,
        },
        "injection": None if data.injection is None else asdict(data.injection),
        "decisions": decided,
        "encoder": encoder.facts if encoded else encoder.caption_facts or None,
    }
    sizes = {name: (part.n_images, len(part)) for name, part in {**splits, TRAIN: train, DEV: dev}.items()}
    return TrainingData(train=train, dev=dev, sizes=sizes, level=level, ratio=ratio, facts=facts)


def open_split(data: DataConfig, split: str) -> Pairs:
    """One split, with the mismatches of `data.mismatch` where there are any; without features where DATA are images.

    Raises:
        InputError: no such split, and whatever is wrong with DATA.
    """
    if data.is_folder:
        pairs = read_pairs(data.source, image_root=data.image_root, split=split, skip_bad=data.skip_bad)
        return pairs if data.mismatch is None else read_index(data.mismatch, pairs).pairs
    split = SPLIT_NAMES.get(split, split)
    splits = _open_splits(data, mismatched=split)
    if split not in splits:
        raise InputError(f"{data.source}: no split {split!r}; take one that it has: {', '.join(splits)}")
    return splits[split]


def open_rows(data: DataConfig, split: str | None = None, *, least: int = 2) -> Pairs:
    """The pairs to audit: one split, else all rows of DATA; of a folder with several splits, what one would train on.

    A table must have `least` rows.

    Raises:
        InputError: no such split, and whatever is wrong with DATA.
    """
    if split is not None:
        return open_split(data, split)
    if data.is_folder and (Path(data.source) / f"{TRAIN}_ims.npy").exists():
        return open_split(data, TRAIN)
    pairs = read_pairs(data.source, image_root=data.image_root, skip_bad=data.skip_bad, least=least)
    return pairs if data.mismatch is None else read_index(data.mismatch, pairs).pairs


def open_unseen(data: DataConfig, learned: Pairs) -> Pairs | None:
    """The dev split of DATA, which a run chose its model on but did not learn; without features where DATA are images.

    None where there is none, or where one of its pairs is among those `learned` (another table was split then).
    """
    dev = _open_splits(data, mismatched=TRAIN).get(DEV)
    if dev is None or _named(dev) & _named(learned):
        return None
    return dev


def _named(pairs: Pairs) -> set[tuple[str, str]]:
    return {(pairs.images[image], caption) for image, caption in zip(pairs.image_of, pairs.captions, strict=True)}


def corrupt(
    data: DataConfig, *, ratio: float, level: Literal["image", "caption"], seed: int, split: str, out: Path
) -> Mismatched:
    """Mismatch one split at random and write it to `out`: an index file (.npy), or the whole table with the truth.

    Returns:
        The split, mismatched.

    Raises:
        InputError: `out` has another suffix, is part of DATA, or is a table though DATA are none; a ratio outside
            [0, 1), and whatever is wrong with DATA.
    """
    if out.suffix.lower() != ".npy" and out.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{out}: {out.suffix or 'no suffix'} is nothing to write; use .npy for an index file, or one of "
            f"{', '.join(SUFFIXES)} for a table"
        )
    _refuse_overwriting(data.source, out)
    as_table = out.suffix.lower() in SUFFIXES
    if data.is_folder:
        if as_table:
            raise InputError(f"{data.source}: features without image files, of which no table can be made; use .npy")
        noisy = inject_mismatches(open_split(data, split), ratio=ratio, level=level, seed=seed)
        write_index(out, noisy)
        return noisy
    whole, implied = _read_whole(data)
    if as_table and whole.image_root is None:
        raise InputError(f"{data.source}: has no image files, of which a table could be made; use .npy")
    rows = _rows_of(whole, split)
    noisy = inject_mismatches(whole.take(rows), ratio=ratio, level=level, seed=seed)
    everything = _put_back(whole, rows, noisy)
    if as_table:
        everything.write(out)
    else:
        write_index(out, replace(noisy, pairs=everything) if implied else noisy)
    return noisy


def measured_mismatch(pairs: Pairs) -> tuple[str | None, float | None]:
    """(level, ratio) of mismatches, the ratio being a share of images or of captions; (None, None) if not known."""
    is_mismatched = pairs.is_mismatched
    if is_mismatched is None:
        return None, None
    level = recognise_level(pairs)
    if level == "image":
        return level, len(np.unique(pairs.image_of[is_mismatched])) / pairs.n_images
    return level, float(is_mismatched.mean())


# --------------------------------------------------------------------------------------------------------- splits


def _open_splits(data: DataConfig, *, mismatched: str) -> dict[str, Pairs]:
    """Every split, `mismatched` by the index file where there is one."""
    if data.is_folder:
        splits = open_splits(data.source, image_root=data.image_root, skip_bad=data.skip_bad)
    else:
        whole, implied = _read_whole(data)
        if implied and data.mismatch is not None:
            noisy = read_index(data.mismatch, whole).pairs
            _refuse_strays(data.mismatch, whole, noisy, mismatched)
            return _by_split(noisy)
        splits = _by_split(whole)
    if data.mismatch is not None and mismatched in splits:
        splits[mismatched] = read_index(data.mismatch, splits[mismatched]).pairs
    return splits


def _read_whole(data: DataConfig) -> tuple[Pairs, bool]:
    """All rows of anything but a folder, each with its split, and whether that had to be drawn."""
    whole = read_pairs(data.source, image_root=data.image_root, skip_bad=data.skip_bad)
    if whole.splits is not None:
        return whole, False
    if data.seed is None:
        raise InputError(
            f"{data.source}: has no splits, and the runs drew different ones by their seeds; take the runs one by one, "
            "or add a column split"
        )
    parts = whole.split(dev=DEV_SHARE, test=TEST_SHARE, seed=data.seed)
    split_of = {
        pair_id: name for name, part in zip((TRAIN, DEV, "test"), parts, strict=True) for pair_id in part.pair_ids
    }
    return replace(whole, splits=tuple(split_of[pair_id] for pair_id in whole.pair_ids)), True


def _by_split(whole: Pairs) -> dict[str, Pairs]:
    return {name: whole.take(_rows_of(whole, name)) for name in dict.fromkeys(whole.splits or ())}


def _rows_of(whole: Pairs, split: str) -> NDArray[np.int64]:
    names = whole.splits or ()
    rows = np.flatnonzero([name == SPLIT_NAMES.get(split, split) for name in names])
    if not len(rows):
        raise InputError(f"{whole.source}: no split {split!r}; take one that it has: {', '.join(dict.fromkeys(names))}")
    return rows


def _refuse_strays(path: Path, whole: Pairs, noisy: Pairs, split: str) -> None:
    """Mismatches stay within the split: the index file was made for this split, drawn by the same seed."""
    inside = _rows_of(whole, split)
    outside = np.setdiff1d(np.arange(len(whole)), inside)
    stray = (noisy.image_of != whole.image_of)[outside].any()
    if stray or len(np.setdiff1d(noisy.image_of[inside], whole.image_of[inside])):
        raise InputError(
            f"{path}: mismatches pairs outside the {split} split, which a seed draws from {whole.source}; "
            "use the --seed that the index file was made with, or add a column split"
        )


def _decide(data: DataConfig, splits: dict[str, Pairs]) -> dict[str, Any]:
    """Apply the decisions to the splits in place; how many there were, for `config.json`.

    Rows of a folder are named apart within a split only, so there decisions are about the train split.
    """
    assert data.decisions is not None
    path = data.decisions
    decisions = read_decisions(path)
    split_of = {} if data.is_folder else {one: name for name, part in splits.items() for one in part.pair_ids}
    by_split: dict[str, list[Decision]] = {}
    for decision in decisions:
        by_split.setdefault(split_of.get(decision.pair_id, TRAIN), []).append(decision)
    asked = dict(splits)
    counts: Counter[str] = Counter()
    for name, about in by_split.items():
        others = () if data.is_folder else [part for other, part in asked.items() if other != name]
        decided = apply_decisions(asked[name], about, others=others, source=str(path))
        splits[name] = decided.pairs
        counts.update({one: getattr(decided, one) for one in (*VERDICTS, "elsewhere")})
    return {"file": str(path.absolute()), **{one: counts[one] for one in (*VERDICTS, "elsewhere")}}


def _put_back(whole: Pairs, rows: NDArray[np.int64], noisy: Mismatched) -> Pairs:
    """The whole table with the mismatches of one part, and the truth."""
    number = np.unique(whole.image_of[rows])  # of each image of the part, in the whole
    given = whole.image_of.copy()
    given[rows] = number[noisy.pairs.image_of]
    truth = (whole.image_of if whole.true_image_of is None else whole.true_image_of).copy()
    truth[rows] = whole.image_of[rows]
    return replace(whole, image_of=given, true_image_of=truth)


# -------------------------------------------------------------------------------------------------------- details


def _refuse_overwriting(source: str, out: Path) -> None:
    inputs = list(files_of(source))
    if inputs[0].is_dir():
        inputs = [*inputs[0].glob("*_ims.npy"), *inputs[0].glob("*_caps.txt"), *inputs[0].glob("*scale.npy")]
    if out.resolve() in {path.resolve() for path in inputs}:
        raise InputError(f"{out}: is part of the data itself; choose another --out")
