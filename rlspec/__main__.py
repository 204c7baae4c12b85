"""`python -m rlspec` is the console script `rlspec`."""

import sys

from rlspec.cli import main

if __name__ == "__main__":
    sys.exit(main())
