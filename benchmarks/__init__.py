"""Measurements: each module is a command that prints a table. Threads that wait sleep, as where atoken comes first."""

import atoken  # noqa: F401 - for what it sets
