"""`evaluate` and `evaluate_each`: trained models and pairs in, retrieval metrics out."""

import math
from collections.abc import Sequence

from l2rm.data.pairs import Pairs
from l2rm.encoders.image import encode
from l2rm.encoders.pictures import Pictures, pictured
from l2rm.errors import InputError
from l2rm.evaluation.metrics import Metrics, Protocol, evaluate_scores
from l2rm.evaluation.scores import EnsembleScores, KeptScores, Scores
from l2rm.similarity.cascade import CascadeScores
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.scoring import ModelScores

Models = RetrievalModel | Sequence[RetrievalModel]
KEPT_CELLS = 2**28
"""Scores that are kept of a model, at most: 1 GiB; of more, each ranking computes its own."""


def evaluate(models: Models, pairs: Pairs, *, protocol: Protocol = "full", progress: bool = False) -> Metrics:
    """Retrieval metrics of a model, or of an ensemble of models (the mean of their similarities), on some pairs.

    Args:
        models: one model or several; `Run.model`, or what `load` returns.
        pairs: with features as the models were trained on. Where pairs have none, their images are encoded.
        protocol: see `evaluate_scores`.
        progress: tell on standard error how far it is.

    Raises:
        InputError: features that the models cannot take or that are not finite, and what `evaluate_scores` refuses.

    Example:
        >>> evaluate([l2rm.load("runs/1"), l2rm.load("runs/2")], test).rsum  # doctest: +SKIP
        312.4
    """
    return evaluate_scores(
        model_scores(models, pairs, progress=progress), pairs.image_of, protocol=protocol, progress=progress
    )


def evaluate_each(
    models: Sequence[RetrievalModel], pairs: Pairs, *, protocols: Sequence[Protocol], progress: bool = False
) -> list[list[Metrics]]:
    """Retrieval metrics as papers tabulate them: of each model and, of several, of their ensemble, by each protocol.

    Scores are computed once for all of it, where they fit into memory.

    Args:
        models: one model or several, say an SGR and a SAF.
        pairs: as `evaluate` takes them.
        protocols: see `evaluate_scores`.
        progress: tell on standard error how far it is.

    Returns:
        A list a protocol: the metrics of the models in turn, then, where there are several, those of their ensemble.

    Raises:
        InputError: what `evaluate` raises.
    """
    members: list[Scores] = list(member_scores(models, pairs, progress=progress))
    if len(members) * len(protocols) > 1 and members[0].n_images * members[0].n_captions <= KEPT_CELLS:
        members = [KeptScores(member) for member in members]
    everything = [*members, EnsembleScores(members)] if len(members) > 1 else members
    return [
        [evaluate_scores(scores, pairs.image_of, protocol=protocol, progress=progress) for scores in everything]
        for protocol in protocols
    ]


def evaluate_shortlisted(
    model: RetrievalModel,
    pairs: Pairs,
    first_pass: FirstPass,
    *,
    share: float,
    protocols: Sequence[Protocol],
    progress: bool = False,
) -> tuple[list[Metrics], float]:
    """Retrieval metrics by a shortlist: nearly those of `evaluate`, in a fraction of the time.

    Args:
        model: SGR or SAF.
        pairs: as `evaluate` takes them.
        first_pass: what `l2rm.training.distil` made for the model.
        share: part of the pairs that the model may score; the others follow in the order of the first pass.
        protocols: see `evaluate_scores`.
        progress: tell on standard error how far it is.

    Returns:
        The metrics by each protocol, and the share of the pairs that the model did score.

    Raises:
        InputError: what `evaluate` and `cascade` raise.
    """
    (scores,) = member_scores([model], pairs, progress=progress)
    shortlisted = CascadeScores(scores, share, first_pass)
    metrics = [
        evaluate_scores(shortlisted, pairs.image_of, protocol=protocol, progress=progress) for protocol in protocols
    ]
    return metrics, shortlisted.scored


def model_scores(models: Models, pairs: Pairs, *, progress: bool = False) -> Scores:
    """The models' scores of all images of some pairs against all captions, block by block.

    Raises:
        InputError: no model, or features that a model cannot take or that are not finite.
    """
    return mean_scores(member_scores(models, pairs, progress=progress))


def mean_scores(members: Sequence[Scores]) -> Scores:
    """The scores of an ensemble; of a single member its own."""
    return members[0] if len(members) == 1 else EnsembleScores(members)


def member_scores(models: Models, pairs: Pairs, *, progress: bool = False) -> list[ModelScores]:
    """The scores of each model; see `model_scores`."""
    models = [models] if isinstance(models, RetrievalModel) else models
    if models and pairs.features is None and (reading := models[0].reading) is not None:
        pairs = pictured(pairs, reading, progress=progress)
    elif models and pairs.features is None:
        pairs = encode(
            pairs,
            grid=math.isqrt(models[0].shape.regions),
            progress=progress,
            device=next(models[0].parameters()).device,
        )
    for features in (pairs.features, pairs.caption_features):
        if features is not None:
            features.check()
    for model in models:
        check_fit(model, pairs)
    return [ModelScores(model, pairs) for model in models]


def check_fit(model: RetrievalModel, pairs: Pairs) -> None:
    """Raises InputError unless the model takes such features and such captions."""
    assert pairs.features is not None
    shape, features, captions = model.shape, pairs.features, pairs.caption_features
    if (model.reading is not None) != isinstance(features, Pictures):
        raise InputError(
            f"{pairs.source}: the model was fine-tuned from pixels, but DATA have features; give image files"
            if model.reading is not None
            else f"{pairs.source}: pixels, but the model was trained on features; encode the images as it was"
        )
    if features.dim != shape.image_dim:
        raise InputError(
            f"{pairs.source}: image features of {features.dim} dimensions, but the model was trained on "
            f"{shape.image_dim}; give data with features of the same encoder"
        )
    if model.config.similarity != "cosine" and (features.regions or 1) != shape.regions:
        raise InputError(
            f"{pairs.source}: {features.regions or 1} regions an image, but the model was trained on {shape.regions}; "
            "give data with features of the same encoder and grid"
        )
    if shape.caption_dim is None and captions is not None:
        raise InputError(f"{pairs.source}: captions are embeddings, but the model reads words; give captions as text")
    if shape.caption_dim is not None and captions is None:
        raise InputError(
            f"{pairs.source}: captions are words, but the model takes embeddings of {shape.caption_dim} dimensions; "
            "give images.npy,captions.npy"
        )
    if captions is not None and captions.dim != shape.caption_dim:
        raise InputError(
            f"{pairs.source}: caption embeddings of {captions.dim} dimensions, but the model was trained on "
            f"{shape.caption_dim}; give embeddings of the same encoder"
        )
