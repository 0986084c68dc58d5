"""What is wrong with a training run is said before it begins, not hours later."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.encoders.pictures import Pictures
from l2rm.errors import InputError
from l2rm.training.run import config_from
from l2rm.training.settings import CANDIDATES, TrainConfig

LOWEST: dict[str, float] = {
    "warmup_epochs": 0,
    "rematching_epochs": 0,
    "batch_size": 2,
    "decay_every": 1,
    "seed": 0,
    "lr_rise_steps": 0,
    "weight_decay": 0,
    "rematching.max_iterations": 1,
    "rematching.planted": 0,
    "rematching.queue_size": 0,
    "rematching.memory": 0,
    "rematching.smoothing": 0,
    "rematching.matched_above": 0,
    "rematching.folds": 0,
    "rematching.fold_rounds": 1,
    "rematching.fold_rematching_epochs": 0,
    "rematching.wording": 0,
    "rematching.rematch_every": 1,
    "ncr.suspects_from": 0,
    "crcl.rounds": 1,
    "crcl.frozen_epochs": 0,
    "crcl.momentum": 0,
    "crcl.complement": 0,
    "crcl.least": 0,
    "in2r.memory": 1,
    "in2r.neighbours": 1,
    "in2r.margin": 0,
    "in2r.weight": 0,
    "model.embed_dim": 1,
    "model.word_dim": 1,
    "model.similarity_dim": 1,
    "model.graph_steps": 1,
    "model.dropout": 0,
    "model.lora_rank": 1,
}
POSITIVE = (
    "lr",
    "clip",
    "rematching.tau",
    "rematching.mass",
    "rematching.reg",
    "rematching.tolerance",
    "rematching.equivariant_lr",
    "crcl.early_share",
    "model.lora_alpha",
)
HIGHEST: dict[str, float] = {"rematching.mass": 1, "rematching.planted": 1, "crcl.momentum": 1}
BELOW_ONE = ("rematching.smoothing", "rematching.matched_above", "model.dropout", "crcl.early_share", "crcl.least")
FREE_ON_RESUME = ("device", "save_seconds")
"""Fields that a run may be resumed with another value of."""


def check_config(config: TrainConfig) -> None:
    """Look for values that no run can have.

    Raises:
        InputError: names the field, its value and what it may be.
    """
    values = dict(_flat(config))
    for name, choices in _choices(type(config)):
        if values[name] not in choices:
            raise InputError(f"{name}: {values[name]!r} is unknown; take one of {', '.join(choices)}")
    for name, value in values.items():
        if value == math.inf:
            raise InputError(f"{name}: {value} is not finite; give a number")
    for name, lowest in LOWEST.items():
        if not values[name] >= lowest:
            raise InputError(f"{name}: {values[name]} is too small; give at least {lowest:g}")
    for name in POSITIVE:
        if not values[name] > 0:
            raise InputError(f"{name}: {values[name]} is not positive")
    for name, highest in HIGHEST.items():
        if values[name] > highest:
            raise InputError(f"{name}: {values[name]} is too large; give at most {highest:g}")
    for name in BELOW_ONE:
        if not values[name] < 1:
            raise InputError(f"{name}: {values[name]} is too large; give less than 1")
    if config.epochs < 1:
        raise InputError("warmup_epochs, rematching_epochs: both are 0; give at least one epoch")
    if 0 < config.rematching.queue_size < config.batch_size:
        raise InputError(
            f"rematching.queue_size: {config.rematching.queue_size} is less than a batch has ({config.batch_size}); "
            "give 0 for the batch alone, or more"
        )
    _check_encoder(config)
    if config.rematching.memory and config.model.similarity != "cosine":
        raise InputError(
            f"rematching.memory: {config.model.similarity} compares regions with words, which a memory would have to "
            "hold; give 0"
        )
    if config.method == "in2r" and config.model.similarity != "cosine":
        raise InputError(
            f"method: in2r looks for neighbours among vectors of images and captions, and {config.model.similarity} "
            "compares regions with words or reads pixels; take model.similarity cosine, or another method"
        )
    if config.in2r.neighbours > config.in2r.memory:
        raise InputError(
            f"in2r.neighbours: {config.in2r.neighbours} are more than in2r.memory, {config.in2r.memory}; give less"
        )
    if config.model.pooling != "mean" and config.model.similarity != "cosine":
        raise InputError(
            f"model.pooling: {config.model.similarity} compares regions with words and pools neither; leave it at mean"
        )
    if config.rematching.folds == 1:
        raise InputError("rematching.folds: 1 leaves nothing to learn from; give 0 for no folds, or 2 or more")
    if config.rematching.folds_by != "image" and not config.rematching.folds:
        raise InputError("rematching.folds_by: says what falls into folds, which are 0; give folds, 2 or more")
    if config.rematching.folds and not config.warmup_epochs:
        raise InputError(
            "rematching.folds: the models of the folds learn in warmup_epochs, which is 0; give at least 1"
        )
    if config.rematching.wording and not config.rematching.folds and config.rematching.scope == "batch":
        raise InputError(
            "rematching.wording: words count where folds divide, or scope dataset finds partners; give 0, folds, 2 or "
            "more, or scope dataset"
        )
    if config.rematching.judge:
        if config.method not in ("l2rm", "division"):
            raise InputError(
                f"rematching.judge: method {config.method} asks none; take l2rm or division, or leave it out"
            )
    elif config.rematching.scope == "dataset" and config.rematching.evidence == "auto" and not config.rematching.folds:
        raise InputError("rematching.evidence: auto is found out by folds, which are 0; give pair, image, or folds")
    if config.objective != "auto" and config.method not in CANDIDATES:
        raise InputError(f"objective: method {config.method} has its own; leave it at auto")


def _check_encoder(config: TrainConfig) -> None:
    """A pretrained model is named where one is to be fine-tuned, and nowhere else."""
    model = config.model
    if model.similarity == "clip" and not model.encoder:
        raise InputError(
            "model.encoder: is not given; name the CLIP or SigLIP to fine-tune, by its folder or OWNER/MODEL"
        )
    if model.similarity != "clip" and model.encoder:
        raise InputError(
            f"model.encoder: {model.encoder} is fine-tuned by model.similarity clip only, which is {model.similarity}; "
            "for features of it, frozen, give --encoder"
        )


def check_data(pairs: Pairs, dev: Pairs, config: TrainConfig, vocabulary: Vocabulary | None) -> None:
    """Look for what keeps these pairs from being trained on.

    Raises:
        InputError: names the data, what is wrong, and what to do.
    """
    for part in (pairs, dev):
        if part.features is None:
            raise InputError(f"{part.source}: no image features; encode the images first")
        part.features.check()
        if part.caption_features is not None:
            part.caption_features.check()
    if _width(pairs) != _width(dev):
        raise InputError(
            f"{dev.source}: features of images and captions are {_width(dev)} in dev, {_width(pairs)} in train; "
            "make both with the same encoder"
        )
    if len(pairs) < 2 or pairs.n_images < 2:
        raise InputError(f"{pairs.source}: {len(pairs)} training pairs; at least two pairs of two images are needed")
    if config.method in ("l2rm", "division") and pairs.n_images < 2 * config.rematching.folds:
        raise InputError(
            f"{pairs.source}: {pairs.n_images} training images are fewer than two for each of "
            f"{config.rematching.folds} folds; give less rematching.folds"
        )
    if not len(dev):
        raise InputError(f"{dev.source}: no dev pairs to choose the model on; give some")
    if config.model.similarity == "clip":
        for part in (pairs, dev):
            if not isinstance(part.features, Pictures) or part.caption_features is not None:
                raise InputError(
                    f"{part.source}: has features, but model.similarity clip learns from pixels and words; give DATA "
                    "of image files, or another similarity"
                )
    if vocabulary is not None and pairs.caption_features is not None:
        raise InputError(f"{pairs.source}: captions are embeddings, not words; leave the vocabulary out")
    if config.method == "oracle":
        if pairs.is_mismatched is None:
            raise InputError(
                f"{pairs.source}: method oracle learns from truly matched pairs only, and which they are is not known; "
                "give --mismatch INDEX.npy, --ratio and --level, or a table with a column true_image"
            )
        if (matched := int((~pairs.is_mismatched).sum())) < 2:
            raise InputError(f"{pairs.source}: {matched} truly matched pairs; method oracle needs at least two")


def check_same_run(
    out: Path,
    record: dict[str, Any],
    config: TrainConfig,
    fingerprint: str,
    features: dict[str, list[str | None]] | None = None,
) -> None:
    """Compare what is asked for with the run in `out`, as its `config.json` tells of it.

    Raises:
        InputError: another configuration (device and times of saving aside), other pairs or other features (digests by
            split, where both know them); a converted run.
    """
    if "converted" in record:
        raise InputError(f"{out}: was converted from a checkpoint, so no training can go on; choose another --out")
    was = dict(_flat(config_from(TrainConfig, record["config"], out / "config.json")))
    now = dict(_flat(config))
    if "candidates" in record:  # the objective that was found then stands for the question
        was["objective"] = "auto"
    for name in now:
        moved = name == "rematching.judge" and was[name] and now[name]
        if was[name] != now[name] and name not in FREE_ON_RESUME and not moved:
            raise InputError(f"{out}: {name} was {was[name]} and is now {now[name]}; resume a run as it was started")
    if record.get("fingerprint", fingerprint) != fingerprint:
        raise InputError(f"{out}: was trained on other pairs; resume a run with the data that it was started with")
    for split, digests in (features or {}).items():
        known = record.get("features", {}).get(split, digests)
        for what, before, after in zip(("images", "captions"), known, digests, strict=True):
            if None not in (before, after) and before != after:
                raise InputError(
                    f"{out}: the features of the {split} {what} have changed since the run was started; put the file "
                    "back as it was, or train anew into another --out"
                )


def _width(pairs: Pairs) -> tuple[tuple[int, ...] | None, ...]:
    """Shape of an image's features and of a caption's; None for captions that are words."""
    return tuple(None if part is None else part.shape[1:] for part in (pairs.features, pairs.caption_features))


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field as (name, value), those of nested configurations as `outer.inner`."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _flat(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _choices(kind: Any, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every field that takes one of a few words, as (name, words)."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _choices(hint, f"{prefix}{name}.")
        elif get_origin(hint) is Literal:
            yield f"{prefix}{name}", get_args(hint)
