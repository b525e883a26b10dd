"""``migrate`` between a folder and NATS: positions that clients saved stay valid, through any interruption."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from migrating import World

from durable_streams.protocol.commands import Append, Create
from durable_streams.protocol.state import ProducerStamp, ProducerState, StreamState
from durable_streams.stores.base import StoreError, StoreFullError
from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore
from durable_streams.stores.jetstream.nats.bus import Bus, Message
from durable_streams.stores.sqlite import SqliteStore
from durable_streams.stores.transfer.copy import Transfer, TransferReport
from durable_streams.stores.transfer.jetstream import JetStreamPlace
from durable_streams.stores.transfer.sqlite import SqlitePlace
from durable_streams.testing import NatsCluster
from durable_streams.testing.ports import free_ports
from durable_streams.testing.program import wait_until

BYTES = "application/octet-stream"
COMMAND = [sys.executable, "-m", "durable_streams.cli", "migrate"]
WITHIN = 60.0  # seconds until a test gives up
KILLS = 6
BULK = 40  # streams that make a copy long enough for kills at different places of it: 12 MB
STEP = 2 << 20  # bytes that are written between two of them


class Migration:
    """Runs ``migrate`` between folders and a bucket on NATS."""

    def __init__(self, cluster: NatsCluster, bucket: str) -> None:
        self.cluster = cluster
        self.store = cluster.store
        self.bucket = bucket
        replicas = str(min(3, len(cluster.servers)))
        self._options = ["--nats-name", bucket, "--nats-replicas", replicas]

    def spawn(self, source: object, target: object, *options: str) -> subprocess.Popen[bytes]:
        """Start it without waiting for its end."""
        command = [*COMMAND, "--from", str(source), "--to", str(target), *self._options, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ok(self, source: object, target: object, *options: str) -> dict[str, Any]:
        """Run it to its end; return what it reports."""
        process = self.spawn(source, target, "--json", *options)
        output, errors = process.communicate(timeout=WITHIN)
        assert (process.returncode, errors) == (0, b"")
        report: dict[str, Any] = json.loads(output)
        return report

    def error(self, source: object, target: object, *options: str) -> str:
        """Run it into its error, one line that is no accident."""
        process = self.spawn(source, target, *options)
        _, errors = process.communicate(timeout=WITHIN)
        assert process.returncode == 1, errors
        assert errors.count(b"\n") == 1
        assert b"internal error" not in errors
        return errors.decode()


@pytest.fixture
def migration(nats_server: NatsCluster, bucket: str) -> Migration:
    return Migration(nats_server, bucket)


@pytest.fixture
def private(
    make_cluster: Callable[..., NatsCluster], bucket: str, request: pytest.FixtureRequest
) -> Migration:
    """On servers of the test's own: one, or as many as its parameter says."""
    return Migration(make_cluster(getattr(request, "param", 1)), bucket)


@pytest.fixture
def make_world(start_server: Callable[..., Any], tmp_path: Path) -> Callable[..., World]:
    """Give a function that fills the folder ``one`` of the test."""

    def make(**options: Any) -> World:
        server = start_server(tmp_path / "one")
        world = World(server, **options)
        server.terminate()
        return world

    return make


@pytest.fixture
def unused_url() -> str:
    return f"nats://127.0.0.1:{free_ports(1)[0]}"


def eventually(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, WITHIN), "it never happened"


def test_there_and_back_every_promise_is_kept(
    migration: Migration,
    gateway: Callable[..., Any],
    start_server: Callable[..., Any],
    make_world: Callable[..., World],
    tmp_path: Path,
) -> None:
    world = make_world()
    there = migration.ok(tmp_path / "one", migration.store)
    server = gateway(migration.cluster)
    world.matches(server)
    world.goes_on(server)
    server.terminate()
    back = migration.ok(migration.store, tmp_path / "two")
    assert back["bytes"] > there["bytes"]
    server = start_server(tmp_path / "two")
    world.matches(server)
    world.goes_on(server)
    server.terminate()
    # Once more to where an older state of it is, on either side.
    assert migration.ok(tmp_path / "two", migration.store)["known"] > 100
    migration.ok(tmp_path / "two", tmp_path / "one")
    for server in (start_server(tmp_path / "one"), gateway(migration.cluster)):
        world.matches(server)
        world.ends(server, eventually)


