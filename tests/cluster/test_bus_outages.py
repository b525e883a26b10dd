"""The connection to JetStream when servers die, freeze and come back: every call ends in time, with the right error."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import pytest
from elections import settled_leader

from durable_streams.stores.base import StoreError, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.layout import EXPECT
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError, Message
from durable_streams.testing import NatsCluster

IN_TIME = 4.0  # seconds: the longest a call may take is 1.5, and the machine is busy
BACK_WITHIN = 40.0  # an election takes up to nine

_names = count()


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Three servers that tests may harm; each test makes them well again."""
    with NatsCluster(tmp_path_factory.mktemp("fragile")) as cluster:
        yield cluster


@pytest.fixture
def cluster(fragile: NatsCluster) -> Iterator[NatsCluster]:
    yield fragile
    for server in fragile.servers:
        server.resume()
        server.start()
    fragile.wait_ready(60)


@pytest.fixture
def config(cluster: NatsCluster) -> JetStreamConfig:
    return JetStreamConfig(tuple(cluster.urls), name=f"outage-{next(_names)}", replicas=3)


class Play:
    """A bus on a cluster, and what its calls come to."""

    def __init__(self, bus: Bus, cluster: NatsCluster) -> None:
        self.bus = bus
        self.cluster = cluster
        self.log = bus.layout.log(1)
        self.seq = 0
        self.restored = 0
        bus.on_restored.append(self._restored)

    def _restored(self) -> None:
        self.restored += 1

    async def write(self) -> None:
        """Publish the next message, once."""
        self.seq = await self.bus.publish([Message(self.log, b"x", {EXPECT: str(self.seq)})])

    async def ends(self, call: Awaitable[Any]) -> Any:
        """Return what a call comes to, a StoreError or a result, which is in time."""
        begun = time.monotonic()
        try:
            return await asyncio.wait_for(call, 30)
        except (StoreError, ConflictError) as error:
            return error
        finally:
            assert time.monotonic() - begun < IN_TIME

    async def recovers(self) -> None:
        """Write until it succeeds, resolving unknown outcomes; in the end everything answers."""
        deadline = time.monotonic() + BACK_WITHIN
        while (failure := await self.ends(self.write())) is not None:
            assert time.monotonic() < deadline, failure
            await asyncio.sleep(0.05)
            if isinstance(failure, (StoreUncertainError, ConflictError)):
                last = await self.ends(self.bus.last(self.log))
                self.seq = self.seq if isinstance(last, StoreError) else last.seq
        last = await self.ends(self.bus.last(self.log))
        # A leader that was frozen may answer from outdated state for a moment.
        while isinstance(last, StoreUnavailableError) or last.seq < self.seq:
            assert time.monotonic() < deadline, last
            last = await self.ends(self.bus.last(self.log))
        assert last.seq == self.seq

    def leader(self) -> int:
        return settled_leader(self.cluster, self.bus.layout.stream)

    async def connected_to(self, index: int) -> None:
        """Wait until the bus is connected to a server, by making it leave the others."""
        url = self.cluster.servers[index].url
        while (at := self.bus._connection._client.connected_url) is None or at.geturl() != url:
            await self.bus._connection._client._process_op_err(OSError("for a test"))
            await until(lambda: self.bus._connection.connected)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BACK_WITHIN
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


Scenario = Callable[[Play], Awaitable[None]]


@pytest.fixture
def play(config: JetStreamConfig, cluster: NatsCluster) -> Callable[[Scenario], None]:
    def run(scenario: Scenario) -> None:
        async def main() -> None:
            bus = Bus(config)
            await bus.open()
            try:
                playing = Play(bus, cluster)
                await playing.recovers()
                await scenario(playing)
            finally:
                await asyncio.wait_for(bus.close(), 10)

        asyncio.run(main())

    return run


def reads(bus: Bus) -> list[Awaitable[Any]]:
    log = bus.layout.log(1)
    leader = [bus.last(log), bus.next(log, 1), bus.info()]
    return [*leader, bus.peek(log, 1), bus.peek_last(log), bus.scan(log, 1, 100)]


def writes(bus: Bus) -> list[Awaitable[Any]]:
    probe = Message(bus.layout.probe)
    return [bus.publish([probe]), bus.publish([probe] * 10)]


