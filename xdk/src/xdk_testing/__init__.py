"""A local imitation of X API v2's filtered stream, for tests of programs that read it.

A package of its own, because the X SDK owns the import name ``xdk``.
"""

from __future__ import annotations

from xdk_testing.stream import Attempt, XFilteredStream

__all__ = ["Attempt", "XFilteredStream"]
