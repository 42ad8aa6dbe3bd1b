"""``python -m generation``: see ``generation/command.py``."""

import sys

from generation.command import main

if __name__ == "__main__":
    sys.exit(main())
