"""`division`: the suspects are dropped."""

from collections.abc import Iterable

from l2rm.training.methods.divided import Divided
from l2rm.training.methods.method import Step


class DropSuspects(Divided):
    """After the warm-up, the pairs that the sample division takes as matched, in as many gradient steps as all pairs.

    So whatever `l2rm` gains over it is what rematching is worth. (Small-loss selection: Arazo et al., ICML 2019.)
    """

    def steps(self, epoch: int) -> tuple[Iterable[Step], int]:
        if self.stage(epoch) == "warm-up":
            return self.full_pass(self.everything(), epoch)
        matched, _ = self.divided()
        return self.equal_steps(matched, epoch)
