"""One thread for the whole suite, and for every process that a test starts; and nothing that was fetched.

Threads of OpenMP and OpenBLAS spin while they wait for each other: beside other busy processes a test of small
matrices takes twenty times as long. Libraries read these variables when they are loaded, so this comes before any
import of them. A cache with published networks would add metrics to every row.
"""

import os

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ["ATOKEN_CACHE"] = os.devnull
