"""Tests; they import atoken before torch, so that threads that wait sleep (atoken/__init__.py)."""

import atoken  # noqa: F401 - for what it sets
