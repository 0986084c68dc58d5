"""Named settings. They run on any data; explicit options override them. Imports no torch."""

from collections.abc import Callable
from dataclasses import replace

from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.settings import ModelConfig
from l2rm.training.settings import TrainConfig


def f30k() -> TrainConfig:
    """Flickr30K as published: 5 + 35 epochs, decay every 15, reg 0.01, SGR."""
    return _published(warmup_epochs=5, rematching_epochs=35, decay_every=15, reg=0.01)


def coco() -> TrainConfig:
    """MS-COCO as published: 10 + 20 epochs, decay every 10, reg 0.07, SGR."""
    return _published(warmup_epochs=10, rematching_epochs=20, decay_every=10, reg=0.07)


def cc152k() -> TrainConfig:
    """CC152K, mismatched as the web delivered it, as published: 10 + 40 epochs, decay every 20, reg 0.07, SGR."""
    return _published(warmup_epochs=10, rematching_epochs=40, decay_every=20, reg=0.07)


def quickstart() -> TrainConfig:
    """A few thousand pictures and short texts in minutes on two processor cores: cosine, of captions that a sentence
    encoder embedded (`--caption-encoder`, as in the quick start), else of a bag of words.

    Pairs are divided by models that have not seen them, all captions of an image together, as small data ask for.
    """
    return TrainConfig(
        warmup_epochs=2,
        rematching_epochs=4,
        decay_every=2,
        lr=3e-3,
        batch_size=128,
        model=ModelConfig(similarity="cosine", caption_tower="bag", embed_dim=512, min_word_count=1, dropout=0.4),
        rematching=RematchingConfig(
            tau=0.1,
            matched_objective="symmetric_cross_entropy",
            take="weight",
            folds=8,
            fold_rounds=3,
            evidence="image",
            targets="mass",
            mass=0.3,
            reg=0.03,
            rematch_weight=0.5,
        ),
    )


def dual() -> TrainConfig:
    """Tens of thousands of captioned photographs, regions or not, in minutes on one core: pooled dual encoder, InfoNCE.

    Every method has the same schedule. l2rm divides by two folds and rematches the whole data set.
    """
    return TrainConfig(
        warmup_epochs=2,
        rematching_epochs=4,
        decay_every=2,
        lr=1e-3,
        batch_size=256,
        model=ModelConfig(
            similarity="cosine", pooling="raw", caption_tower="bag", embed_dim=512, min_word_count=4, dropout=0.4
        ),
        rematching=RematchingConfig(
            tau=0.1,
            matched_objective="infonce",
            steps="pairs",
            take="weight",
            folds=2,
            fold_rounds=4,
            fold_rematching_epochs=2,
            evidence="auto",
            wording=0.2,
            scope="dataset",
            rematch_weight=0.5,
        ),
    )


def clip() -> TrainConfig:
    """A whole CLIP or SigLIP (`--model.encoder`), fine-tuned by low-rank adapters on image files and captions.

    `tau` is the temperature that CLIP learned. Every method has the same schedule. l2rm divides once, by two models
    that start from the pretrained one, and rematches the whole data set.
    """
    return TrainConfig(
        warmup_epochs=1,
        rematching_epochs=4,
        decay_every=2,
        lr=2e-4,
        lr_rise_steps=50,
        clip=1.0,
        batch_size=128,
        model=ModelConfig(similarity="clip", finetune="lora"),
        rematching=RematchingConfig(
            tau=0.01,
            matched_objective="infonce",
            steps="pairs",
            take="weight",
            folds=2,
            fold_rounds=1,
            evidence="auto",
            scope="dataset",
            rematch_weight=0.5,
        ),
    )


def clip_full() -> TrainConfig:
    """As `clip`, but all weights learn: a twentieth of the learning rate, and weight decay."""
    start = clip()
    return replace(start, lr=1e-5, weight_decay=0.1, lr_rise_steps=200, model=replace(start.model, finetune="full"))


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "f30k": f30k,
    "coco": coco,
    "cc152k": cc152k,
    "quickstart": quickstart,
    "dual": dual,
    "clip": clip,
    "clip-full": clip_full,
}


def faithful(config: TrainConfig, *, injected: bool = True) -> TrainConfig:
    """The same with every choice of the method as it was published, where the defaults do something else.

    Schedule, batch size, learning rates and dimensions stay as they are: recipes set those. Words are read as published
    unless `config` already asks for another reading than the default.

    Args:
        config: what to start from.
        injected: whether mismatches are put into the training pairs on purpose. The public code switches its mask by
            that: where none are, as on CC152K, its plans may leave a caption with the image that it is given.

    Example:
        >>> faithful(f30k()).rematching.forbid, faithful(cc152k(), injected=False).rematching.forbid
        ('pair', 'nothing')
    """
    tokeniser = "published" if config.model.tokeniser == "unicode" else config.model.tokeniser
    rematching = replace(
        config.rematching,
        forbid="pair" if injected else "nothing",
        one_mode="mixture",
        mixture="beta",
        estimator="moments",
        monotone=False,
        smoothing=0.0,
        queue_size=0,
        memory=0,
        cost="linear",
        matched_objective="max_violation",
        scope="batch",
        rematch_weight=1.0,
        targets="rows",
        folds=0,
        fold_rematching_epochs=0,
        folds_by="image",
        evidence="pair",
        wording=0.0,
        judge="",
        take="threshold",
        steps="matched",
    )
    return replace(config, model=replace(config.model, tokeniser=tokeniser), rematching=rematching)


def _published(*, warmup_epochs: int, rematching_epochs: int, decay_every: int, reg: float) -> TrainConfig:
    return TrainConfig(
        warmup_epochs=warmup_epochs,
        rematching_epochs=rematching_epochs,
        decay_every=decay_every,
        lr=2e-4,
        batch_size=128,
        model=ModelConfig(
            similarity="sgr", embed_dim=1024, word_dim=300, similarity_dim=256, graph_steps=3, dropout=0.4
        ),
        rematching=RematchingConfig(reg=reg, estimator="moments"),
    )
