"""The store on NATS passes the contract: by itself, forgetful, and when answers of NATS get lost."""
# ruff: noqa: ARG002 - a store on NATS has no use for a folder

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_contract import GatewayContract

from durable_streams.stores.base import StoreFullError, StoreUncertainError
from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.stores.jetstream.nats.bus import Bus, Message
from durable_streams.testing import NatsCluster
from durable_streams.testing.contract import StoreContract


class TestJetStream(StoreContract, GatewayContract):
    durable = True

    @pytest.fixture(autouse=True)
    def place(self, nats_server: NatsCluster, bucket: str) -> None:
        self.config = JetStreamConfig(tuple(nats_server.urls), name=bucket, replicas=1)

    def make_store(self, folder: Path, clock: Callable[[], float]) -> JetStreamStore:
        return JetStreamStore(self.config, clock=clock)

    @contextmanager
    def failing_commits(self, store: JetStreamStore) -> Iterator[None]:
        async def publish(messages: Sequence[Message]) -> int:
            raise StoreFullError("no room")

        store.bus.publish = publish
        try:
            yield
        finally:
            del store.bus.publish


class TestJetStreamThatForgetsEverything(TestJetStream):
    """Hardly any stream stays in memory, so that everything is found again and again."""

    def make_store(self, folder: Path, clock: Callable[[], float]) -> JetStreamStore:
        return JetStreamStore(self.config, max_streams=2, clock=clock)


class TestJetStreamWhoseAnswersGetLost(TestJetStream):
    """Every third publish has no answer: half of them were stored, the others never arrived."""

    def make_store(self, folder: Path, clock: Callable[[], float]) -> JetStreamStore:
        store = JetStreamStore(self.config, clock=clock)
        store.bus = _LosesAnswers(self.config)
        return store


class _LosesAnswers(Bus):
    _published = 0

    async def publish(self, messages: Sequence[Message]) -> int:
        self._published += 1
        if self._published % 6 == 0:
            raise StoreUncertainError("this was not even sent")
        sequence = await super().publish(messages)
        if self._published % 3 == 0:
            raise StoreUncertainError("the answer did not arrive")
        return sequence
