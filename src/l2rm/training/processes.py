"""Several processes that train one model: each does a share of every batch, all take the same step.

Every process draws the same global batch from the same seeds. It encodes its share of images and captions, gathers
those of all, and scores all images against its share of the captions; the columns are gathered, so that every process
holds the same `S` and computes the same loss, plan and division from it. In the backward pass each follows its own
columns alone, and the sum of all gradients is that of the whole batch. Started by `torchrun` or `accelerate launch`; of
one process every function here does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from l2rm.errors import InputError
from l2rm.similarity.model import Encoded, RetrievalModel

PATIENCE = timedelta(days=1)
"""A process waits so long for others: the first may be encoding images. The launcher tells of one that dies."""


def join(device: str) -> str:
    """Join the processes that the launcher has started, if it has; the device of this one, where `device` is auto.

    Raises:
        InputError: accelerate is not installed, or `device` is one that processes cannot share.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        return device
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: {device!r} cannot be shared by several processes; give auto or cpu")
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InputError("several processes need accelerate; pip install 'l2rm[distributed]'") from error
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if not on_cpu and local >= torch.cuda.device_count():
        raise InputError(
            f"device: process {local + 1} of this machine has no GPU of its own (there are "
            f"{torch.cuda.device_count()}); start as many processes as GPUs, or give --device cpu"
        )
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return str(state.device)


def leave() -> None:
    """The last thing a process does."""
    if several():
        wait()
        dist.destroy_process_group()


def several() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this process is the one that writes the RUN folder, logs, and shows progress."""
    return not several() or dist.get_rank() == 0


def wait() -> None:
    """Go on when every process has come here."""
    if several():
        dist.barrier()


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The block is run by the first process, then by the others, which find done what need not be done twice."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def agreed(signal: int | None) -> int | None:
    """The signal that has arrived at any process; each asks at the same point, so all stop at the same step."""
    if not several():
        return signal
    told = torch.tensor(signal or 0, device=_device())
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told) or None


def share(model: RetrievalModel) -> RetrievalModel:
    """The model as all processes compute it together; it is itself where there is one."""
    return Shared(model) if several() else model


def unite(model: nn.Module) -> None:
    """Give every process the weights of the first one."""
    if several():
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def sum_gradients(model: nn.Module) -> None:
    """After a backward pass: the gradient of the whole batch; running statistics are the mean of what each has."""
    if not several():
        return
    _together([weight.grad for weight in model.parameters() if weight.grad is not None])
    statistics = [value for value in model.buffers() if value.is_floating_point()]
    _together(statistics)
    for value in statistics:
        value /= dist.get_world_size()


class Shared(RetrievalModel):
    """A model whose encodings and scores are computed by all processes, each a share, and are whole at each of them.

    What has gradient must lead to a loss that every process computes alike. Fewer items than processes are computed by
    all of them, and so are images whose encodings depend on one another (BatchNorm in SGR and SAF): its statistics are
    those of the whole batch.
    """

    def __init__(self, model: RetrievalModel) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.config, self.shape, self.precision, self.range = model.config, model.shape, model.precision, model.range
        self.vocabulary, self.reading = model.vocabulary, model.reading
        self.at_once, self.worth_keeping = model.at_once, model.worth_keeping
        self.train(model.training)

    @property
    def members(self) -> tuple[RetrievalModel, ...]:
        return (self,) if len(self.model.members) == 1 else tuple(map(Shared, self.model.members))

    @property
    def dim(self) -> int:
        return self.model.dim

    @property
    def pairs_stand_alone(self) -> bool:
        return self.model.pairs_stand_alone

    @property
    def images_stand_alone(self) -> bool:
        return self.model.images_stand_alone

    def encode_images(self, images: Tensor) -> Encoded:
        mine = _share_of(len(images)) if self.images_stand_alone else None
        with self._dropout(apart=mine is not None):
            part = self.model.encode_images(images if mine is None else images[mine])
        return part if mine is None else _gathered(part, len(images), None)

    def encode_captions(self, captions: Tensor, lengths: Tensor | None = None) -> Encoded:
        mine = _share_of(len(captions))
        if mine is None:
            with self._dropout(apart=False):
                return self.model.encode_captions(captions, lengths)
        with self._dropout(apart=True):
            part = self.model.encode_captions(captions[mine], None if lengths is None else lengths[mine])
        if part.lengths is not None:
            lengths = torch.ones(len(captions), dtype=torch.long) if lengths is None else lengths.cpu()
        return _gathered(part, len(captions), None if part.lengths is None else lengths)

    def score(self, images: Encoded, captions: Encoded) -> Tensor:
        mine = _share_of(len(captions))
        if mine is None:
            return _taught_by_first(self.model.score(images, captions))
        return _whole(self.model.score(images, captions.take(mine)).T, len(captions), summed=False).T

    def score_pairs(self, images: Encoded, captions: Encoded) -> Tensor:
        mine = _share_of(len(captions))
        if mine is None:
            return _taught_by_first(self.model.score_pairs(images, captions))
        part = self.model.score_pairs(images.take(mine), captions.take(mine))
        return _whole(part, len(captions), summed=False)

    @contextmanager
    def _dropout(self, *, apart: bool) -> Iterator[None]:
        """Masks of one's own for a share, the same for all otherwise; torch's own generator moves alike everywhere."""
        if not (self.training and self.config.dropout):
            yield
            return
        seed = int(torch.randint(2**31, ()))
        device = _device()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed + (dist.get_rank() if apart else 0))
            yield


def _device() -> torch.device:
    """Where the processes exchange tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _shares(total: int) -> list[slice]:
    """The share of each process in so many items."""
    edges = np.linspace(0, total, dist.get_world_size() + 1).astype(int).tolist()
    return [slice(*both) for both in pairwise(edges)]


def _share_of(total: int) -> slice | None:
    """This process's share in so many items; None if there is not one for each process."""
    return None if total < dist.get_world_size() else _shares(total)[dist.get_rank()]


def _gathered(part: Encoded, total: int, lengths: Tensor | None) -> Encoded:
    """Encodings of all items from each process's share; each of them may teach every process's scores."""
    local = None if part.local is None else _whole(part.local, total, summed=True)
    return Encoded(_whole(part.whole, total, summed=True), local, lengths)


def _whole(part: Tensor, total: int, *, summed: bool) -> Tensor:
    """Shares along the first dimension put together; backward, the gradient of one's own share.

    With `summed`, that is the sum over processes, each of which has followed its own scores only; without, all have
    computed the same loss of the whole, and each has the same gradient.
    """
    whole: Tensor = _Whole.apply(part, total, summed)  # type: ignore[no-untyped-call]
    return whole


class _Whole(torch.autograd.Function):
    """What `_whole` does."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, total: int, summed: bool) -> Tensor:
        ctx.total, ctx.summed = total, summed
        shares = _shares(total)
        most = max(share.stop - share.start for share in shares)
        padded = part.new_zeros(most, *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(parts, padded)
        return torch.cat([one[: share.stop - share.start] for one, share in zip(parts, shares, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if ctx.summed:
            gradient = gradient.float().clone(memory_format=torch.contiguous_format)
            dist.all_reduce(gradient)
        return gradient[_shares(ctx.total)[dist.get_rank()]].to(gradients[0].dtype), None, None


def _taught_by_first(scores: Tensor) -> Tensor:
    """Scores that every process has computed; only the first one's gradient counts."""
    return scores if is_first() or not scores.requires_grad else scores.detach() + 0 * (scores - scores.detach())


def _together(tensors: list[Tensor]) -> None:
    """Sum each over all processes, in place and at once."""
    if tensors:
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))
