"""One thread for the whole suite, and for every process that a test starts.

Threads of OpenMP and OpenBLAS spin while they wait for each other: beside other busy processes a test of small
matrices takes twenty times as long. Libraries read these variables when they are loaded, so this comes before any
import of them.
"""

import os

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
