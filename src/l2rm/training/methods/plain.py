"""`plain`: every pair is taken as matched."""

from collections.abc import Iterable

from l2rm.rematching.settings import HardObjective
from l2rm.training.lesson import Lesson
from l2rm.training.methods.method import Method, Step, chosen_objective


class Plain(Method):
    """What mismatches do to a model that knows nothing of them, by its best objective on dev."""

    def objective(self, epoch: int) -> HardObjective:
        return chosen_objective(self.config, warming_up=self.stage(epoch) == "warm-up")

    def stage(self, epoch: int) -> str:
        two_stage = self.config.objective == "two_stage"
        return "warm-up" if two_stage and epoch < self.config.warmup_epochs else "training"

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        return self.full_pass(Lesson(rows=self.rows), epoch)
