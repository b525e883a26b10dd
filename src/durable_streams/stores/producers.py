"""The producers of a stream, page by page.

Invariants: ids are ordered by their characters, which is the order of their UTF-8 bytes; a page takes the memory of a
page, however many producers there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nsmallest

from durable_streams.protocol.state import ProducerState

__all__ = ["first_producers"]


def first_producers(
    known: Mapping[str, ProducerState], after: str, limit: int
) -> list[tuple[str, ProducerState]]:
    """Return the first producers after an id.

    Args:
        known: The producers by id.
        after: The id to go on after, "" for the beginning.
        limit: How many to return; fewer only at the end.

    Returns:
        The ids and the states.
    """
    return [(name, known[name]) for name in nsmallest(limit, (name for name in known if name > after))]
