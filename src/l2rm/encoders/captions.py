"""Captions get embeddings: each text once, remembered; a killed run goes on where it stopped."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from l2rm.data.features import Features
from l2rm.encoders.store import FeatureStore
from l2rm.progress import track

BATCH = 64
"""Texts at a time."""


def embed_captions(
    captions: Sequence[str],
    store: FeatureStore,
    embed: Callable[[Sequence[str]], torch.Tensor],
    *,
    progress: bool,
) -> Features:
    """The embedding of every caption, (rows, D) float16, memory-mapped, after those that the store lacks are made.

    Args:
        captions: texts; equal ones share an entry.
        store: where entries of one encoder are, and go to.
        embed: texts to (B, D) on the CPU.
        progress: tell on standard error how far it has come.
    """
    stamps = [_stamp(caption) for caption in captions]
    missing = dict(zip(stamps, captions, strict=True))
    if any(stamp not in store for stamp in missing):
        with store.writing():
            left = [(stamp, text) for stamp, text in missing.items() if stamp not in store]
            left.sort(key=lambda item: len(item[1]))  # texts of one length need little padding
            batches = [left[start : start + BATCH] for start in range(0, len(left), BATCH)]
            for batch in track(batches, total=len(batches), what="encoding captions", enabled=progress):
                entries = embed([text for _, text in batch])
                store.append([stamp for stamp, _ in batch], entries.numpy().astype(np.float16))
    return store.features(stamps)


def _stamp(caption: str) -> bytes:
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[:16]
