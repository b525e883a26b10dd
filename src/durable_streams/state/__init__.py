"""Live state: rows that follow a stream of changes (the State Protocol). docs/state.md is the guide."""

from __future__ import annotations

from durable_streams.protocol.changes import RowChange, change_message, control_message
from durable_streams.state.aio import AsyncStreamDB, acompact
from durable_streams.state.base import Compaction
from durable_streams.state.errors import ChangesLostError, StateTimeoutError
from durable_streams.state.registry import REGISTRY, RegisteredStream
from durable_streams.state.schema import Collection, StateSchema
from durable_streams.state.sync import StreamDB, compact
from durable_streams.state.views import Table

__all__ = [
    "REGISTRY",
    "AsyncStreamDB",
    "ChangesLostError",
    "Collection",
    "Compaction",
    "RegisteredStream",
    "RowChange",
    "StateSchema",
    "StateTimeoutError",
    "StreamDB",
    "Table",
    "acompact",
    "change_message",
    "compact",
    "control_message",
]
