"""Restarts keep everything; a failed commit leaves nothing behind."""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

import asyncio

import pytest

from durable_streams.protocol.commands import Rejection
from durable_streams.stores.base import StoreError
from durable_streams.testing.contract.harness import JSON, Harness, StoreFactory, on_a_loop, refused

__all__ = ["DurabilityContract"]

_SHORT = 0.05


class DurabilityContract(StoreFactory):
    """Restarts for stores that are durable, failures for those that can be made to fail."""

    def _needs_durability(self) -> None:
        if not self.durable:
            pytest.skip("this store is not durable")

    @on_a_loop
    async def test_everything_survives_a_restart(self, h: Harness) -> None:
        self._needs_durability()
        await h.create(
            "s", "text/plain; charset=utf-8", payload=b"a", expires_at="x", deadline=h.clock.now + 1e9
        )
        await h.append("s", b"b" * 100_000, "text/plain", seq="7")
        await h.create("closed", JSON, payload=b'{"a":1},', closed=True)
        await h.create("gone")
        await h.store.delete("gone")
        before = [await h.state("s"), await h.state("closed")]
        await h.restart()
        assert [await h.state("s"), await h.state("closed")] == before
        assert await h.store.get("gone") is None
        assert await h.everything("s") == b"a" + b"b" * 100_000
        assert await h.everything("closed") == b'{"a":1},'
        await refused(409, h.append("s", b"x", "text/plain", seq="7"), "CONFLICT_SEQ")
        await refused(409, h.append("closed", b"1,", JSON), "STREAM_CLOSED")
        assert (await h.append("s", b"c", "text/plain", seq="8")).state.tail == 100_002

    @on_a_loop
    async def test_producers_survive_a_restart(self, h: Harness) -> None:
        self._needs_durability()
        await h.create("s")
        for seq in range(3):
            await h.produce("s", b"%d" % seq, ("p", 4, seq))
        await h.produce("s", b"q", ("q", 0, 0), close=True)
        await h.restart()
        assert (await h.produce("s", b"2", ("p", 4, 2))).duplicate
        assert (await h.produce("s", b"q", ("q", 0, 0), close=True)).duplicate
        await refused(409, h.produce("s", b"3", ("p", 4, 3)), "STREAM_CLOSED")
        await h.create("t")
        await h.produce("t", b"0", ("p", 4, 0))
        await h.restart()
        await refused(403, h.produce("t", b"1", ("p", 3, 0)), "STALE_EPOCH")
        await refused(409, h.produce("t", b"1", ("p", 4, 2)), "SEQUENCE_GAP")
        assert not (await h.produce("t", b"1", ("p", 4, 1))).duplicate
        assert (await h.everything("s"), await h.everything("t")) == (b"012q", b"01")

    @on_a_loop
    async def test_forks_survive_a_restart(self, h: Harness) -> None:
        self._needs_durability()
        await h.create("a", payload=b"aaa")
        await h.fork("b", "a", 2)
        await h.append("b", b"bb")
        await h.fork("c", "b", 3)
        await h.store.delete("a")
        await h.store.delete("b")
        await h.restart()
        assert await h.everything("c") == b"aab"
        await refused(410, h.append("a", b"x"))
        await h.append("c", b"c")
        await h.restart()
        assert await h.everything("c") == b"aabc"
        await h.store.delete("c")
        await h.restart()
        for name in ("a", "b", "c"):
            assert await h.store.get(name) is None

    @on_a_loop
    async def test_identities_are_never_used_twice(self, h: Harness) -> None:
        self._needs_durability()
        seen = set()
        for _ in range(4):
            state = (await h.create("s")).state
            assert state.id not in seen
            seen.add(state.id)
            await h.store.delete("s")
            await h.restart()

    @on_a_loop
    async def test_close_finishes_what_was_accepted(self, h: Harness) -> None:
        self._needs_durability()
        await h.create("s")
        appends = [asyncio.ensure_future(h.append("s", b"%03d" % number)) for number in range(100)]
        await asyncio.sleep(0)
        await h.restart()
        done = [
            one
            for one in await asyncio.gather(*appends, return_exceptions=True)
            if not isinstance(one, BaseException)
        ]
        content = await h.everything("s")
        assert len(content) >= 3 * len(done)
        assert content == b"".join(b"%03d" % number for number in range(len(content) // 3))

    @on_a_loop
    async def test_a_failed_commit_leaves_nothing(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        await h.produce("s", b"d", ("p", 0, 0), seq="1")
        await h.create("source", payload=b"xyz")
        with await h.store.watch("s") as watch:
            with self.failing_commits(h.store):
                outcomes = await asyncio.gather(
                    h.produce("s", b"e" * 50_000, ("p", 0, 1), seq="2"),
                    h.append("s", b"f" * 50_000, close=True),
                    h.store.delete("s"),
                    h.create("new", payload=b"x" * 50_000),
                    h.fork("f", "source", payload=b"x" * 50_000),
                    h.store.check(),
                    return_exceptions=True,
                )
                assert all(isinstance(one, StoreError | Rejection) for one in outcomes), outcomes
                assert any(isinstance(one, StoreError) for one in outcomes)
                assert await h.everything("s") == b"abcd"
                assert await h.store.get("new") is None
            assert not await watch.changed(_SHORT), "a commit that failed woke a reader"
        state = await h.state("s")
        assert (state.tail, state.closed, state.last_seq, state.deleted) == (4, False, "1", False)
        assert not (await h.produce("s", b"e", ("p", 0, 1), seq="2")).duplicate
        assert await h.everything("s") == b"abcde"
        await h.store.delete("source")
        assert await h.store.get("source") is None, "a fork that was not made holds its source"
        assert (await h.create("new")).new
        await h.store.check()
        if self.durable:
            await h.restart()
            assert await h.everything("s") == b"abcde"
            assert await h.everything("new") == b""

    @on_a_loop
    async def test_a_failed_expiry_keeps_serving_404(self, h: Harness) -> None:
        if not self.controls_time:
            pytest.skip("this store takes its time from elsewhere")
        await h.create("s", ttl=10, payload=b"abc")
        h.clock.advance(11)
        with self.failing_commits(h.store):
            assert await h.store.get("s") is None
            with pytest.raises(StoreError):
                await h.create("s", payload=b"y" * 50_000)
            assert await h.store.get("s") is None
        assert (await h.create("s")).new
