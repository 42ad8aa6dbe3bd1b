"""``python -m atoken``: the command line, for launchers of several processes."""

import sys

from atoken.cli import main

if __name__ == "__main__":
    sys.exit(main())
