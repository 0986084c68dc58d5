"""`warmup`: every pair, by the warm-up objective of L2RM all the way."""

from collections.abc import Iterable

from l2rm.rematching.settings import HardObjective
from l2rm.training.lesson import Lesson
from l2rm.training.methods.method import Method, Step


class Warmup(Method):
    """What a robust objective reaches by itself (symmetric cross entropy, Wang et al., ICCV 2019)."""

    def objective(self, epoch: int) -> HardObjective:
        return "symmetric_cross_entropy"

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        return self.full_pass(Lesson(rows=self.rows), epoch)
