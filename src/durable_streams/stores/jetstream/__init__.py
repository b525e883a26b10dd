"""Streams on a NATS JetStream cluster: any number of servers ("gateways") over the same streams.

``nats`` is the wire to NATS; ``layout``, ``records`` and ``publish`` define the stored form; ``committer`` and
``attempts`` decide and publish; ``catchup`` and ``live`` follow other gateways; ``reader`` reads logs back;
``snapshots`` and ``sweeper`` do the maintenance.
"""

from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.store import JetStreamStore

__all__ = ["JetStreamConfig", "JetStreamStore"]
