"""From a feed, a file, standard input or any iterable into a durable stream, exactly once where that is possible.

    report = relay("flights.ndjson", "http://127.0.0.1:4437/v1/stream/flights")

A relay that was stopped or killed goes on where the target ends, not where it believes it was. `Relay.guarantee`
says what holds for the source at hand.
"""

from __future__ import annotations

from durable_streams.relay.open import source_for
from durable_streams.relay.run import Relay, RelayReport, relay
from durable_streams.relay.source import FileSource, Gap, IterableSource, PipeSource, Record, Source

__all__ = [
    "FileSource",
    "Gap",
    "IterableSource",
    "PipeSource",
    "Record",
    "Relay",
    "RelayReport",
    "Source",
    "relay",
    "source_for",
]