def test_from_bucket_to_bucket_on_three_servers(
    nats_cluster: NatsCluster, bucket: str, gateway: Callable[..., Any]
) -> None:
    migration = Migration(nats_cluster, bucket)
    server = gateway(nats_cluster)
    world = World(server)
    server.terminate()
    other = f"{bucket}-other"
    assert migration.ok(nats_cluster.store, nats_cluster.store, "--to-nats-name", other)["known"] == 0
    server = gateway(nats_cluster, name=other)
    world.matches(server)
    world.goes_on(server)
    world.ends(server, eventually)


def stored(place: Migration | Path) -> int:
    """Return how many bytes a place holds, about."""
    if isinstance(place, Path):
        folder = f"file:{place}/streams.db?mode=ro"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(folder, uri=True)) as db:
            return int(db.execute("SELECT total(length(data)) FROM record").fetchone()[0])
        return 0
    return int(place.cluster.servers[0].monitor("jsz").get("bytes", 0))


def kill_often(migration: Migration, source: object, target: object, place: Migration | Path) -> None:
    """Kill a migration each time when it has written some more; then let it finish."""
    kills, begun = 0, stored(place)
    for part in range(KILLS):
        process = migration.spawn(source, target)
        wanted = begun + part * STEP
        wait_until(lambda: process.poll() is not None or stored(place) > wanted, WITHIN)  # noqa: B023
        process.kill()
        process.communicate()
        kills += process.returncode == -9
    assert kills > KILLS // 2
    migration.ok(source, target)


def test_killed_at_any_moment_it_goes_on(
    private: Migration,
    gateway: Callable[..., Any],
    start_server: Callable[..., Any],
    make_world: Callable[..., World],
    tmp_path: Path,
) -> None:
    migration = private
    world = make_world(bulk=BULK)
    kill_often(migration, tmp_path / "one", migration.store, migration)
    server = gateway(migration.cluster)
    world.matches(server)
    world.goes_on(server)
    server.terminate()
    kill_often(migration, migration.store, tmp_path / "two", tmp_path / "two")
    server = start_server(tmp_path / "two")
    world.matches(server)
    world.goes_on(server)


@pytest.mark.parametrize("private", [1, 3], indirect=True)
def test_nats_goes_away_in_the_middle(
    private: Migration,
    gateway: Callable[..., Any],
    make_world: Callable[..., World],
    tmp_path: Path,
) -> None:
    migration = private
    world = make_world(bulk=BULK)
    process = migration.spawn(tmp_path / "one", migration.store)
    for wanted in (STEP, 3 * STEP):
        wait_until(lambda: process.poll() is not None or stored(migration) > wanted, WITHIN)  # noqa: B023
        migration.cluster.servers[migration.cluster.leader_of(f"KV_{migration.bucket}")].restart()
        migration.cluster.wait_ready()
    process.communicate(timeout=WITHIN)
    assert process.returncode == 0
    server = gateway(migration.cluster)
    world.matches(server)
    world.goes_on(server)


def test_two_at_once_do_each_other_no_harm(
    migration: Migration, gateway: Callable[..., Any], make_world: Callable[..., World], tmp_path: Path
) -> None:
    world = make_world(bulk=30)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    both = [migration.spawn(tmp_path / name, migration.store) for name in ("one", "two")]
    for process in both:
        _, errors = process.communicate(timeout=WITHIN)
        assert process.returncode == 0 or b"another program writes to the bucket" in errors
    migration.ok(tmp_path / "one", migration.store)
    server = gateway(migration.cluster)
    world.matches(server)
    world.goes_on(server)


@asynccontextmanager
async def opened(*places: Any) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for place in places:
            await place.open()
            stack.push_async_callback(place.close)
        yield


async def make_streams(folder: Path, producers: int = 1, ends: float | None = None) -> None:
    """Make a folder with a stream that these producers wrote to."""
    store = SqliteStore(folder)
    async with opened(store):
        await store.create(Create("a", BYTES, deadline=ends, expires_at=None if ends is None else "soon"))
        for at in range(0, producers, 500):
            names = range(at, min(at + 500, producers))
            stamped = [Append(BYTES, b"%d;" % n, producer=ProducerStamp(f"p{n}", 7, 0)) for n in names]
            await asyncio.gather(*[store.append("a", command) for command in stamped])


@pytest.fixture
def config(nats_server: NatsCluster, bucket: str) -> JetStreamConfig:
    return JetStreamConfig(tuple(nats_server.urls), name=bucket, replicas=1)


