"""The command line: finds the command, parses its arguments, and turns what happens into an exit status."""

import inspect
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from l2rm import __version__
from l2rm.commands import COMMANDS
from l2rm.commands.command import Command
from l2rm.commands.train import Train, train_defaults
from l2rm.terminal import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit status: 0 done, 1 failed, 2 bad input or arguments, 130 and 143 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def parse() -> Command | None:
        if arguments == ["--version"]:
            print(f"l2rm {__version__}")
            return None
        return parse_command(arguments)

    return guarded(parse, debug="--debug" in arguments)


def parse_command(arguments: list[str]) -> Command:
    """The command that arguments ask for.

    Raises:
        SystemExit: help was printed (0), or an argument is wrong (2).
    """
    first = next(iter(arguments), "--help")
    if first in COMMANDS:
        kind: Any = COMMANDS[first]
        command: Command = tyro.cli(
            kind,
            prog=f"l2rm {first}",
            description=inspect.getdoc(kind),
            args=arguments[1:],
            default=train_defaults(arguments[1:]) if kind is Train else tyro.MISSING_NONPROP,
            config=(tyro.conf.DisallowNone,),
        )
        return command
    overview: Any = _overview()
    nothing: Command = tyro.cli(overview, prog="l2rm", description=OVERVIEW, args=arguments or ["--help"])
    return nothing


OVERVIEW = """L2RM finds mismatched image-text pairs, rematches them, and trains retrieval that they cannot spoil.

Each command tells more: l2rm train --help. `l2rm --version` prints the version.

Examples:
  l2rm quickstart
  l2rm train pairs.csv --out runs/mine --recipe quickstart
  l2rm audit pairs.csv --model runs/mine --out audit"""


def _overview() -> Any:
    """The commands as tyro lists them, each by the first line of its help."""
    annotated: Any = Annotated  # types made at run time are no business of a type checker
    union: Any = None
    for name, kind in COMMANDS.items():
        line = (kind.__doc__ or "").splitlines()[0]
        one = annotated[kind, subcommand(name, description=line)]
        union = one if union is None else union | one
    return union
