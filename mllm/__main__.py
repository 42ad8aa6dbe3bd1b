"""``python -m mllm``: see ``mllm/command.py``."""

import sys

from mllm.command import main

if __name__ == "__main__":
    sys.exit(main())
