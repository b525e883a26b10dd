"""The list of streams: in the order of paths, page by page, current."""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

from msgspec.structs import replace

from durable_streams.protocol.listing import describe
from durable_streams.protocol.rules import MILESTONE_RECORDS, MILESTONE_SECONDS
from durable_streams.stores.pace import Paced
from durable_streams.testing.contract.harness import Harness, StoreFactory, on_a_loop

__all__ = ["ListingContract"]

_APPENDS = MILESTONE_RECORDS + 40  # a store that writes few states has written one, and more came since


async def _listed(h: Harness, prefix: str = "", limit: int = 100) -> list[str]:
    """Return the paths of the whole list, read in pages of ``limit``."""
    paths: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await h.store.list_streams(prefix, after, limit)
        assert len(page.states) <= limit
        assert page.after is None or page.after > after, "each page goes on"
        paths += [state.path for state in page.states]
        after = page.after
    return paths


class ListingContract(StoreFactory):
    """`Store.list_streams`."""

    @on_a_loop
    async def test_a_store_without_streams_lists_none(self, h: Harness) -> None:
        page = await h.store.list_streams("", "", 10)
        assert (page.states, page.after) == ([], None)

    @on_a_loop
    async def test_streams_are_listed_in_the_order_of_their_bytes(self, h: Harness) -> None:
        paths = ["b", "a/b", "a", "a b", "B", "é", "z", "\uffee", "\U0001f600", "a/b/c", "%41", "'"]
        for path in paths:
            await h.create(path)
        expected = sorted(paths, key=str.encode)
        for limit in (1, 2, 3, 5, len(paths), len(paths) + 1):
            assert await _listed(h, limit=limit) == expected

    @on_a_loop
    async def test_a_prefix_is_text(self, h: Harness) -> None:
        for path in (
            "a",
            "a/",
            "a/b",
            "a/c",
            "a0",
            "ab",
            "b",
            "a/\U0010ffff",
            "\U0010ffff",
            "\ud7ff",
            "\ue000",
        ):
            await h.create(path)
        assert await _listed(h, "a/") == ["a/", "a/b", "a/c", "a/\U0010ffff"]
        assert await _listed(h, "a/", limit=1) == ["a/", "a/b", "a/c", "a/\U0010ffff"]
        assert await _listed(h, "a/\U0010ffff") == ["a/\U0010ffff"]
        assert await _listed(h, "\U0010ffff") == ["\U0010ffff"]
        assert await _listed(h, "\ud7ff") == ["\ud7ff"]
        assert await _listed(h, "c") == []
        assert await _listed(h, "%") == []
        page = await h.store.list_streams("a/", "a/b", 100)
        assert [state.path for state in page.states] == ["a/c", "a/\U0010ffff"]
        page = await h.store.list_streams("a/", "0", 100)
        assert len(page.states) == 4
        page = await h.store.list_streams("a/", "b", 100)
        assert (page.states, page.after) == ([], None)

    @on_a_loop
    async def test_a_listed_state_is_the_current_one(self, h: Harness) -> None:
        await h.create("s", "text/plain", payload=b"abc", ttl=1000)
        await h.append("s", b"de", "text/plain")
        await h.create("closed", closed=True)
        await h.fork("fork", "s", 2)
        page = await h.store.list_streams("", "", 100)
        assert page.states == [await h.state(path) for path in ("closed", "fork", "s")]
        closed, fork, source = map(describe, page.states)
        assert (closed.closed, closed.bytes, fork.forked_from, fork.bytes) == (True, 0, "s", 2)
        assert (source.content_type, source.bytes, source.ttl_seconds, source.forks) == (
            "text/plain",
            5,
            1000,
            1,
        )
        assert source.created is not None
        if self.controls_time:
            assert source.created == "2027-01-15T08:00:00.000Z"

    @on_a_loop
    async def test_appends_are_counted_and_the_last_one_has_a_time(self, h: Harness) -> None:
        await h.create("s")
        assert ((await h.state("s")).records, (await h.state("s")).appended) == (0, None)
        await h.create("with", payload=b"1")
        await h.fork("fork", "with")
        for count in range(1, _APPENDS + 1):
            await h.append("s", b"12")
            if count % 100 == 1:
                h.clock.advance(7)
        await h.append("s", b"", close=True)
        expected = {"s": _APPENDS, "with": 1, "fork": 0}
        known = {path: (await h.state(path)).appended for path in expected}
        assert known["fork"] is None
        for _ in range(2 if self.durable else 1):
            page = await h.store.list_streams("", "", 10)
            assert {state.path: state.records for state in page.states} == expected
            for state in page.states:
                loaded = await h.state(state.path)
                assert loaded.records == expected[state.path]
                last = known[state.path]
                assert (loaded.appended is None) is (last is None)
                assert last is None or 0 <= last - (loaded.appended or 0.0) < MILESTONE_SECONDS
            if self.durable:
                await h.restart()
        if isinstance(h.store, Paced):
            assert await h.store.records_per_second(await h.state("fork")) == 0.0

    @on_a_loop
    async def test_deleted_streams_are_not_listed(self, h: Harness) -> None:
        for path in ("a", "b", "c", "d"):
            await h.create(path)
        assert await _listed(h) == ["a", "b", "c", "d"]
        await h.fork("fork", "c")
        await h.store.delete("b")
        await h.store.delete("c")  # its data stay for the fork
        assert await _listed(h, limit=1) == ["a", "d", "fork"]
        await h.create("b", "text/plain")
        assert await _listed(h) == ["a", "b", "d", "fork"]
        await h.store.delete("fork")
        assert await _listed(h) == ["a", "b", "d"]

    @on_a_loop
    async def test_expired_streams_are_not_listed(self, h: Harness) -> None:
        if not self.controls_time:
            return
        await h.create("gone", ttl=100)
        await h.create("touched", ttl=100)
        await h.create("watched", ttl=100)
        await h.create("stays")
        h.clock.advance(90)
        await h.state("touched")
        h.store.touch("touched")
        await h.store.check()  # the touch is stored before it
        with await h.store.watch("watched"):
            h.clock.advance(25)
            assert await _listed(h) == ["stays", "touched", "watched"]

    @on_a_loop
    async def test_the_list_outlives_a_restart(self, h: Harness) -> None:
        if not self.durable:
            return
        for path in ("a", "b"):
            await h.create(path, payload=b"123")
        await h.append("a", b"45")
        await h.store.delete("b")
        before = await h.store.list_streams("", "", 10)
        await h.restart()
        after = await h.store.list_streams("", "", 10)
        assert [describe(replace(state, appended=None)) for state in after.states] == [
            describe(replace(state, appended=None)) for state in before.states
        ]
        assert [state.tail for state in before.states] == [5]
