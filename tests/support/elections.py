"""A new bucket may change its leader in its first moments, most of all on a busy machine: no test is about that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from durable_streams.stores.base import StoreUnavailableError
from durable_streams.stores.jetstream.nats.bus import Bus, Message
from durable_streams.testing import NatsCluster

SETTLES_IN = 0.5  # seconds
PAUSE = 0.02


class PatientBus(Bus):
    """Publishes again what an election kept from being stored; a store does the same, a level above."""

    async def publish(self, messages: Sequence[Message]) -> int:
        """Store messages, once there is a leader."""
        while True:
            try:
                return await super().publish(messages)
            except StoreUnavailableError as error:
                if "has no leader" not in str(error):
                    raise
            await asyncio.sleep(PAUSE)


def settled_leader(cluster: NatsCluster, stream: str) -> int:
    """Return the index of the server that leads a JetStream stream, and has done so for a while."""
    leader = -1
    while leader != (leader := cluster.leader_of(stream)):
        time.sleep(SETTLES_IN)
    return leader
