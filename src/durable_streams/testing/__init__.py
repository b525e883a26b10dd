"""For tests: a real server in a thread, faults on demand or at random, NATS servers, and the contract of every store.

The names are imported at first use: every pytest run of every user imports this package, for its plugin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_streams.lazy import lazy_names

if TYPE_CHECKING:
    from durable_streams.testing.chaos import ChaosProxy
    from durable_streams.testing.faults import Faults
    from durable_streams.testing.nats import NatsCluster, NatsError, NatsServer
    from durable_streams.testing.server import InMemoryStreamServer

__all__ = [
    "ChaosProxy",
    "Faults",
    "InMemoryStreamServer",
    "NatsCluster",
    "NatsError",
    "NatsServer",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ChaosProxy": "testing.chaos",
        "Faults": "testing.faults",
        "InMemoryStreamServer": "testing.server",
        "NatsCluster": "testing.nats",
        "NatsError": "testing.nats",
        "NatsServer": "testing.nats",
    },
)
