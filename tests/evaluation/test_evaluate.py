"""`evaluate` takes what a model was trained on, and says what it cannot take."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation import evaluate as module
from l2rm.evaluation.evaluate import evaluate, evaluate_each
from l2rm.similarity.model import RetrievalModel, build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.similarity.settings import DataShape, ModelConfig

IMAGES, DIM = 12, 5


def features(*shape: int) -> Features:
    return Features(array=np.random.default_rng(0).normal(size=shape).astype(np.float32))


def embedded(regions: int | None = None) -> Pairs:
    """Captions that are the same vectors as their images."""
    images = features(IMAGES, DIM) if regions is None else features(IMAGES, regions, DIM)
    return Pairs(
        images=tuple(map(str, range(IMAGES))),
        image_of=np.arange(IMAGES),
        captions=("text",) * IMAGES,
        features=images,
        caption_features=features(IMAGES, DIM),
    )


def model(
    *, similarity: str = "cosine", regions: int = 1, caption_dim: int | None = DIM, seed: int = 0
) -> RetrievalModel:
    torch.manual_seed(seed)
    shape = DataShape(
        image_dim=DIM,
        regions=regions,
        caption_dim=caption_dim,
        vocabulary_size=9 if caption_dim is None else None,
    )
    return build_model(ModelConfig(similarity=similarity, embed_dim=8, similarity_dim=4), shape)  # type: ignore[arg-type]


def test_equal_towers_find_every_partner() -> None:
    same = model()
    same.caption_tower.load_state_dict(same.image_tower.state_dict())
    metrics = evaluate(same, embedded())
    assert (metrics.rsum, metrics.images, metrics.captions) == (600.0, IMAGES, IMAGES)
    assert evaluate([same, same], embedded()) == metrics


@pytest.mark.parametrize("kept_cells", [10**6, 0])
def test_each_is_what_evaluate_says_and_scored_once(kept_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = embedded().take(range(10))
    models = [model(seed=seed) for seed in (1, 2)]
    wanted = [
        [evaluate(which, pairs, protocol=protocol) for which in (*models, models)] for protocol in ("full", "folds5")
    ]
    asked = 0
    block = ModelScores.block

    def counted(self: ModelScores, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        nonlocal asked
        asked += len(images) * len(captions)
        return block(self, images, captions)

    monkeypatch.setattr(ModelScores, "block", counted)
    monkeypatch.setattr(module, "KEPT_CELLS", kept_cells)
    assert evaluate_each(models, pairs, protocols=("full", "folds5")) == wanted
    assert asked == 2 * 100 if kept_cells else asked > 2 * 100
    assert len({metrics.rsum for metrics in wanted[0]}) == 3
    assert evaluate_each(models[:1], pairs, protocols=("full",)) == [wanted[0][:1]]


def test_the_mode_of_the_model_stays() -> None:
    training = model().train()
    evaluate(training, embedded())
    assert training.training


def test_images_without_features_are_encoded_on_the_model_s_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def encode(pairs: Pairs, **options: object) -> Pairs:
        asked.update(options)
        return replace(pairs, features=features(IMAGES, 9, DIM))

    monkeypatch.setattr(module, "encode", encode)
    evaluate(model(similarity="sgr", regions=9), replace(embedded(), features=None))
    assert asked["grid"] == 3


@pytest.mark.parametrize(
    ("judge", "pairs", "message"),
    [
        (model(), replace(embedded(), features=features(IMAGES, 7)), "features of 7 dimensions.* trained on 5"),
        (model(similarity="sgr", regions=3), embedded(4), "4 regions an image.* trained on 3"),
        (model(similarity="sgr", regions=3), embedded(), "1 regions an image.* trained on 3"),
        (model(caption_dim=None), embedded(), "captions are embeddings, but the model reads words"),
        (
            model(),
            replace(embedded(), caption_features=None),
            "captions are words, but the model takes embeddings of 5",
        ),
        (model(caption_dim=6), embedded(), "caption embeddings of 5 dimensions.* trained on 6"),
    ],
)
def test_what_does_not_fit_is_said(judge: RetrievalModel, pairs: Pairs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(judge, pairs)


def test_nan_features_and_no_model() -> None:
    bad = embedded()
    assert bad.features is not None
    array = bad.features.array.copy()
    array[3, 1] = np.nan
    with pytest.raises(InputError, match="row 3"):
        evaluate(model(), replace(bad, features=Features(array=array)))
    with pytest.raises(InputError, match="no members"):
        evaluate([], embedded())


def test_regions_do_not_matter_to_a_mean() -> None:
    assert evaluate(model(regions=3), embedded(4)).images == IMAGES
