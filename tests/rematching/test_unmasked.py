"""The step without a mask."""

import numpy as np
import torch

from l2rm.data.batches import Batches
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.rematching.cost import LinearCost
from l2rm.rematching.settings import RematchingConfig
from l2rm.rematching.step import RematchingStep
from l2rm.rematching.unmasked import UnmaskedStep
from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig


def test_a_plan_may_leave_a_caption_with_its_given_image() -> None:
    features = Features(array=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    pairs = Pairs(
        images=tuple(map(str, range(8))),
        image_of=np.arange(8),
        captions=("text",) * 8,
        features=features,
        caption_features=features,
    )
    batches = Batches(pairs, None)
    torch.manual_seed(0)
    model = build_model(ModelConfig(similarity="cosine", embed_dim=6), DataShape(image_dim=4, regions=1, caption_dim=4))
    carried = {}
    for kind in (UnmaskedStep, RematchingStep):
        cost = LinearCost(4)
        config = RematchingConfig(reg=0.05, mass=0.3, forbid="nothing" if kind is UnmaskedStep else "pair")
        step = kind(model, cost, torch.optim.Adam(cost.parameters()), config)
        matched, mismatched = (batches.batch(np.arange(start, start + 4)) for start in (0, 4))
        plan = step(batches, matched, mismatched, torch.zeros(0, dtype=torch.long)).plan
        assert plan is not None
        carried[kind] = plan.matrix.diagonal()
    assert (carried[UnmaskedStep] > 0).all()
    assert not carried[RematchingStep].any()
