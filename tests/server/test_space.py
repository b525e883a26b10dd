"""How much may be stored below a path: on every store, at once, and what comes by no request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.protocol.commands import Append, Create, ForkPoint, Rejection, Trim
from durable_streams.protocol.grants import EVERYTHING, Grant
from durable_streams.protocol.state import ProducerStamp
from durable_streams.server import ServerConfig, ServerRequest, asgi_app, space
from durable_streams.server.quotas import parse_quotas
from durable_streams.server.space import Space
from durable_streams.server.toml import Watched
from durable_streams.stores.memory import MemoryStore
from durable_streams.testing.nats import NatsCluster

TEXT = {"content-type": "text/plain"}


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with NatsCluster(tmp_path_factory.mktemp("nats"), 1) as cluster:
        yield cluster.store


@pytest.fixture(params=["memory", "sqlite", "nats"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ServerConfig:
    if request.param == "nats":
        return ServerConfig(store=request.getfixturevalue("nats"), nats_replicas=1)
    return ServerConfig(data_dir=tmp_path / "data" if request.param == "sqlite" else None)


async def anyone(_operation: str, _path: str, _request: ServerRequest) -> Grant:
    return EVERYTHING


@asynccontextmanager
async def client_of(
    folder: Path, limits: str, config: ServerConfig | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    path = folder / "limits.toml"
    path.write_text(limits)
    app = asgi_app(replace(config or ServerConfig(), limits=path), authorize=anyone)
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/") as client:
        try:
            yield client
        finally:
            await app.shutdown()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


def outcome(answer: httpx.Response) -> int | str:
    """Return the status, or the code of an error."""
    code: str | None = answer.json()["error"]["code"] if answer.status_code >= 400 else None
    return code or answer.status_code


FULL = "QUOTA_EXCEEDED"


def test_streams_and_bytes_below_a_prefix(config: ServerConfig, tmp_path: Path) -> None:
    limits = "[prefix.'t/']\nstreams = 3\nbytes = 20\n[prefix.'t/a/']\nbytes = 10\n"

    async def work() -> None:
        async with client_of(tmp_path, limits, config) as client:

            async def put(path: str, data: bytes = b"", **headers: str) -> int | str:
                return outcome(await client.put(path, content=data, headers=TEXT | headers))

            async def post(path: str, data: bytes) -> int | str:
                return outcome(await client.post(path, content=data, headers=TEXT))

            async def trim(path: str) -> int | str:
                return outcome(await client.post(f"__ds/streams/{path}/trim", json={"max_bytes": 0}))

            assert await put("other", b"x" * 100) == 201
            assert await put("t/a/1") == 201
            assert await post("t/a/1", b"x" * 7) == 204
            assert await post("t/a/1", b"x" * 4) == FULL
            assert await post("t/a/1", b"x" * 3) == 204
            assert await put("t/a/2", b"x") == FULL
            assert (await client.head("t/a/2")).status_code == 404
            assert await put("t/b", b"x" * 10) == 201  # of the outer limit there is so much left
            assert await post("t/b", b"x") == FULL
            assert await post("t/missing", b"x") in ("NOT_FOUND", FULL)
            assert await trim("t/a/1") == 200
            assert await post("t/b", b"x" * 5) == 204
            assert await post("t/a/1", b"x" * 6) == FULL
            # Of a fork only its own bytes count: what it inherits is stored once.
            assert await put("t/c", **{"stream-forked-from": "/v1/stream/other"}) == 201
            assert await put("t/d") == FULL
            assert await put("t/b") == 200
            assert await put("t/b", **{"content-type": "text/html"}) == "CONFLICT_EXISTS"
            assert outcome(await client.post("t/c", headers={"stream-closed": "true"})) == 204
            assert outcome(await client.delete("t/b")) == 204
            assert await put("t/d", b"x" * 18) == 201
            assert await post("t/d", b"x" * 3) == FULL
            # What was refused left no room taken.
            assert await post("t/d", b"x" * 2) == 204

    run(work)


def test_a_repetition_takes_no_room(config: ServerConfig, tmp_path: Path) -> None:
    """A producer learns that its append was stored, though there is no room for another one."""

    async def work() -> None:
        async with client_of(tmp_path, "[prefix.'repeated/']\nbytes = 4\n", config) as client:
            assert outcome(await client.put("repeated/s", headers=TEXT)) == 201

            async def produce(epoch: int, seq: int) -> int | str:
                stamp = {"producer-id": "p", "producer-epoch": str(epoch), "producer-seq": str(seq)}
                return outcome(await client.post("repeated/s", content=b"abc", headers=TEXT | stamp))

            assert [await produce(1, 0), await produce(1, 0), await produce(1, 1)] == [200, 204, FULL]
            assert [await produce(0, 0), await produce(1, 5)] == ["STALE_EPOCH", "SEQUENCE_GAP"]
            assert (await client.get("repeated/s")).content == b"abc"

    run(work)


def test_a_path_that_is_shorter_than_another_prefix_counts_once(tmp_path: Path) -> None:
    async def work() -> None:
        limits = "[prefix.'t']\nbytes = 10\n[prefix.'t/']\nbytes = 5\n[prefix.'t/long']\nbytes = 5\n"
        async with client_of(tmp_path, limits) as client:
            assert outcome(await client.put("t", content=b"x" * 6, headers=TEXT)) == 201
            assert outcome(await client.post("t", content=b"x" * 4, headers=TEXT)) == 204
            assert outcome(await client.post("t", content=b"x", headers=TEXT)) == FULL

    run(work)


def test_all_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, "[prefix.'t/']\nstreams = 5\nbytes = 30\n") as client:
            made = await asyncio.gather(*(client.put(f"t/{number}", headers=TEXT) for number in range(20)))
            assert sorted(map(str, map(outcome, made))) == ["201"] * 5 + [FULL] * 15
            listed = (await client.get("__ds/streams?prefix=t/")).json()["streams"]
            path = listed[0]["path"]
            stored = await asyncio.gather(
                *(client.post(path, content=b"abc", headers=TEXT) for _ in range(20))
            )
            assert sorted(map(str, map(outcome, stored))) == ["204"] * 10 + [FULL] * 10
            assert len((await client.get(path)).content) == 30

    run(work)


def test_what_was_there_before_counts(tmp_path: Path) -> None:
    config = ServerConfig(data_dir=tmp_path / "data")

    async def work() -> None:
        async with client_of(tmp_path, "", config) as client:
            for number in range(3):
                assert (await client.put(f"t/{number}", content=b"abc", headers=TEXT)).status_code == 201
        async with client_of(tmp_path, "[prefix.t]\nstreams = 3\nbytes = 10\n", config) as client:
            assert outcome(await client.put("t/3", headers=TEXT)) == FULL
            assert outcome(await client.post("t/1", content=b"ab", headers=TEXT)) == FULL
            assert outcome(await client.post("t/1", content=b"a", headers=TEXT)) == 204

    run(work)


def test_a_stream_that_gives_up_its_first_appends_makes_room(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, "[prefix.t]\nbytes = 100\n") as client:
            created = await client.put("t", headers=TEXT | {"stream-retention-max-bytes": "50"})
            assert created.status_code == 201
            for _ in range(60):
                assert outcome(await client.post("t", content=b"x" * 10, headers=TEXT)) == 204

    run(work)


def test_changed_limits_of_what_is_stored(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, "[prefix.t]\nstreams = 1\n") as client:
            assert outcome(await client.put("t/1")) == 201
            assert outcome(await client.put("t/2")) == FULL
            (tmp_path / "limits.toml").write_text("[prefix.t]\nstreams = 2\n[prefix.u]\nstreams = 0\n")
            until = time.monotonic() + 20
            while outcome(await client.put("t/2")) == FULL:
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
            assert outcome(await client.put("u")) == FULL
            assert outcome(await client.put("t/3")) == FULL

    run(work)


def test_what_comes_by_no_request_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server's streams, and those that expire."""
    for name in ("_COUNT_EVERY", "_LOOK_EVERY"):
        monkeypatch.setattr(space, name, 0.02)
    monkeypatch.setattr(space, "_PAGE", 2)
    path = tmp_path / "limits.toml"
    path.write_text("[prefix.t]\nstreams = 6\nbytes = 20\n")

    async def until(work: Callable[[], Awaitable[Any]], outcome: int | str) -> None:
        end = time.monotonic() + 20
        while (found := await outcome_of(work)) != outcome:
            assert time.monotonic() < end, found
            await asyncio.sleep(0.02)

    async def work() -> None:
        now, names = [1000.0], (f"t/made/{number}" for number in range(1000))
        store = MemoryStore(clock=lambda: now[0])
        await store.open()
        limited = Space(Watched(path, parse_quotas), store)
        limited.start()
        await limited.create(Create("t/own", "text/plain"))
        for number in range(5):
            await store.create(Create(f"t/{number}", "text/plain", payload=b"abcd", ttl=60))

        async def append() -> None:
            await limited.append("t/own", Append("text/plain", b"x"))

        async def create() -> None:
            await limited.create(Create(next(names), "text/plain"))

        await until(append, FULL)
        await until(create, FULL)
        now[0] += 100  # they expire
        await until(append, 200)
        await until(create, 200)
        await limited.stop()
        await store.close()

    run(work)


