"""What can go wrong with what a user gives us.

The command line prints an `InputError` as one line and exits with status 2; any other exception is a failure of ours
or of the machine (status 1).
"""


class InputError(ValueError):
    """The given data or arguments are wrong.

    The message is one line: which file and row or key, what is wrong, and what to do about it. Names out of files may
    hold anything; what is not printable among them is escaped, so that no table can write control codes to a terminal.

    Example:
        >>> print(InputError("pairs.csv: no column '\\x1b[2J';\\nadd it"))
        pairs.csv: no column '\\x1b[2J'; add it
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line))
