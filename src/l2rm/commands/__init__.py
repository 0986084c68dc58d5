"""The commands, a file each: options in, one call to a room below, printed results out."""

from l2rm.commands.audit import Audit
from l2rm.commands.audit_shards import AuditShards
from l2rm.commands.benchmark import Benchmark
from l2rm.commands.command import Command
from l2rm.commands.convert import Convert
from l2rm.commands.corrupt import Corrupt
from l2rm.commands.decisions import Decisions
from l2rm.commands.distil import Distil
from l2rm.commands.encode import Encode
from l2rm.commands.evaluate import Evaluate
from l2rm.commands.index import Index
from l2rm.commands.quickstart import Quickstart
from l2rm.commands.rematch import Rematch
from l2rm.commands.search import Search
from l2rm.commands.serve import Serve
from l2rm.commands.train import Train

COMMANDS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "encode": Encode,
    "corrupt": Corrupt,
    "train": Train,
    "distil": Distil,
    "evaluate": Evaluate,
    "audit": Audit,
    "audit-shards": AuditShards,
    "decisions": Decisions,
    "rematch": Rematch,
    "index": Index,
    "search": Search,
    "serve": Serve,
    "benchmark": Benchmark,
    "convert": Convert,
}
"""By name, in the order of the help. Nothing here imports torch before `run`, so that help answers at once."""
