"""Which method a configuration names."""

from l2rm.training.methods.crcl import Crcl
from l2rm.training.methods.division import DropSuspects
from l2rm.training.methods.in2r import In2r
from l2rm.training.methods.l2rm import Rematch
from l2rm.training.methods.l2rm_dataset import RematchDataset
from l2rm.training.methods.method import Method
from l2rm.training.methods.ncr import Ncr
from l2rm.training.methods.oracle import Oracle
from l2rm.training.methods.plain import Plain
from l2rm.training.methods.warmup import Warmup
from l2rm.training.settings import TrainConfig

METHODS: dict[str, type[Method]] = {
    "l2rm": Rematch,
    "plain": Plain,
    "oracle": Oracle,
    "warmup": Warmup,
    "division": DropSuspects,
    "ncr": Ncr,
    "crcl": Crcl,
    "in2r": In2r,
}
"""By the name that `TrainConfig.method` gives them."""


def method_of(config: TrainConfig) -> type[Method]:
    """The method of a run; `l2rm` has two, by how far it looks for partners."""
    if config.method == "l2rm" and config.rematching.scope == "dataset":
        return RematchDataset
    return METHODS[config.method]
