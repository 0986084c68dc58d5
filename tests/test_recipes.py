"""Recipes hold the published numbers, and `faithful` undoes exactly what is not published."""

import dataclasses

import pytest

from l2rm.recipes import RECIPES, faithful
from l2rm.similarity.settings import ModelConfig
from l2rm.training.settings import TrainConfig


@pytest.mark.parametrize(
    ("name", "warmup", "rematching", "decay", "reg"),
    [("f30k", 5, 35, 15, 0.01), ("coco", 10, 20, 10, 0.07), ("cc152k", 10, 40, 20, 0.07)],
)
def test_published_schedules(name: str, warmup: int, rematching: int, decay: int, reg: float) -> None:
    config = RECIPES[name]()
    assert (config.warmup_epochs, config.rematching_epochs, config.decay_every) == (warmup, rematching, decay)
    assert config.rematching.reg == reg
    assert (config.batch_size, config.lr, config.clip) == (128, 2e-4, 2.0)
    model = config.model
    assert (model.similarity, model.embed_dim, model.similarity_dim, model.word_dim) == ("sgr", 1024, 256, 300)
    assert (model.graph_steps, model.dropout, model.min_word_count) == (3, 0.4, 4)
    assert config.learning_rate_factor(warmup + decay) == pytest.approx(0.1)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_can_be_trained(name: str) -> None:
    from l2rm.training.check import check_config

    config = RECIPES[name]()
    if config.model.similarity == "clip":  # which one is the user's to say
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, encoder="OWNER/MODEL"))
    check_config(config)
    check_config(faithful(config))


@pytest.mark.parametrize("name", RECIPES)
def test_faithful_is_the_published_method(name: str) -> None:
    before, after = RECIPES[name](), faithful(RECIPES[name]())
    rematching = after.rematching
    assert (rematching.forbid, rematching.one_mode, rematching.matched_objective) == (
        "pair",
        "mixture",
        "max_violation",
    )
    assert (rematching.monotone, rematching.smoothing, rematching.queue_size) == (False, 0.0, 0)
    assert (rematching.estimator, rematching.take, rematching.folds) == ("moments", "threshold", 0)
    assert (rematching.rematch_weight, rematching.steps, rematching.judge) == (1.0, "matched", "")
    assert after.model.tokeniser == "published"
    same = ("warmup_epochs", "rematching_epochs", "batch_size", "lr", "decay_every", "seed", "method")
    assert [getattr(before, key) for key in same] == [getattr(after, key) for key in same]
    assert (rematching.reg, rematching.tau) == (before.rematching.reg, before.rematching.tau)
    assert faithful(after) == after


def test_the_public_code_masks_injected_mismatches_only() -> None:
    for name, recipe in RECIPES.items():
        masked, unmasked = faithful(recipe()), faithful(recipe(), injected=False)
        assert (masked.rematching.forbid, unmasked.rematching.forbid) == ("pair", "nothing"), name
        assert dataclasses.replace(unmasked, rematching=masked.rematching) == masked


def test_faithful_undoes_settings_and_leaves_a_chosen_tokeniser() -> None:
    start = TrainConfig(model=ModelConfig(tokeniser="wordpunct"))
    start = dataclasses.replace(
        start, rematching=dataclasses.replace(start.rematching, smoothing=0.5, queue_size=512, rematch_weight=0.1)
    )
    after = faithful(start)
    assert after.model.tokeniser == "wordpunct"
    assert (after.rematching.smoothing, after.rematching.queue_size, after.rematching.rematch_weight) == (0.0, 0, 1.0)
