"""The engine in the process of the test, on real stores: what appends cost, many subscriptions, and limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from durable_streams.protocol.commands import Append, Create, Rejection
from durable_streams.protocol.subscription import Subscription, configure, new_subscription
from durable_streams.server.subscriptions import engine as engines
from durable_streams.server.subscriptions import lag
from durable_streams.server.subscriptions.engine import Engine
from durable_streams.server.subscriptions.routes import Routes
from durable_streams.stores.base import StoreUncertainError
from durable_streams.stores.memory import MemoryStore
from durable_streams.stores.sqlite import SqliteStore

JSON = "application/json"
WITHIN = 30.0  # seconds


def made(name: str, **asked: Any) -> Subscription:
    config = configure({"type": "pull-wake", "wake_stream": "wakes", **asked})
    return new_subscription(name, config, 0.0, "incarnation")


def anybody(_: Subscription) -> None:
    """Admit everybody."""


class Harness:
    """A store with the engine on it, as handlers use them."""

    def __init__(self, store: MemoryStore | SqliteStore) -> None:
        self.store, self.engine = store, Engine(store)

    async def append(self, path: str, payload: bytes = b"1,") -> None:
        try:
            await self.store.append(path, Append(JSON, payload))
        except Rejection:
            await self.store.create(Create(path, JSON, payload))
        self.engine.appended(path)

    async def settled(self) -> None:
        """Wait until nothing is to be done."""
        while self.engine._queue or self.engine._tasks:  # noqa: ASYNC110 - the engine has no event for it
            await asyncio.sleep(0.001)

    async def awake(self) -> int:
        await self.settled()
        return sum(not one.idle for one in self.engine.all())


@asynccontextmanager
async def running(store: MemoryStore | SqliteStore) -> AsyncIterator[Harness]:
    await store.open()
    harness = Harness(store)
    if await store.get("wakes") is None:
        await store.create(Create("wakes", JSON))
    await harness.engine.start()
    try:
        yield harness
    finally:
        await harness.engine.stop()
        await store.close()


COUNT = 300


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, WITHIN))


def test_each_append_wakes_those_that_it_concerns(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(SqliteStore(tmp_path)) as harness:
            for number in range(COUNT):
                asked = {"streams": [f"s/{number}"], "pattern": f"p/{number}/*"}
                await harness.engine.create(made(f"sub-{number}", **asked))
            assert await harness.awake() == 0
            for path in ("s/7", "p/7/x", "p/8/x", "other"):
                await harness.append(path)
            assert await harness.awake() == 2
            await asyncio.gather(*(harness.append(f"s/{number}") for number in range(COUNT)))
            assert await harness.awake() == COUNT
            wakes = await harness.store.get("wakes")
            assert wakes is not None
        async with running(SqliteStore(tmp_path)) as harness:
            assert await harness.awake() == COUNT
            again = await harness.store.get("wakes")
            assert again is not None
            assert again.tail == wakes.tail, "a wake is announced once"

    run(main())


def test_a_wake_stream_of_many_wakes_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wake is an append to it: a step for every subscription would make that quadratic."""
    steps = []
    step = Engine._step

    async def counting(self: Engine, entry: Any, *rest: Any, **options: Any) -> Subscription:
        steps.append(entry.name)
        return await step(self, entry, *rest, **options)

    async def main() -> None:
        async with running(MemoryStore()) as harness:
            for number in range(COUNT):
                await harness.engine.create(made(f"sub-{number}", pattern="**"))
            await harness.settled()
            monkeypatch.setattr(Engine, "_step", counting)
            await harness.append("wakes")
            await harness.settled()
            assert steps == []
            await harness.append("a")
            assert await harness.awake() == COUNT
            assert len(steps) == COUNT

    run(main())


def test_an_append_that_concerns_nobody_is_one_look_into_a_dictionary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches = []
    search = Routes._search

    def counting(self: Routes, path: str) -> Any:
        searches.append(path)
        return search(self, path)

    async def main() -> None:
        async with running(MemoryStore()) as harness:
            assert not harness.engine.active, "without subscriptions appends do not even look"
            for number in range(COUNT):
                await harness.engine.create(made(f"sub-{number}", pattern=f"p/{number}/**/x/*"))
            assert harness.engine.active
            monkeypatch.setattr(Routes, "_search", counting)
            for _ in range(100):
                harness.engine.appended("other/path")
            assert searches == ["other/path"]
            await harness.engine.create(made("late", pattern="other/*"))
            await harness.append("other/path")
            assert await harness.awake() == 1
            for one in harness.engine.all():
                await harness.engine.remove(one.id, anybody)
            assert not harness.engine.active

    run(main())


