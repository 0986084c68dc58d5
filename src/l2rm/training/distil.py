"""Teaching a cheap score to order pairs as a trained model does: shortlists for a similarity that is slow."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.evaluate import check_fit
from l2rm.files import written_whole
from l2rm.progress import track
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import RetrievalModel
from l2rm.similarity.scoring import ModelScores

FILE = "cascade.safetensors"
BLOCK_IMAGES, BLOCK_CAPTIONS = 500, 600


def distil(
    model: RetrievalModel,
    pairs: Pairs,
    *,
    blocks: int = 8,
    steps: int = 1000,
    batch: int = 96,
    lr: float = 3e-3,
    temperature: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> FirstPass:
    """Train a `FirstPass` on the model's own scores of pairs that it was trained on.

    Blocks of 500 images and 600 of their captions are scored by the model. A batch is a part of a block; what is
    learned is the KL divergence of the softmax of the first pass from that of the model's logits, over the images of
    each caption and over the captions of each image. Nobody has to know which pairs match.

    Args:
        model: with regions and words, such as SGR; its mode is left as it was.
        pairs: its training pairs, with features.
        blocks: how many are scored; the model's time is 300,000 pairs a block.
        steps: of Adam, `lr` falling to zero by a cosine.
        batch: images, and captions, of a step.
        temperature: divides the model's logits, in units of their deviation; the smaller, the more the best few of a
            list count.
        seed: decides what is drawn.
        progress: tell on standard error how far it is.

    Raises:
        InputError: the model compares pooled vectors only, or does not take such pairs.

    Example:
        >>> first_pass = distil(run.model, train_pairs)  # doctest: +SKIP
        >>> S = cascade(run.model, images, captions, share=0.06, first_pass=first_pass)  # doctest: +SKIP
    """
    if model.config.similarity in ("cosine", "clip"):
        raise InputError("shortlist: this model compares pooled vectors only, so there is nothing to shorten")
    check_fit(model, pairs)
    device = next(model.parameters()).device
    scores = ModelScores(model, pairs)
    draw = np.random.default_rng(seed)
    taught = _blocks(scores, pairs, blocks, draw, progress)
    temperature *= float(torch.stack([logits.std() for _, _, logits in taught]).mean())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first_pass = FirstPass(model.config.embed_dim).to(device)
    optimiser = torch.optim.Adam(first_pass.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in track(range(steps), total=steps, what="distilling", enabled=progress):
        images, captions, logits = taught[draw.integers(len(taught))]
        row, column = (draw.permutation(len(index))[:batch] for index in (images, captions))
        wanted = logits[np.ix_(row, column)].to(device) / temperature
        found = first_pass(scores.encoded_images(images[row]), scores.encoded_captions(captions[column]))
        optimiser.zero_grad()
        _divergence(found, wanted).backward()
        optimiser.step()
        schedule.step()
    return first_pass.eval()


def _blocks(
    scores: ModelScores, pairs: Pairs, count: int, draw: np.random.Generator, progress: bool
) -> list[tuple[np.ndarray, np.ndarray, Tensor]]:
    """Images, captions and the model's logits of them, block by block; images come again when all have had a turn."""
    order = draw.permutation(pairs.n_images)
    size = min(BLOCK_IMAGES, len(order))
    found = []
    for block in track(range(count), total=count, what="scoring", enabled=progress):
        images = np.take(order, np.arange(block * size, (block + 1) * size), mode="wrap")
        theirs = np.flatnonzero(np.isin(pairs.image_of, images))
        captions = draw.permutation(theirs)[:BLOCK_CAPTIONS]
        found.append((images, captions, torch.logit(scores.block(images, captions).float().cpu(), eps=1e-6)))
    return found


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    """KL divergence of both softmaxes, over images and over captions, the mean of the lists."""
    total = found.new_zeros(())
    for dim in (0, 1):
        lists = F.kl_div(found.log_softmax(dim), wanted.log_softmax(dim), log_target=True, reduction="none")
        total = total + lists.sum(dim).mean()
    return total


def write_first_pass(folder: Path, first_pass: FirstPass) -> Path:
    """Write `cascade.safetensors` into a RUN folder; returns the path."""
    with written_whole(folder / FILE) as beside:
        save_file({name: value.contiguous() for name, value in first_pass.state_dict().items()}, beside)
    return folder / FILE


def read_first_pass(folder: Path, model: RetrievalModel) -> FirstPass:
    """The first pass that was distilled for a run's model, on its device.

    Raises:
        InputError: there is none, or the file is not one for this model.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; make it with `l2rm distil {folder} --data DATA`")
    first_pass = FirstPass(model.config.embed_dim)
    try:
        first_pass.load_state_dict(load_file(path, device="cpu"))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a first pass for this run ({reason}); distil again") from error
    return first_pass.to(next(model.parameters()).device).eval()
