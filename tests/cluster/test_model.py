"""The store on NATS against the model of streams: by itself, forgetful, and as two gateways that take turns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from store_model import StoreMachine, steps

from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.testing import NatsCluster

STEP = 5.0  # seconds: less than any time to live


class JetStreamMachine(StoreMachine):
    durable = True
    servers: ClassVar[tuple[str, ...]] = ()
    max_streams: ClassVar[int] = 1000

    @classmethod
    def gateway(cls, folder: Path, clock: Callable[[], float]) -> JetStreamStore:
        config = JetStreamConfig(cls.servers, name=folder.name, replicas=1)
        return JetStreamStore(config, max_streams=cls.max_streams, clock=clock)

    @classmethod
    def store_type(cls, folder: Path, clock: Callable[[], float]) -> Any:
        return cls.gateway(folder, clock)

    async def sweep(self, path: str) -> None:
        await self.one_store()._expire_at(path)


class ForgetfulMachine(JetStreamMachine):
    max_streams = 2


class Gateways:
    """Two of them; every call goes to the next one."""

    def __init__(self, first: JetStreamStore, second: JetStreamStore) -> None:
        self.all = (first, second)
        self._turns = itertools.cycle(self.all)

    async def open(self) -> None:
        for store in self.all:
            await store.open()

    async def close(self) -> None:
        for store in self.all:
            await store.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(next(self._turns), name)


class TwoGatewaysMachine(JetStreamMachine):
    sees_forks = False

    @classmethod
    def store_type(cls, folder: Path, clock: Callable[[], float]) -> Any:
        return Gateways(cls.gateway(folder, clock), cls.gateway(folder, clock))

    def one_store(self) -> Any:
        return self.store.all[0]

    def pass_time(self, until: float) -> None:
        """Let time pass in steps: one gateway knows of the other's readers only by what these renew."""
        while self.model.now < until:
            super().pass_time(min(until, self.model.now + STEP))
            for store in self.store.all:
                self.run(self.renew(store))

    async def renew(self, store: JetStreamStore) -> None:
        store._live_records.renew()
        await store._committer.drain()


@pytest.fixture(scope="module", autouse=True)
def servers(nats_server: NatsCluster) -> None:
    JetStreamMachine.servers = tuple(nats_server.urls)


TestJetStream = steps(JetStreamMachine, 15)
TestForgetful = steps(ForgetfulMachine, 15)
TestTwoGateways = steps(TwoGatewaysMachine, 15)


def test_a_stream_that_is_watched_at_the_other_gateway_lives_on() -> None:
    machine = TwoGatewaysMachine()
    try:
        machine.begin(path="a")
        machine.create(path="b", content_type=None, payload=b"x", closed=False, ttl=10)
        machine.watch(path="b")
        for seconds in (95.0, 11.5, 9.5, 120.0):
            machine.wait(seconds=seconds)
            machine.every_stream_is_what_it_should_be()
    finally:
        machine.teardown()
