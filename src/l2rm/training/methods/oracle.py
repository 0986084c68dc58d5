"""`oracle`: the truly matched pairs alone."""

from collections.abc import Iterable

from l2rm.training.lesson import Lesson
from l2rm.training.methods.method import Step
from l2rm.training.methods.plain import Plain


class Oracle(Plain):
    """What a perfect sample division could reach by leaving the mismatched pairs out; as many gradient steps as plain.

    It reads the truth, so it is no method to be used but the mark to be beaten.
    """

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        assert self.truth is not None
        return self.equal_steps(Lesson(rows=self.rows[~self.truth]), epoch)
