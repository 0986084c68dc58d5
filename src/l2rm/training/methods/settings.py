"""What the peers' methods have to set, by default as published. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class NcrConfig:
    """Of `ncr`; margin and threshold of the division are those of `RematchingConfig`."""

    soft_margin: Literal["exponential", "linear"] = "exponential"
    """How a label y in [0, 1] scales the margin: exponential, (10^y − 1) / 9, as published; linear, y."""
    suspects_from: float = 0.5
    """Suspects are learned from, too, after this share of the epochs after the warm-up."""


@dataclass(frozen=True, kw_only=True)
class CrclConfig:
    """Of `crcl`; the temperature is that of `RematchingConfig`."""

    rounds: int = 4
    """Times that training starts with fresh weights and the labels found so far."""
    early_share: float = 0.16
    """Share of all epochs that each round but the last one gets, at least one epoch; published: 8 of 51."""
    frozen_epochs: int = 2
    """Epochs at the start of a round in which labels stay as they are."""
    momentum: float = 0.8
    """Share of a label that is kept when it is refined."""
    complement: float = 5.0
    """Weight of the complementary loss."""
    least: float = 0.1
    """Labels below this become 0."""


@dataclass(frozen=True, kw_only=True)
class In2rConfig:
    """Of `in2r`; the division is that of `ncr`, and so are its threshold, margin and temperature."""

    memory: int = 16384
    """Trusted pairs that a network remembers; published: 65,536."""
    neighbours: int = 5
    """Of them, the nearest ones that a suspect learns from."""
    margin: float = 0.3
    """By which an image (a caption) is to be nearer to its other view than to others."""
    weight: float = 0.5
    """Of what suspects learn from neighbours."""
