"""The commands, a file each: options in, one call to a room below, printed results out."""

from l2rm.commands.audit import Audit
from l2rm.commands.benchmark import Benchmark
from l2rm.commands.command import Command
from l2rm.commands.convert import Convert
from l2rm.commands.corrupt import Corrupt
from l2rm.commands.distil import Distil
from l2rm.commands.evaluate import Evaluate
from l2rm.commands.quickstart import Quickstart
from l2rm.commands.rematch import Rematch
from l2rm.commands.train import Train

COMMANDS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "corrupt": Corrupt,
    "train": Train,
    "distil": Distil,
    "evaluate": Evaluate,
    "audit": Audit,
    "rematch": Rematch,
    "benchmark": Benchmark,
    "convert": Convert,
}
"""By name, in the order of the help. Nothing here imports torch before `run`, so that help answers at once."""
