"""Expiry (protocol section 3): a sliding window or a fixed end, never during a live read.

A stream never expires early; late by what ``rules.touch_slack`` allows, where a store has forgotten the last touch.
"""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

import asyncio

import pytest

from durable_streams.testing.contract.harness import BYTES, Harness, StoreFactory, on_a_loop, refused

__all__ = ["ExpiryContract"]

_AT = "2027-01-15T08:10:00Z"
_PAST = 115  # seconds: a window of 100 and its slack


class ExpiryContract(StoreFactory):
    """Needs a store that takes its time from the clock of ``make_store``."""

    def _needs_time(self) -> None:
        if not self.controls_time:
            pytest.skip("this store takes its time from elsewhere")

    @on_a_loop
    async def test_a_stream_expires(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", ttl=100, payload=b"old")
        h.clock.advance(99)
        assert await h.store.get("s") is not None
        h.clock.advance(_PAST - 99)
        assert await h.store.get("s") is None
        await refused(404, h.append("s", b"x"))
        await refused(404, h.close("s"))
        await refused(404, h.store.delete("s"))
        assert await h.store.get("s") is None

    @on_a_loop
    async def test_an_expired_path_can_be_created_again(self, h: Harness) -> None:
        self._needs_time()
        old = (await h.create("s", ttl=100, payload=b"old")).state
        await h.produce("s", b"!", ("p", 5, 0))
        h.clock.advance(_PAST)
        again = await h.create("s", "text/plain")
        assert again.new
        assert again.state.id != old.id
        assert again.state.tail == 0
        await refused(409, h.produce("s", b"x", ("p", 5, 1), content_type="text/plain"), "SEQUENCE_GAP")
        h.clock.advance(1000)
        assert await h.store.get("s") is not None

    @on_a_loop
    async def test_writes_restart_the_window(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", ttl=100)
        for number in range(10):
            h.clock.advance(80)
            await h.append("s", b"%d" % number)
        h.clock.advance(80)
        assert not (await h.create("s", ttl=100)).new
        h.clock.advance(80)
        await h.close("s")
        h.clock.advance(80)
        await h.close("s")
        h.clock.advance(99)
        assert await h.everything("s") == b"0123456789"
        h.clock.advance(_PAST - 99)
        assert await h.store.get("s") is None

    @on_a_loop
    async def test_reads_restart_the_window(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", ttl=100)
        for _ in range(10):
            h.clock.advance(80)
            assert await h.store.get("s") is not None
            h.store.touch("s")
        h.clock.advance(_PAST)
        assert await h.store.get("s") is None

    @on_a_loop
    async def test_a_mere_look_does_not_restart_the_window(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", ttl=100)
        for _ in range(10):
            h.clock.advance(9.9)
            assert await h.store.get("s") is not None
        h.clock.advance(_PAST - 99)
        assert await h.store.get("s") is None

    @on_a_loop
    async def test_a_refused_write_does_not_revive(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", ttl=100)
        h.clock.advance(_PAST)
        await refused(404, h.append("s", b"x"))
        h.store.touch("s")
        await asyncio.sleep(0)
        assert (await h.create("s", "text/plain")).new

    @on_a_loop
    async def test_a_fixed_end(self, h: Harness) -> None:
        self._needs_time()
        end = h.clock.now + 100
        await h.create("s", expires_at=_AT, deadline=end)
        assert not (await h.create("s", expires_at=_AT, deadline=end)).new
        h.clock.advance(90)
        await h.append("s", b"x")
        h.store.touch("s")
        h.clock.advance(11)
        assert await h.store.get("s") is None
        await refused(404, h.append("s", b"y"))

    @on_a_loop
    async def test_a_stream_that_somebody_watches_does_not_expire(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", ttl=100)
        with await h.store.watch("s") as watch:
            h.clock.advance(5000)
            assert await h.store.get("s") is not None
            await h.append("s", b"x")
            h.clock.advance(5000)
            assert watch.state is not None
            assert not (await h.create("s", ttl=100)).new
            assert await h.everything("s") == b"x"
        h.clock.advance(_PAST)
        assert await h.store.get("s") is None

    @on_a_loop
    async def test_a_fork_expires_by_its_source_or_its_own(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", ttl=100, payload=b"abc")
        inherited = (await h.fork("f", "s")).state
        own = (await h.fork("g", "s", ttl=1000)).state
        assert (inherited.ttl, own.ttl) == (100, 1000)
        h.clock.advance(_PAST)
        assert await h.store.get("f") is None
        assert await h.everything("g") == b"abc"

    @on_a_loop
    async def test_an_expired_source_is_kept_for_its_forks(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", BYTES, ttl=100, payload=b"abc")
        await h.fork("f", "s", ttl=10_000)
        h.clock.advance(_PAST)
        await refused(409, h.create("s"), "CONFLICT_EXISTS")
        assert (await h.state("s")).deleted
        await h.append("f", b"d")
        assert await h.everything("f") == b"abcd"
        await h.store.delete("f")
        assert await h.store.get("s") is None
        assert (await h.create("s")).new

    @on_a_loop
    async def test_an_expired_fork_releases_its_source(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", payload=b"abc")
        await h.fork("f", "s", ttl=100)
        await h.store.delete("s")
        h.clock.advance(_PAST)
        assert (await h.create("f")).new
        assert await h.store.get("s") is None

    @on_a_loop
    async def test_expired_streams_are_swept_in_time(self, h: Harness) -> None:
        self._needs_time()
        await h.create("s", payload=b"abc")
        await h.fork("f", "s", ttl=100)
        await h.store.delete("s")
        h.clock.advance(1000)
        for _ in range(200):  # at least ten seconds; nothing asks for the fork in that time
            if await h.store.get("s") is None:
                return
            await asyncio.sleep(0.05)
        pytest.fail("a fork that expired still holds its source")

    @on_a_loop
    async def test_expiry_survives_a_restart(self, h: Harness) -> None:
        self._needs_time()
        if not self.durable:
            pytest.skip("this store is not durable")
        await h.create("short", ttl=100)
        await h.create("long", ttl=10_000)
        h.clock.advance(90)
        await h.append("short", b"x")
        await h.restart()
        h.clock.advance(90)
        assert await h.store.get("short") is not None, "a restart must not expire a stream early"
        h.clock.advance(200)
        assert await h.store.get("short") is None
        assert await h.store.get("long") is not None
        await h.restart()
        assert await h.store.get("short") is None

    @on_a_loop
    async def test_the_end_of_a_live_read_restarts_the_window_for_good(self, h: Harness) -> None:
        self._needs_time()
        if not self.durable:
            pytest.skip("this store is not durable")
        await h.create("s", ttl=100)
        with await h.store.watch("s"):
            h.clock.advance(5000)
        await h.restart()
        h.clock.advance(90)
        assert await h.store.get("s") is not None, "it expired early"
        h.clock.advance(_PAST)
        assert await h.store.get("s") is None
