"""The store on NATS against the model of streams: by itself, forgetful, and as two gateways that take turns."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.testing import NatsCluster

sys.path.insert(0, str(Path(__file__).parent.parent / "property"))

from test_store_model import StoreMachine, steps


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


@pytest.fixture(scope="module", autouse=True)
def servers(nats_server: NatsCluster) -> None:
    JetStreamMachine.servers = tuple(nats_server.urls)


TestJetStream = steps(JetStreamMachine, 15)
TestForgetful = steps(ForgetfulMachine, 15)
TestTwoGateways = steps(TwoGatewaysMachine, 15)
