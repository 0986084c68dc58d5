"""`python -m l2rm` is the command `l2rm`."""

import sys

from l2rm.cli import main

if __name__ == "__main__":
    sys.exit(main())
