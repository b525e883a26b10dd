"""The list of streams: what is said of each, in which order they come, and which of them a prefix means.

Pure. Paths are ordered by their characters, which is the order of their UTF-8 bytes.
"""

from __future__ import annotations

import sys
from datetime import datetime, timezone

import msgspec

from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import StreamState
from durable_streams.types import StreamInfo

__all__ = ["DEFAULT_LIMIT", "MAX_LIMIT", "Page", "describe", "prefix_end"]

DEFAULT_LIMIT = 100
"""Streams of a page where none is asked for."""
MAX_LIMIT = 1000
"""Streams of a page at most."""

_SURROGATES = range(0xD800, 0xE000)


class Page(msgspec.Struct, frozen=True):
    """An answer of the listing. ``next``: what to ask for as ``after``, None at the end."""

    streams: list[StreamInfo]
    next: str | None = None


def describe(state: StreamState, records_per_second: float | None = None) -> StreamInfo:
    """Return what the listing says of a stream, its pace included where that is known."""
    policy = None if state.retention is None else state.retention.policy
    return StreamInfo(
        path=state.path,
        content_type=state.content_type,
        tail=format_offset(state.tail),
        earliest=format_offset(state.earliest),
        bytes=state.tail - state.earliest,
        closed=state.closed,
        created=None if state.created is None else _moment(state.created),
        records=state.records,
        last_append=None if state.appended is None else _moment(state.appended),
        ttl_seconds=state.ttl,
        expires_at=state.expires_at,
        forked_from=state.forked_from,
        forks=state.forks,
        retention_max_age=None if policy is None else policy.max_age,
        retention_max_bytes=None if policy is None else policy.max_bytes,
        records_per_second=None if records_per_second is None else round(records_per_second, 3),
    )


def _moment(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def prefix_end(prefix: str) -> str | None:
    """Return the least text that is greater than every text with this prefix; None where there is none."""
    for at in range(len(prefix) - 1, -1, -1):
        following = ord(prefix[at]) + 1
        if following in _SURROGATES:  # no character of UTF-8 text
            following = _SURROGATES.stop
        if following <= sys.maxunicode:
            return prefix[:at] + chr(following)
    return None