def test_more_producers_than_a_message_holds(config: JetStreamConfig, tmp_path: Path) -> None:
    count = 9000

    async def check() -> None:
        await make_streams(tmp_path / "one", count)
        one, two = SqlitePlace(tmp_path / "one", source=True), JetStreamPlace(config, source=False)
        async with opened(one, two):
            await Transfer(one, two).run()
        store = JetStreamStore(config)
        async with opened(store):
            for n in (0, 1, count - 1):
                again = Append(BYTES, b"again", producer=ProducerStamp(f"p{n}", 7, 0))
                assert (await store.append("a", again)).duplicate
            new = Append(BYTES, b"new", producer=ProducerStamp("p5", 7, 1))
            assert not (await store.append("a", new)).duplicate
        back, three = JetStreamPlace(config, source=True), SqlitePlace(tmp_path / "three", source=False)
        async with opened(back, three):
            await Transfer(back, three).run()
            states = [state async for page in three.streams() for state in page]
            producers = await three.producers(states[0])
        assert len(producers) == count
        assert producers["p5"].seq == 1

    asyncio.run(check())


def test_what_expires_is_found_by_a_server_that_starts_much_later(
    config: JetStreamConfig, tmp_path: Path
) -> None:
    ends = time.time() + 1000

    async def check() -> None:
        await make_streams(tmp_path / "one", ends=ends)
        one, two = SqlitePlace(tmp_path / "one", source=True), JetStreamPlace(config, source=False)
        async with opened(one, two):
            await Transfer(one, two).run()
        bus = Bus(config)
        async with opened(bus):
            due = await bus.next(bus.layout.due_in(int(ends // 60)), 1)
            assert due is not None
            assert due.data == b"a"
            swept = await bus.last(bus.layout.swept)
            assert swept is not None
            assert int(swept.data) < ends // 60

    asyncio.run(check())


async def copy(source: Any, target: Any) -> TransferReport:
    async with opened(source, target):
        return await Transfer(source, target).run()


async def make_folder(
    folder: Path, state: StreamState, appends: list[bytes], **producers: int
) -> SqlitePlace:
    """Make a folder with one stream, and return it as a source."""
    place = SqlitePlace(folder, source=False)
    async with opened(place):
        await place.held([state])
        await place.write(state, appends)
        await place.finish(state, {name: ProducerState(0, seq) for name, seq in producers.items()})
        await place.flush()
    return SqlitePlace(folder, source=True)


@pytest.mark.parametrize(("first", "second"), [([], [b"b"]), ([b"x"], [b"x", b"y"])])
def test_an_id_that_another_path_has(
    config: JetStreamConfig, tmp_path: Path, first: list[bytes], second: list[bytes]
) -> None:
    async def check() -> None:
        for path, appends in (("a", first), ("b", second)):
            state = StreamState(1000, path, BYTES, tail=len(appends))
            source = await make_folder(tmp_path / path, state, appends)
            target = JetStreamPlace(config, source=False)
            if path == "a":
                await copy(source, target)
            else:
                with pytest.raises(StoreError, match="holds the stream a under the id of b"):
                    await copy(source, target)

    asyncio.run(check())


def test_servers_that_take_small_messages_only(
    make_cluster: Callable[..., NatsCluster], bucket: str, tmp_path: Path
) -> None:
    appends = [
        bytes([65 + n]) * size for n, size in enumerate((10_000, 60_000, 100, 30_000, 30_000, 200_000))
    ]

    async def check() -> None:
        config = JetStreamConfig(tuple(make_cluster(1, max_payload="64KB").urls), name=bucket, replicas=1)
        state = StreamState(1000, "a", BYTES, tail=sum(map(len, appends)))
        source = await make_folder(tmp_path / "one", state, appends)
        await copy(source, JetStreamPlace(config, source=False))
        back = SqlitePlace(tmp_path / "two", source=False)
        assert (await copy(JetStreamPlace(config, source=True), back)).appends == len(appends)

    asyncio.run(check())


def test_a_stream_that_was_touched_in_the_target(config: JetStreamConfig, tmp_path: Path) -> None:
    async def check() -> None:
        now = time.time()
        for name, ends in (("early", now + 50), ("late", now + 90)):
            state = StreamState(1000, "a", BYTES, tail=1, ttl=100, deadline=ends)
            source = await make_folder(tmp_path / name, state, [b"x"])
            await copy(source, JetStreamPlace(config, source=False))
        early = SqlitePlace(tmp_path / "early", source=True)
        with pytest.raises(StoreError, match="has gone on in the target"):
            await copy(early, JetStreamPlace(config, source=False))

    asyncio.run(check())


def test_a_second_run_that_breaks_off_takes_nothing_away(config: JetStreamConfig, tmp_path: Path) -> None:
    async def check() -> None:
        first = StreamState(1000, "a", BYTES, tail=3, last_seq="m")
        await copy(
            await make_folder(tmp_path / "one", first, [b"one"], p=5), JetStreamPlace(config, source=False)
        )
        appends = [b"one"] + [bytes(200_000)] * 60
        more = StreamState(1000, "a", BYTES, tail=sum(map(len, appends)), last_seq="z")
        target = JetStreamPlace(config, source=False)
        publish, count = target._bus.publish, itertools.count()

        async def fills_up(messages: Any) -> int:
            if next(count):
                raise StoreFullError("there is no room")
            return await publish(messages)

        target._bus.publish = fills_up  # type: ignore[method-assign]
        with pytest.raises(StoreFullError):
            await copy(await make_folder(tmp_path / "two", more, appends, p=65), target)
        store = JetStreamStore(config)
        async with opened(store):
            state = await store.get("a")
            assert state is not None
            assert (state.tail > 3, state.last_seq) == (True, "m")
            again = Append(BYTES, b"one", producer=ProducerStamp("p", 0, 5))
            assert (await store.append("a", again)).duplicate

    asyncio.run(check())


def test_a_server_that_writes_meanwhile_is_noticed(config: JetStreamConfig, tmp_path: Path) -> None:
    async def check() -> None:
        await make_streams(tmp_path / "one")
        bus = Bus(config)
        one, two = SqlitePlace(tmp_path / "one", source=True), JetStreamPlace(config, source=False)
        async with opened(one, two, bus):
            await bus.publish([Message(bus.layout.probe)])
            with pytest.raises(StoreError, match="another program writes to the bucket"):
                await Transfer(one, two).run()
        one, two = SqlitePlace(tmp_path / "one", source=True), JetStreamPlace(config, source=False)
        async with opened(one, two):
            assert (await Transfer(one, two).run()).known == 1
        back, three = JetStreamPlace(config, source=True), SqlitePlace(tmp_path / "three", source=False)
        async with opened(back, three, bus):
            await bus.publish([Message(bus.layout.probe)])
            with pytest.raises(StoreError, match="another program writes to the bucket"):
                await Transfer(back, three).run()

    asyncio.run(check())


class TestRefusals:
    @pytest.fixture
    def folder(self, start_server: Callable[..., Any], tmp_path: Path) -> Path:
        server = start_server(tmp_path / "one")
        for name in ("a", "b"):
            server.create(name)
            server.append(name, b"some bytes")
        server.terminate()
        return tmp_path / "one"

    def test_nobody_there(self, migration: Migration, folder: Path, unused_url: str) -> None:
        assert "cannot be reached" in migration.error(folder, unused_url)
        assert "cannot be reached" in migration.error(unused_url, folder)

    def test_no_bucket_of_that_name(self, migration: Migration, bucket: str, tmp_path: Path) -> None:
        for _ in range(2):  # nor did the first one make it
            assert f"there is no bucket {bucket} on NATS" in migration.error(
                migration.store, tmp_path / "two"
            )

    def test_another_stream_at_a_path(
        self, migration: Migration, folder: Path, gateway: Callable[..., Any]
    ) -> None:
        server = gateway(migration.cluster)
        server.create("b")
        server.terminate()
        assert "holds another stream at b" in migration.error(folder, migration.store)

    def test_a_stream_that_was_deleted_there(
        self, migration: Migration, folder: Path, gateway: Callable[..., Any]
    ) -> None:
        migration.ok(folder, migration.store)
        server = gateway(migration.cluster)
        assert server.request("DELETE", "a").status == 204
        server.terminate()
        assert "the stream a was deleted in the bucket" in migration.error(folder, migration.store)

    def test_a_target_that_went_on(
        self, migration: Migration, folder: Path, gateway: Callable[..., Any]
    ) -> None:
        migration.ok(folder, migration.store)
        server = gateway(migration.cluster)
        server.append("b", b"more")
        server.terminate()
        assert "the stream b has gone on in the target" in migration.error(folder, migration.store)

    def test_no_room(self, migration: Migration, start_server: Callable[..., Any], tmp_path: Path) -> None:
        server = start_server(tmp_path / "one")
        server.create("a")
        for _ in range(10):
            server.append("a", bytes(1 << 20))
        server.terminate()
        message = migration.error(tmp_path / "one", migration.store, "--nats-max-bytes", str(5 << 20))
        assert "is full" in message
        assert "the same command continues" in message
