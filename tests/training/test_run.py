"""The RUN folder: what is written is what is read."""

import json

import pytest
import torch

from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.run import load_run, write_model, write_record
from l2rm.training.settings import TrainConfig


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("similarity", ["cosine", "sgr", "saf"])
def test_precision_is_saved_with_the_run_and_its_weights_are_float32(tmp_path, similarity, precision):
    torch.manual_seed(0)
    config = TrainConfig(model=ModelConfig(similarity=similarity, embed_dim=8, similarity_dim=6, precision=precision))
    shape = DataShape(image_dim=5, regions=3, caption_dim=4)
    model = build_model(config.model, shape)
    write_record(tmp_path, config, shape)
    write_model(tmp_path, model)

    run = load_run(tmp_path)
    assert run.config == config
    assert run.model.precision == precision
    assert all(x.dtype == torch.float32 for x in run.model.parameters())
    images, captions = torch.randn(3, 3, 5), torch.randn(2, 4)
    assert torch.equal(run.model.similarity(images, captions), model.similarity(images, captions))
    model.precision = "bfloat16" if precision == "float32" else "float32"
    assert not torch.equal(run.model.similarity(images, captions), model.similarity(images, captions))


def test_a_run_from_before_there_was_a_choice_of_precision_is_float32(tmp_path):
    shape = DataShape(image_dim=5, regions=1, caption_dim=4)
    config = TrainConfig(model=ModelConfig(similarity="cosine", embed_dim=8))
    write_record(tmp_path, config, shape)
    write_model(tmp_path, build_model(config.model, shape))
    record = json.loads((tmp_path / "config.json").read_text())
    del record["config"]["model"]["precision"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert load_run(tmp_path).model.precision == "float32"
