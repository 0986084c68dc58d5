"""The copy of a model that an index carries, so that the folder is all that a search needs."""

from dataclasses import replace
from pathlib import Path

from l2rm.data.vocabulary import Vocabulary
from l2rm.similarity.clip import READING
from l2rm.similarity.model import RetrievalModel
from l2rm.training.run import write_model, write_record
from l2rm.training.settings import TrainConfig


def write_model_folder(folder: Path, model: RetrievalModel) -> None:
    """Write `config.json`, `model.safetensors` and `vocabulary.json` or `reading/`, which `l2rm.load` reads."""
    folder.mkdir(parents=True)
    one = TrainConfig(model=model.config)
    config = one if len(model.members) == one.networks else replace(one, method="ncr")  # the method of two networks
    write_record(folder, config, model.shape)
    write_model(folder, model)
    if isinstance(model.vocabulary, Vocabulary):
        model.vocabulary.write(folder / "vocabulary.json")
    if model.reading is not None:
        model.reading.write(folder / READING)
