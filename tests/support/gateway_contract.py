"""Several stores that serve the same streams at a time, as gateways before one cluster do.

What one has acknowledged, the other knows; what both are asked at once happens once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

import pytest

from durable_streams.protocol.commands import Appended, Created, ForkPoint, Rejection
from durable_streams.protocol.state import StreamState
from durable_streams.stores.base import Watch
from durable_streams.stores.figures import Measured
from durable_streams.testing.contract.harness import (
    BYTES,
    JSON,
    LIMIT,
    Harness,
    StoreFactory,
    as_test,
    refused,
)

__all__ = ["GatewayContract"]

_LONG = 30.0  # seconds, for what takes a few milliseconds
_ROUNDS = 20
_PAST = 115  # seconds: a window of 100 and its slack


@asynccontextmanager
async def another(harness: Harness) -> AsyncIterator[Harness]:
    """Open a second store over the streams of the first one, with the same clock."""
    other = Harness(harness.factory, harness.folder, harness.clock)
    await other.store.open()
    try:
        yield other
    finally:
        await other.store.close()


def on_two(test: Callable[..., Awaitable[None]]) -> Callable[[Any], None]:
    """Turn an asynchronous test of two Harnesses, whose stores serve the same streams, into one that pytest runs."""

    async def main(self: Any) -> None:
        async with self.harness() as one, another(one) as other:
            await asyncio.wait_for(test(self, one, other), LIMIT)

    return as_test(test, main)


class GatewayContract(StoreFactory):
    """For a store whose ``make_store`` returns stores over the same streams."""

    # -- appends on condition

    @on_two
    async def test_an_append_expects_the_tail_that_the_other_left(self, a: Harness, b: Harness) -> None:
        await a.create("s")
        for number in range(_ROUNDS):
            await refused(412, b.append("s", b"x", expected=2 * number + 1))
            assert (await b.append("s", b"b", expected=2 * number)).state.tail == 2 * number + 1
            await refused(412, a.append("s", b"x", expected=2 * number))
            await a.append("s", b"a", expected=2 * number + 1)
        assert await b.everything("s") == b"ba" * _ROUNDS

    @on_two
    async def test_one_of_two_appends_that_expect_one_tail(self, a: Harness, b: Harness) -> None:
        await a.create("s")
        for number in range(_ROUNDS):
            appends = a.append("s", b"a", expected=number), b.append("s", b"b", expected=number)
            outcomes = await asyncio.gather(*appends, return_exceptions=True)
            refusals = [one for one in outcomes if isinstance(one, Rejection)]
            assert [one.status for one in refusals] == [412], outcomes
        assert (await a.state("s")).tail == _ROUNDS

    # -- what one did, the other knows

    @on_two
    async def test_what_was_acknowledged_is_never_missing(self, a: Harness, b: Harness) -> None:
        for number in range(_ROUNDS):
            assert await b.store.get("s") is None
            created = await a.create("s", payload=b"a")
            assert await b.state("s") == created.state
            for size in range(5):
                appended = await b.append("s", b"b" * size if size else b"-")
                assert (await a.state("s")).tail == appended.state.tail
            assert (await a.append("s", b"c", seq=f"{number:03}")).state == await b.state("s")
            assert (await b.close("s")).state.closed
            assert (await a.state("s")).closed
            assert await a.everything("s") == await b.everything("s") == b"a-bbbbbbbbbbc"
            await a.store.delete("s")
        assert await b.store.get("s") is None

    @on_two
    async def test_a_glance_settles_on_what_is_there(self, a: Harness, b: Harness) -> None:
        """It may lag, but not forever behind a state that this store was asked to read."""
        await a.create("s", payload=b"abc")
        state = await b.state("s")
        assert await b.store.glance("s") == state
        await a.append("s", b"def")
        glanced = await b.store.glance("s")
        assert glanced is not None
        assert glanced.id == state.id
        assert glanced.tail in (3, 6)
        assert await b.state("s") == await b.store.glance("s")

    @on_two
    async def test_rules_hold_across(self, a: Harness, b: Harness) -> None:
        await a.create("s", JSON)
        await refused(409, b.append("s", b"x", "text/plain"), "CONFLICT_CONTENT_TYPE")
        await a.append("s", b"1,", JSON, seq="5")
        await refused(409, b.append("s", b"2,", JSON, seq="5"), "CONFLICT_SEQ")
        await b.append("s", b"2,", JSON, seq="6")
        await refused(409, a.append("s", b"3,", JSON, seq="6"), "CONFLICT_SEQ")
        await refused(409, a.create("s", "text/plain"), "CONFLICT_EXISTS")
        await b.close("s")
        await refused(409, a.append("s", b"4,", JSON, seq="7"), "STREAM_CLOSED")
        assert (await a.close("s")).duplicate
        await a.store.delete("s")
        await refused(404, b.append("s", b"5,", JSON))
        await refused(404, b.store.delete("s"))
        assert await b.store.get("s") is None

    @on_two
    async def test_offsets_are_the_same_everywhere(self, a: Harness, b: Harness) -> None:
        await a.create("s")
        ends = []
        for number, gateway in zip(range(60), cycle((a, b)), strict=False):
            ends.append((await gateway.append("s", b"%d;" % number)).state.tail)
        state = await a.state("s")
        content = b"".join(b"%d;" % number for number in range(60))
        for gateway in (a, b):
            for end in ends:
                chunk = await gateway.store.read(state, end, 1 << 20)
                assert (chunk.end, chunk.payload) == (len(content), content[end:])

    # -- both at once

    @on_two
    async def test_writers_on_both(self, a: Harness, b: Harness) -> None:
        """Each append is there once, each writer's in order, each offset right."""
        await a.create("s")
        ends: dict[bytes, int] = {}

        async def write(gateway: Harness, writer: int) -> None:
            for number in range(25):
                record = b"<%02d:%03d>" % (writer, number)
                ends[record] = (await gateway.append("s", record)).state.tail

        await asyncio.gather(
            *(write(gateway, n) for n, gateway in zip(range(8), cycle((a, b)), strict=False))
        )
        content = await a.everything("s")
        assert content == await b.everything("s")
        assert len(content) == 8 * 25 * 8
        assert {content[end - 8 : end]: end for end in range(8, len(content) + 1, 8)} == ends
        for writer in range(8):
            places = [content.index(b"<%02d:%03d>" % (writer, number)) for number in range(25)]
            assert places == sorted(places)

    @on_two
    async def test_large_appends_on_both(self, a: Harness, b: Harness) -> None:
        await a.create("s")
        payloads = [bytes([65 + n]) * (2_500_000 + n) for n in range(6)]
        work = zip(payloads, cycle((a, b)), strict=False)
        ends = await asyncio.gather(*(gateway.append("s", payload) for payload, gateway in work))
        content = await b.everything("s")
        assert content == await a.everything("s")
        for payload, appended in zip(payloads, ends, strict=True):
            end = appended.state.tail
            assert content[end - len(payload) : end] == payload

    @on_two
    async def test_a_pipeline_over_both(self, a: Harness, b: Harness) -> None:
        """What overtakes is refused as a gap and sent again; all of it is stored once and in order."""
        await a.create("s")

        async def send(gateway: Harness, seq: int) -> Appended:
            while True:
                try:
                    return await gateway.produce("s", b"%03d;" % seq, ("p", 0, seq))
                except Rejection as refusal:
                    if refusal.code != "SEQUENCE_GAP":
                        raise

        await send(a, 0)
        for first in range(1, 100, 9):
            burst = zip(range(first, first + 9), cycle((a, b)), strict=False)
            appended = await asyncio.gather(*(send(gateway, seq) for seq, gateway in burst))
            assert not any(one.duplicate for one in appended)
        content = b"".join(b"%03d;" % seq for seq in range(100))
        assert await a.everything("s") == await b.everything("s") == content

    @on_two
    async def test_the_same_request_to_both(self, a: Harness, b: Harness) -> None:
        await a.create("s")
        for seq in range(3 * _ROUNDS):
            stamp = ("p", 7, seq)
            answers = await asyncio.gather(
                *(gateway.produce("s", b"%03d;" % seq, stamp) for gateway in (a, b, a, b))
            )
            assert sorted(one.duplicate for one in answers) == [False, True, True, True]
            assert {one.state.tail for one in answers} == {4 * (seq + 1)}
        answers = await asyncio.gather(
            *(gateway.produce("s", b"end", ("p", 7, 3 * _ROUNDS), close=True) for gateway in (a, b))
        )
        assert sorted(one.duplicate for one in answers) == [False, True]
        assert await a.everything("s") == b"".join(b"%03d;" % seq for seq in range(3 * _ROUNDS)) + b"end"

    @on_two
    async def test_two_producers_of_one_name(self, a: Harness, b: Harness) -> None:
        """The newer one fences the older one, which is refused; nothing that was acknowledged is lost."""
        await a.create("s")
        stored: dict[bytes, list[bytes]] = {b"a": [], b"b": []}

        async def produce(gateway: Harness, name: bytes, epoch: int, count: int) -> None:
            for seq in range(count):
                record = b"%s%03d" % (name, seq)
                await gateway.produce("s", record, ("p", epoch, seq))
                stored[name].append(record)
                if name == b"a" and seq == _ROUNDS:
                    begun.set()

        begun = asyncio.Event()
        older = asyncio.create_task(produce(a, b"a", 3, 10**6))
        await asyncio.wait_for(begun.wait(), _LONG)
        await produce(b, b"b", 4, _ROUNDS)
        fenced = await refused(403, asyncio.wait_for(older, _LONG), "STALE_EPOCH")
        assert "4" in fenced.headers.values()
        await refused(403, b.produce("s", b"late", ("p", 3, len(stored[b"a"]))), "STALE_EPOCH")
        assert await a.everything("s") == b"".join(stored[b"a"] + stored[b"b"])

    @on_two
    async def test_producers_are_known_everywhere(self, a: Harness, b: Harness) -> None:
        await a.create("s")
        await b.create("t")
        for seq, (one, other) in zip(range(40), cycle(((a, b), (b, a))), strict=False):
            for path in ("s", "t"):
                assert not (await one.produce(path, b"%02d" % seq, ("p", 1, seq))).duplicate
                assert (await other.produce(path, b"%02d" % seq, ("p", 1, seq))).duplicate
            gap = await refused(409, other.produce("s", b"x", ("p", 1, seq + 2)), "SEQUENCE_GAP")
            assert str(seq + 1) in gap.headers.values()
        assert await a.everything("s") == await b.everything("t") == b"".join(b"%02d" % n for n in range(40))

    @on_two
    async def test_the_same_creation_on_both(self, a: Harness, b: Harness) -> None:
        for number in range(_ROUNDS):
            made = await asyncio.gather(
                *(gateway.create(f"s{number}", payload=b"x", ttl=100) for gateway in (a, b, a, b))
            )
            assert sorted(one.new for one in made) == [False, False, False, True]
            assert len({one.state.id for one in made}) == 1
            assert await a.everything(f"s{number}") == b"x"

    @on_two
    async def test_different_creations_on_both(self, a: Harness, b: Harness) -> None:
        for number in range(_ROUNDS):
            outcomes = await asyncio.gather(
                a.create(f"s{number}", BYTES, payload=b"a"),
                b.create(f"s{number}", JSON, payload=b"1,"),
                return_exceptions=True,
            )
            made = [one for one in outcomes if isinstance(one, Created)]
            (lost,) = (one for one in outcomes if not isinstance(one, Created))
            assert len(made) == 1
            assert isinstance(lost, Rejection), lost
            assert lost.code == "CONFLICT_EXISTS"
            assert await a.state(f"s{number}") == await b.state(f"s{number}") == made[0].state

    @on_two
    async def test_a_deletion_against_an_append(self, a: Harness, b: Harness) -> None:
        for number in range(_ROUNDS):
            old = (await a.create("s", payload=b"%d" % number)).state
            await b.state("s")
            _, appended = await asyncio.gather(
                a.store.delete("s"), b.append("s", b"late"), return_exceptions=True
            )
            if isinstance(appended, Appended):
                assert appended.state.id == old.id
            else:
                assert isinstance(appended, Rejection), appended
                assert appended.status == 404
            assert await a.store.get("s") is None
            assert await b.store.get("s") is None
            again = await b.create("s")
            assert again.new
            assert (await a.state("s")).tail == 0
            await a.store.delete("s")

    @on_two
    async def test_the_same_deletion_on_both(self, a: Harness, b: Harness) -> None:
        for _ in range(_ROUNDS):
            await a.create("s", payload=b"x")
            outcomes = await asyncio.gather(a.store.delete("s"), b.store.delete("s"), return_exceptions=True)
            refusals = [one for one in outcomes if isinstance(one, Rejection)]
            assert [one.status for one in refusals] == [404], outcomes
            assert await a.store.get("s") is None

    @on_two
    async def test_everything_at_once(self, a: Harness, b: Harness) -> None:
        """Streams of one path come and go on both; what an append was acknowledged for is never another one's."""

        async def live(gateway: Harness, name: bytes) -> None:
            for number in range(_ROUNDS):
                with contextlib.suppress(Rejection):
                    await gateway.create("s")
                    appended = await gateway.append("s", b"%s%02d" % (name, number))
                    chunk = await gateway.store.read(appended.state, appended.state.tail - 3, 3)
                    assert chunk.payload == b"%s%02d" % (name, number)
                    if number % 3 == 0:
                        await gateway.store.delete("s")

        await asyncio.gather(*(live(gateway, b"%c" % (65 + n)) for n, gateway in enumerate((a, b, a, b))))
        assert await a.store.get("s") == await b.store.get("s")

    # -- forks

    @on_two
    async def test_a_fork_against_the_deletion_of_its_source(self, a: Harness, b: Harness) -> None:
        for _ in range(_ROUNDS):
            source = (await a.create("s", payload=b"abc")).state
            await b.state("s")
            point = ForkPoint("s", source.id, 2)
            fork, deleted = await asyncio.gather(
                a.create("f", None, fork=point), b.store.delete("s"), return_exceptions=True
            )
            assert deleted is None
            if isinstance(fork, Created):
                assert await b.everything("f") == b"ab"
                assert (await b.state("s")).deleted
                await refused(410, a.append("s", b"x"))
                await refused(409, b.create("s"), "CONFLICT_EXISTS")
                await b.store.delete("f")
            else:
                assert isinstance(fork, Rejection), fork
                assert fork.status in (404, 409)
                assert await b.store.get("f") is None
            assert await a.store.get("s") is None
            assert await b.store.get("s") is None

    @on_two
    async def test_forks_on_both(self, a: Harness, b: Harness) -> None:
        """All of them count: the source goes with the last one."""
        await a.create("s", payload=b"abc")
        source = await a.state("s")
        point = ForkPoint("s", source.id, 3)
        made = zip(range(10), cycle((a, b)), strict=False)
        await asyncio.gather(*(gateway.create(f"f{n}", None, fork=point) for n, gateway in made))
        await b.append("f0", b"d")
        assert await a.everything("f0") == b"abcd"
        await a.store.delete("s")
        gone = zip(range(9), cycle((a, b)), strict=False)
        await asyncio.gather(*(gateway.store.delete(f"f{n}") for n, gateway in gone))
        assert (await b.state("s")).deleted
        assert await a.everything("f9") == b"abc"
        await b.store.delete("f9")
        assert await a.store.get("s") is None
        assert (await a.create("s")).new

    # -- live reads

    @on_two
    async def test_a_watch_wakes_for_what_the_other_does(self, a: Harness, b: Harness) -> None:
        await a.create("s", payload=b"abc")
        with await b.store.watch("s") as watch, await b.store.watch("s") as second:
            for number in range(_ROUNDS):
                payload = b"%d" % number * 50
                tail = (await a.append("s", payload)).state.tail
                await _until(watch, _reaches(tail))
                await _until(second, _reaches(tail))
                chunk = watch.recent(tail - len(payload))
                assert chunk is None or chunk.payload == payload
                assert (await b.state("s")).tail == tail
            await a.close("s")
            await _until(watch, lambda state: state is not None and state.closed)
            await a.store.delete("s")
            await _until(watch, lambda state: state is None)
            await _until(second, lambda state: state is None)

    @on_two
    async def test_readers_on_both_get_everything_once(self, a: Harness, b: Harness) -> None:
        await a.create("s")

        async def follow(gateway: Harness) -> bytes:
            received = bytearray()
            with await gateway.store.watch("s") as watch:
                while True:
                    state = watch.state
                    assert state is not None
                    while len(received) < state.tail:
                        chunk = watch.recent(len(received)) or await gateway.store.read(
                            state, len(received), 1 << 16
                        )
                        assert chunk.start == len(received)
                        received += chunk.payload
                    if state.closed and len(received) == state.tail:
                        return bytes(received)
                    assert await watch.changed(_LONG)

        readers = [asyncio.create_task(follow(gateway)) for gateway in (a, b, a, b)]
        writes = zip(range(100), cycle((a, b, b)), strict=False)
        await asyncio.gather(*(gateway.append("s", b"%03d;" % n * (n + 1)) for n, gateway in writes))
        await b.close("s")
        content = await a.everything("s")
        assert len(content) == sum(4 * (n + 1) for n in range(100))
        assert await asyncio.gather(*readers) == [content] * 4

    @on_two
    async def test_a_watch_of_a_stream_that_is_made_again(self, a: Harness, b: Harness) -> None:
        old = (await a.create("s", payload=b"old")).state
        with await b.store.watch("s") as watch:
            await a.store.delete("s")
            new = (await a.create("s", payload=b"newer")).state
            await _until(watch, lambda state: state is None or state.id != old.id)
            assert watch.recent(0) is None or watch.state is not None
        with await b.store.watch("s") as watch:
            assert watch.state == new
            await a.append("s", b"!")
            await _until(watch, _reaches(6))
        assert await b.everything("s") == b"newer!"

    # -- expiry

    def _needs_time(self) -> None:
        if not self.controls_time:
            pytest.skip("this store takes its time from elsewhere")

    @on_two
    async def test_a_window_is_one_for_all(self, a: Harness, b: Harness) -> None:
        self._needs_time()
        await a.create("s", ttl=100)
        for number, gateway in zip(range(8), cycle((a, b)), strict=False):
            a.clock.advance(80)
            await gateway.append("s", b"%d" % number)
        a.clock.advance(80)
        async with another(b) as c:
            await c.state("s")
            c.store.touch("s")
        a.clock.advance(80)
        assert await a.everything("s") == await b.everything("s") == b"01234567"
        a.clock.advance(_PAST)
        assert await a.store.get("s") is None
        assert await b.store.get("s") is None
        assert (await b.create("s", JSON)).new
        assert (await a.state("s")).tail == 0

    @on_two
    async def test_what_is_watched_on_one_expires_on_none(self, a: Harness, b: Harness) -> None:
        self._needs_time()
        await a.create("s", ttl=100, payload=b"x")
        with await a.store.watch("s") as watch:
            for _ in range(4):
                a.clock.advance(60)
                await _renewed(b)
                await b.state("s")
            assert watch.state is not None
        assert await b.everything("s") == b"x"

    @on_two
    async def test_an_expiry_against_a_creation(self, a: Harness, b: Harness) -> None:
        self._needs_time()
        for number in range(_ROUNDS):
            old = (await a.create("s", ttl=100, payload=b"%d" % number)).state
            assert await b.state("s") == old
            a.clock.advance(_PAST)
            made = await asyncio.gather(a.create("s", JSON), b.create("s", JSON), b.create("s", JSON))
            assert sorted(one.new for one in made) == [False, False, True]
            assert len({one.state.id for one in made} | {old.id}) == 2
            assert await b.everything("s") == b""
            await b.store.delete("s")

    @on_two
    async def test_what_one_creates_and_deletes_the_other_lists(self, one: Harness, other: Harness) -> None:
        async def listed(by: Harness, prefix: str = "") -> list[tuple[str, int]]:
            return [
                (state.path, state.tail) for state in (await by.store.list_streams(prefix, "", 10)).states
            ]

        assert await listed(other) == []
        await one.create("a", payload=b"1")
        await one.create("b/c")
        assert await listed(other) == [("a", 1), ("b/c", 0)]
        await one.append("a", b"23")
        await one.store.delete("b/c")
        assert await listed(other) == [("a", 3)]
        await other.create("b/d")
        assert await listed(one, "b/") == [("b/d", 0)]

    @on_two
    async def test_each_counts_what_it_stored_itself(self, one: Harness, other: Harness) -> None:
        await one.create("s")
        for number in range(12):  # some answers may get lost
            await one.produce("s", b"12345", ("p", 0, number))
        assert isinstance(one.store, Measured)
        assert isinstance(other.store, Measured)
        counted, others = await one.store.figures(), await other.store.figures()
        assert (counted.commits.appends, counted.commits.bytes, counted.connected) == (12, 60, True)
        assert (counted.queued_commands, counted.queued_bytes) == (0, 0)
        assert counted.sizes["bucket"] > 0
        assert others.commits.appends == 0


Reached = Callable[["StreamState | None"], bool]


async def _until(watch: Watch, reached: Reached) -> None:
    while not reached(watch.state):
        assert await watch.changed(_LONG), "it was not woken"


def _reaches(tail: int) -> Reached:
    return lambda state: state is not None and state.tail >= tail


async def _renewed(gateway: Harness) -> None:
    """Wait until a window of 100 seconds is known to have begun now: to a store that has never seen the stream."""
    for _ in range(200):
        async with another(gateway) as fresh:
            deadline = (await fresh.state("s")).deadline
        if deadline is not None and deadline > gateway.clock.now + 80:
            return
        await asyncio.sleep(0.05)
    pytest.fail("nobody renews a stream that is watched")
