"""What runs tell of the data that they learned from, so that others read theirs in the same way."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from l2rm.data.formats import files_of
from l2rm.errors import InputError
from l2rm.sources import DataConfig, EncoderConfig, Injection, absolute
from l2rm.training.run import config_from, read_record
from l2rm.training.settings import TrainConfig


def saved_data(folder: Path) -> DataConfig | None:
    """What the run in `folder` was given to learn from; None for a run whose `config.json` does not tell.

    Raises:
        InputError: the folder is no run.
    """
    facts = read_record(folder).get("data")
    if facts is None:
        return None
    try:
        return _data_config(facts)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{folder / 'config.json'}: data: not what a run tells of it ({reason}); restore the file or train again"
        ) from error


def _data_config(facts: dict[str, Any]) -> DataConfig:
    mismatch, injection = (facts["mismatch"] or {}).get("index"), facts.get("injection")
    decisions = facts.get("decisions")
    return DataConfig(
        source=facts["source"],
        image_root=None if facts["image_root"] is None else Path(facts["image_root"]),
        seed=facts["seed"],
        skip_bad=facts["skip_bad"],
        mismatch=None if mismatch is None else Path(mismatch),
        injection=None if injection is None else Injection(**injection),
        decisions=None if decisions is None else Path(decisions["file"]),
        encoder=EncoderConfig(**(facts["encoder"] or {})),
    )


def saved_run(folder: Path) -> tuple[TrainConfig, DataConfig]:
    """The configuration that the run in `folder` was started with, and its data (defaults, where it does not tell).

    Raises:
        InputError: the folder is no run.
    """
    record = read_record(folder)
    config = config_from(TrainConfig, record["config"], folder / "config.json")
    if "candidates" in record:  # the objective that was found stands for the question
        config = replace(config, objective="auto")
    return config, saved_data(folder) or DataConfig(source="")


def refuse_other_encoder(folder: Path, facts: dict[str, Any]) -> None:
    """A run to be resumed must go on with the features that it began with; `train` compares the rest.

    Raises:
        InputError: the run in `folder`, if there is one, used another encoder or grid, or another of captions.
    """
    if not (folder / "config.json").exists():
        return
    was, now = (one.get("encoder") for one in (read_record(folder).get("data", facts), facts))
    if (was is None) != (now is None) or EncoderConfig(**(was or {})) != EncoderConfig(**(now or {})):
        raise InputError(f"{folder}: encoder was {was} and is now {now}; resume a run as it was started")


def data_for(folders: Iterable[Path], asked: DataConfig) -> DataConfig:
    """DATA as the runs read theirs: their encoders and the seed of their split; and, of the same DATA, the image root.

    Raises:
        InputError: the runs used different encoders of captions; or of images, and DATA are images.
    """
    found = [(folder, data) for folder in folders if (data := saved_data(folder)) is not None]
    if not found:
        return asked
    first_folder, first = found[0]
    for folder, other in found[1:]:
        if other.encoder.caption_facts != first.encoder.caption_facts:
            told = [one.encoder.captions or "their words" for one in (other, first)]
            raise InputError(
                f"{folder}: reads captions by {told[0]}, but {first_folder} by {told[1]} (or another of that name); "
                "take the runs one by one"
            )
        if other.encoder != first.encoder and not _has_features(asked):
            raise InputError(
                f"{folder}: trained with {other.encoder}, but {first_folder} with {first.encoder}; "
                "take the runs one by one, or give DATA with features"
            )
    image_root = asked.image_root
    if image_root is None and first.source == absolute(asked.source):
        image_root = first.image_root
    seed = first.seed if all(other.seed == first.seed for _, other in found) else None
    return replace(asked, encoder=first.encoder, seed=seed, image_root=image_root)


def _has_features(data: DataConfig) -> bool:
    """DATA are a precomp folder or embeddings, which bring their features."""
    return data.is_folder or len(files_of(data.source)) == 2
