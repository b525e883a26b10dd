"""Streams on a NATS JetStream cluster: any number of servers ("gateways") over the same streams.

``bus`` talks to NATS; ``records`` and ``publish`` say what is written there; ``committer`` decides and publishes,
``catchup`` and ``feed`` bring in what others wrote, ``reader`` reads it back, ``snapshots`` and ``sweeper`` keep house.
"""

from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.store import JetStreamStore

__all__ = ["JetStreamConfig", "JetStreamStore"]