async def all_end(play: Play) -> list[Any]:
    return await asyncio.gather(*(play.ends(call) for call in [*writes(play.bus), *reads(play.bus)]))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_the_server_it_is_connected_to_goes(
    play: Callable[[Scenario], None], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(play: Play) -> None:
        follower = (play.leader() + 1) % 3
        await play.connected_to(follower)
        before = play.restored
        caplog.clear()
        pending = asyncio.gather(*(all_end(play) for _ in range(5)))
        await asyncio.sleep(0)
        getattr(play.cluster.servers[follower], how)()
        await pending
        await play.recovers()
        await until(lambda: play.restored > before)

    caplog.set_level(logging.INFO, "durable_streams.stores")
    play(scenario)
    words = [(said.levelname, said.getMessage().split()[-1]) for said in caplog.records]
    assert words == [("WARNING", "lost"), ("INFO", "back")]


def test_reads_outlast_a_reconnect(play: Callable[[Scenario], None]) -> None:
    async def scenario(play: Play) -> None:
        follower = (play.leader() + 1) % 3
        await play.connected_to(follower)
        pending = [asyncio.ensure_future(call) for call in reads(play.bus)]
        await asyncio.sleep(0)
        play.cluster.servers[follower].kill()
        await asyncio.gather(*pending)

    play(scenario)


@pytest.mark.parametrize("how", ["kill", "suspend"])
def test_the_leader_goes(play: Callable[[Scenario], None], how: str) -> None:
    async def scenario(play: Play) -> None:
        leader = play.leader()
        await play.connected_to((leader + 1) % 3)
        before = play.restored
        getattr(play.cluster.servers[leader], how)()
        await all_end(play)
        await play.recovers()
        await until(lambda: play.restored > before)

    play(scenario)


def test_the_server_it_is_connected_to_freezes_in_the_middle_of_much_data(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(play: Play) -> None:
        leader = play.leader()
        await play.connected_to(leader)
        play.cluster.servers[leader].suspend()
        batch = [Message(play.bus.layout.log(2), bytes(4 << 20)) for _ in range(8)]
        single = play.ends(play.bus.publish(batch[:1]))
        large, small = await asyncio.gather(play.ends(play.bus.publish(batch)), single)
        assert isinstance(large, StoreUnavailableError)
        assert not isinstance(large, StoreUncertainError)  # its end was never sent
        assert isinstance(small, StoreUncertainError)
        await play.recovers()
        play.cluster.servers[leader].resume()
        await play.recovers()

    play(scenario)


def test_without_a_quorum_direct_reads_go_on(play: Callable[[Scenario], None]) -> None:
    async def scenario(play: Play) -> None:
        alone = (play.leader() + 1) % 3
        await play.connected_to(alone)
        subscriptions = f"subsz?test=$JS.API.DIRECT.GET.{play.bus.layout.stream}&subs=1"
        await until(
            lambda: "DIRECT" in str(play.cluster.servers[alone].monitor(subscriptions))
        )  # after a second or two
        others = [server for server in play.cluster.servers if server is not play.cluster.servers[alone]]
        for server in others:
            server.kill()
        for _ in range(5):
            assert all(isinstance(end, StoreUnavailableError) for end in (await all_end(play))[:2])
            assert (await play.bus.scan(play.log, 1, 100))[0].seq == play.seq
        others[0].start()
        await play.recovers()

    play(scenario)


def test_nobody_is_left(play: Callable[[Scenario], None]) -> None:
    async def scenario(play: Play) -> None:
        for server in play.cluster.servers:
            server.kill()
        await until(lambda: not play.bus._connection.connected)
        ends = await all_end(play)
        assert all(isinstance(end, StoreUnavailableError) for end in ends), ends
        assert not any(isinstance(end, StoreUncertainError) for end in ends), ends
        for server in play.cluster.servers:
            server.start()
        await play.recovers()

    play(scenario)


@pytest.mark.parametrize("how", ["kill", "suspend"])
def test_closing_while_nobody_answers(play: Callable[[Scenario], None], how: str) -> None:
    async def scenario(play: Play) -> None:
        for server in play.cluster.servers:
            getattr(server, how)()
        batch = [Message(play.bus.layout.log(2), bytes(4 << 20)) for _ in range(8)]
        large = asyncio.ensure_future(play.ends(play.bus.publish(batch)))
        await asyncio.sleep(0)
        await play.ends(play.bus.close())
        assert isinstance(await large, StoreUnavailableError)

    play(scenario)