def test_no_more_streams_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines, "MAX_LINKS", 3)

    async def main() -> None:
        async with running(MemoryStore()) as harness:
            engine = harness.engine
            await engine.create(made("one", pattern="s/*"))
            for number in range(5):
                await harness.append(f"s/{number}")
            assert await harness.awake() == 1
            await engine.change("one", lambda one, _: one.claimed("worker", 0.0))
            assert len((await engine.find("one")).links) == 3
            for refused in (
                engine.create(made("two", pattern="s/*")),
                engine.create(made("two", streams=["a", "b", "c", "d"])),
                engine.add_streams("one", ["a"], anybody),
            ):
                with pytest.raises(Rejection) as refusal:
                    await refused
                assert (refusal.value.status, refusal.value.code) == (400, "INVALID_REQUEST")
            assert [one.id for one in engine.all()] == ["one"]
            monkeypatch.setattr(engines, "MAX_SUBSCRIPTIONS", 1)
            with pytest.raises(Rejection):
                await engine.create(made("three", streams=["a"]))

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.message for record in caplog.records] == [
        "subscription 'one' has 3 streams: others wake nobody"
    ]


@pytest.mark.parametrize("stored", [True, False])
def test_a_step_whose_outcome_is_unknown_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, stored: bool
) -> None:
    monkeypatch.setattr(engines, "_AGAIN", 0.01)

    async def main() -> None:
        async with running(SqliteStore(tmp_path)) as harness:
            engine, kept = harness.engine, harness.engine._kept
            save, answers = kept.save, [StoreUncertainError("the disk does not answer")]

            async def saving(after: Subscription, before: Any) -> int:
                if answers and not stored:
                    raise answers.pop()
                revision = await save(after, before)
                if answers:
                    raise answers.pop()
                return revision

            monkeypatch.setattr(kept, "save", saving)
            with pytest.raises(StoreUncertainError):
                await engine.create(made("one", pattern="s/*"))
            while engine._entries and engine._entries["one"].doubted:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
            assert [one.id for one in engine.all()] == (["one"] if stored else [])
            await engine.create(made("one", pattern="s/*"))
            answers.append(StoreUncertainError("the disk does not answer"))
            await harness.append("s/1")
            while not (await harness.awake()):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
            assert (await engine.find("one")).generation == 1

    run(main())


def test_creations_of_one_id_at_once_make_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(SqliteStore(tmp_path)) as harness:
            engine = harness.engine
            outcomes = await asyncio.gather(*(engine.create(made("one", pattern="s/*")) for _ in range(5)))
            assert sorted(new for _, new in outcomes) == [False] * 4 + [True]
            await asyncio.gather(
                engine.remove("one", anybody),
                engine.create(made("one", pattern="s/*")),
                engine.remove("one", anybody),
            )
            await engine.remove("one", anybody)
            assert (engine.all(), engine._entries) == ([], {})

    run(main())


def test_what_metrics_look_at_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where everything is awake: the first hundred are named, and what was left out is counted."""
    monkeypatch.setattr(lag, "_MOST_LINKS", COUNT - 50)

    async def main() -> None:
        async with running(MemoryStore()) as harness:
            for number in range(COUNT):
                await harness.engine.create(made(f"sub-{number}", streams=[f"s/{number}"]))
            assert (await lag.lags_of(harness.engine)).states["idle"] == COUNT
            await asyncio.gather(*(harness.append(f"s/{number}", b"12,") for number in range(COUNT)))
            await harness.settled()
            found = await lag.lags_of(harness.engine)
            assert found.states == {"idle": 0, "waiting": COUNT, "working": 0, "failed": 0}
            assert (len(found.named), set(found.named.values())) == (lag.NAMED, {3})
            assert (found.bytes, found.unknown) == (3 * (COUNT - 50), 50)
            failed = replace(harness.engine.all()[0], retry_count=1)
            monkeypatch.setattr(harness.engine, "all", lambda: [failed])
            assert (await lag.lags_of(harness.engine)).states["failed"] == 1

    run(main())
