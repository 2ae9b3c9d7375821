"""`python -m nemotron`."""

import sys

from nemotron.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
