"""What can go wrong with what a user gives us.

The command line prints an `InputError` as one line and exits with status 2; any other exception is a failure of ours
or of the machine (status 1).
"""


class InputError(ValueError):
    """The given data or arguments are wrong.

    The message is one line: which file and row or key, what is wrong, and what to do about it.
    """