async def outcome_of(work: Callable[[], Awaitable[Any]]) -> int | str:
    try:
        await work()
    except Rejection as refusal:
        return refusal.code
    return 200


def test_what_is_counted_while_it_is_stored_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that sees a commit before its request goes on."""
    path = tmp_path / "limits.toml"
    path.write_text("[prefix.t]\nstreams = 2\nbytes = 12\n")

    async def work() -> None:
        store = MemoryStore()
        await store.open()
        limited = Space(Watched(path, parse_quotas), store)
        [usage] = limited._usages.values()
        for name in ("create", "append"):
            stored = getattr(store, name)

            async def counted(*given: Any, stored: Any = stored) -> Any:
                result = await stored(*given)
                await limited._count(usage)
                return result

            monkeypatch.setattr(store, name, counted)
        await limited._count(usage)
        await limited.create(Create("t/1", "text/plain", payload=b"abc"))
        await limited.append("t/1", Append("text/plain", b"abc"))
        limited._known.clear()
        await limited.append("t/1", Append("text/plain", b"abc"))
        assert (usage.streams, usage.bytes) == (1, 9)
        assert not limited._writing
        await limited.create(Create("t/2", "text/plain", payload=b"abc"))
        with pytest.raises(Rejection, match="at most 12 bytes"):
            await limited.append("t/2", Append("text/plain", b"a"))
        await store.close()

    run(work)


PATHS = st.sampled_from(["t", "t/", "t/1", "t/2", "u"])
STEPS = st.one_of(
    st.tuples(st.just("create"), PATHS, st.integers(0, 9), PATHS | st.none()),
    st.tuples(st.just("append"), PATHS, st.integers(1, 9), st.integers(0, 2) | st.none()),
    st.tuples(st.just("trim"), PATHS, st.integers(0, 30), st.none()),
    st.tuples(st.just("delete"), PATHS, st.just(0), st.none()),
)


async def do(limited: Space, store: MemoryStore, step: tuple[str, str, int, Any]) -> None:
    name, path, size, more = step
    if name == "create":
        source = None if more is None else await store.get(more)
        fork = None if source is None else ForkPoint(source.path, source.id, source.tail)
        await limited.create(Create(path, "text/plain", payload=b"x" * size, fork=fork))
    elif name == "append":
        producer = None if more is None else ProducerStamp("p", 0, more)
        await limited.append(path, Append("text/plain", b"x" * size, producer=producer))
    elif name == "trim":
        state = await store.get(path)
        await limited.retain(path, Trim(0 if state is None else state.id, size))
    else:
        await limited.delete(path)


@settings(deadline=None, max_examples=50)
@given(st.lists(STEPS, max_size=25))
def test_the_sums_are_what_is_stored(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """After any requests, those that are refused too; and no limit is passed."""
    path = tmp_path_factory.getbasetemp() / "limits.toml"
    path.write_text("[prefix.t]\nstreams = 3\nbytes = 25\n[prefix.'t/']\nbytes = 15\n")

    async def work() -> None:
        store = MemoryStore()
        await store.open()
        limited = Space(Watched(path, parse_quotas), store)
        for step in steps:
            with contextlib.suppress(Rejection):
                await do(limited, store, step)
            for usage in limited._usages.values():
                states = (await store.list_streams(usage.prefix, "", 100)).states
                assert (usage.streams, usage.bytes) == (len(states), sum(map(space._stored, states)))
                assert usage.bytes <= (usage.room.bytes or 0)
                assert usage.coming_streams == usage.coming_bytes == 0
        await store.close()

    run(work)


def test_what_is_remembered_of_streams_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "_MAX_KNOWN", 3)

    async def work() -> None:
        path = tmp_path / "limits.toml"
        path.write_text("[prefix.t]\nstreams = 30\nbytes = 40\n")
        store = MemoryStore()
        await store.open()
        limited = Space(Watched(path, parse_quotas), store)
        limited.start()
        for number in range(20):
            await limited.create(Create(f"t/{number}", "text/plain"))
            await limited.append(f"t/{number}", Append("text/plain", b"xx"))
            assert len(limited._known) <= 3
        with pytest.raises(Rejection, match="at most 40 bytes below 't'"):
            await limited.append("t/0", Append("text/plain", b"x"))
        await limited.delete("t/0")
        await limited.append("t/1", Append("text/plain", b"xx"))
        await limited.stop()
        await store.close()

    run(work)
