"""The mark of the places in which the sync and the async side differ.

The async side is written by hand; `tools/make_sync.py` makes the sync side of it. There, ``if ASYNC:`` leaves only the
block behind its ``else:``, or nothing.
"""

from __future__ import annotations

__all__ = ["ASYNC"]

ASYNC = True
