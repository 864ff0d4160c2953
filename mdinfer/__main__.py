"""`python -m mdinfer` is the command line."""

import sys

from mdinfer.server.cli import main

if __name__ == "__main__":
    sys.exit(main())
