"""The configuration of the method. Imports no torch, so that the command line answers at once."""

from dataclasses import dataclass
from typing import Literal

HardObjective = Literal["max_violation", "mean_violation", "infonce", "symmetric_cross_entropy"]
"""What can be learned from given pairs: the names of `l2rm.rematching.objectives.named`."""


@dataclass(frozen=True, kw_only=True)
class RematchingConfig:
    """How pairs are divided, and how the mismatched ones are rematched and learned from."""

    tau: float = 0.05
    """Temperature of every softmax over similarities."""
    margin: float = 0.2
    """Margin of the triplet losses, sample division included."""
    mass: float = 0.1
    """Share of a batch's mass that the transport plan carries."""
    reg: float = 0.01
    """Entropic regularisation of the plan. Published: 0.01 Flickr30K; 0.07 MS-COCO and CC152K."""
    tolerance: float = 1e-6
    """Marginal error at which a plan counts as converged."""
    max_iterations: int = 10_000
    """Iterations after which an unconverged plan is used as it is (and counted in the metrics)."""
    forbid: Literal["pair", "image", "nothing"] = "image"
    """Which cells a plan may not use. image: wherever the caption's given image stands. pair: the diagonal alone, as
    published for injected mismatches. nothing: as published where none were injected, as on CC152K."""
    cost: Literal["linear", "equivariant"] = "linear"
    """What is learned of similarities before they are transported. linear: a layer over the captions of a batch, from
    known matches, as published. equivariant: how likely a cell is no match, by its row and column, from known matches
    and known non-matches; with scope="dataset" learned anew for each plan."""
    cost_lr: float = 2e-6
    """Learning rate of the linear cost."""
    equivariant_lr: float = 0.01
    """Learning rate of the equivariant cost."""
    planted: float = 0.1
    """The cost update plants between 1 and this share of the matched batch's images."""
    queue_size: int = 0
    """Images that a plan may choose from, at least as many as a batch has; 0: the batch's own, as published."""
    memory: int = 0
    """Images of earlier steps, as they were encoded then, that a plan may choose from besides (cosine; scope="batch").
    Each image then takes up to one caption. 0: none, as published."""
    scope: Literal["batch", "dataset"] = "batch"
    """Where suspects look for partners. batch: among the images of a step, as published. dataset: among all images that
    have room, by one sparse transport plan, every rematch_every epochs; its pairs are learned from like given ones."""
    rematch_every: int = 2
    """With scope="dataset": epochs between plans."""
    rematch_weight: float = 1.0
    """Weight of the rematching term beside the matched pairs' triplet loss; with scope="dataset", of a rematched pair
    beside a matched one."""
    matched_objective: HardObjective = "max_violation"
    """What matched pairs teach. max_violation: the hardest negative, as published."""
    targets: Literal["rows", "mass"] = "rows"
    """How a plan teaches. rows: full targets, by symmetric KL, as published. mass: each cell by the mass it carries."""
    folds: int = 0
    """0: pairs are divided every epoch by the model's own losses, as published. 2 or more: once, by ranks under models
    that never saw the pair's image, one a fold, so that no mismatch is known by heart."""
    fold_rounds: int = 2
    """With folds: how often; from the second time on, the models learn from pairs drawn by match probability. As the
    division then asks nothing of the model in training, it comes first, and take="weight" weighs the warm-up too."""
    fold_rematching_epochs: int = 0
    """With folds, from the second time on: epochs in which the models go on with their suspects rematched by a plan of
    their own, as scope="dataset" does. 0: none."""
    folds_by: Literal["image", "image+caption"] = "image"
    """With folds, what is new to the model that judges a pair. image: its image. image+caption: its caption's text too,
    on whatever image it stands, for data that give many images one caption (stale titles, names of collections)."""
    evidence: Literal["pair", "image", "auto"] = "pair"
    """With folds, what is ranked. pair: each caption by itself. image: captions given to one image together, for data
    where an image's captions came together. auto: what a first model, of half of the images, finds in the rest."""
    wording: float = 0.0
    """With folds or scope="dataset", how much the words of an image's other captions count beside a model's scores, in
    standard deviations, where captions go astray one by one (evidence "pair"). 0: not at all, as published."""
    judge: str = ""
    """A finished RUN of the same pairs whose match probabilities stand instead of an own division, and with
    scope="dataset" its partners too: a cheap model judges, an expensive one learns. Empty: none."""
    take: Literal["threshold", "weight"] = "threshold"
    """What is learned from as matched. threshold: the pairs above matched_above, as published. weight: every pair, as
    far as its match probability goes."""
    steps: Literal["matched", "pairs"] = "matched"
    """With scope="batch", gradient steps of an epoch after the warm-up. matched: one pass over what is learned from as
    matched, as published. pairs: as many as a pass over all pairs has, as scope="dataset" always makes."""
    matched_above: float = 0.5
    """Pairs whose match probability is above this are taken as matched; the others are rematched."""
    one_mode: Literal["matched", "mixture"] = "matched"
    """When one Beta (or Gaussian) explains the losses as well as two. matched: nothing is suspect. mixture: split
    all the same, as published."""
    mixture: Literal["beta", "gaussian"] = "beta"
    """What is fitted to losses, without folds. beta: two Beta distributions, as published. gaussian: two Gaussians."""
    estimator: Literal["likelihood", "moments"] = "likelihood"
    """How the Beta mixture takes the shapes of its components. moments: by mean and variance, as published, for many
    pairs of which a good part comes to have a loss of exactly 0. likelihood: the likeliest, for a few hundred."""
    monotone: bool = True
    """Match probability never rises with the loss. False: the mixture's own posterior, as published."""
    smoothing: float = 0.0
    """Share of the previous divisions' match probabilities that is kept; 0: this epoch's alone, as published."""
