"""Forks (protocol section 6): one offset space, chains, soft deletion and its release."""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

import asyncio
import contextlib

from durable_streams.protocol.commands import Create, ForkPoint, Rejection
from durable_streams.testing.contract.harness import BYTES, JSON, Harness, StoreFactory, on_a_loop, refused

__all__ = ["ForkContract"]


class ForkContract(StoreFactory):
    """A fork reads as its source up to a point, then on its own."""

    @on_a_loop
    async def test_a_fork_at_the_tail(self, h: Harness) -> None:
        await h.create("s", "text/plain", payload=b"abc")
        fork = (await h.fork("f", "s")).state
        assert (fork.tail, fork.content_type, fork.closed) == (3, "text/plain", False)
        await h.append("f", b"F", "text/plain")
        await h.append("s", b"S", "text/plain")
        assert (await h.everything("f"), await h.everything("s")) == (b"abcF", b"abcS")

    @on_a_loop
    async def test_a_fork_anywhere(self, h: Harness) -> None:
        await h.create("s")
        for part in (b"ab", b"cde", b"f"):
            await h.append("s", part)
        for position in range(7):
            name = f"f{position}"
            assert (await h.fork(name, "s", position)).state.tail == position
            assert await h.everything(name) == b"abcdef"[:position]
            await h.append(name, b"own")
            assert await h.everything(name) == b"abcdef"[:position] + b"own"
            assert await h.everything(name, limit=1) == b"abcdef"[:position] + b"own"
        assert await h.everything("s") == b"abcdef"

    @on_a_loop
    async def test_a_chain_of_forks(self, h: Harness) -> None:
        await h.create("s0", payload=b"0123")
        expected = b"0123"
        for number in range(1, 8):
            position = len(expected) - 1
            await h.fork(f"s{number}", f"s{number - 1}", position)
            own = b"%d" % number * 4
            await h.append(f"s{number}", own[:2])
            await h.append(f"s{number}", own[2:])
            expected = expected[:position] + own
            assert await h.everything(f"s{number}") == expected
            assert await h.everything(f"s{number}", limit=1) == expected

    @on_a_loop
    async def test_a_fork_point_inside_inherited_bytes(self, h: Harness) -> None:
        await h.create("a", payload=b"aaaa")
        await h.fork("b", "a", 3)
        await h.append("b", b"bbb")
        content = await h.everything("b")
        for position in range(7):
            await h.fork(f"c{position}", "b", position)
            await h.append(f"c{position}", b"c")
            assert await h.everything(f"c{position}") == content[:position] + b"c"
        await h.append("a", b"AAAA")
        assert await h.everything("c2") == b"aac"

    @on_a_loop
    async def test_a11_a_start_inside_an_append_of_a_lineage(self, h: Harness) -> None:
        await h.create("a", payload=b"aaaa")
        await h.append("a", b"AAAA")
        await h.fork("b", "a", 6)  # inside the second append
        await h.append("b", b"bbb")
        await h.append("b", b"BBB")
        await h.fork("c", "b", 8)  # inside the fork's own first one
        await h.append("c", b"cc")
        content, state = b"aaaaAAbbcc", await h.state("c")
        for start in range(10):
            begin = max(bound for bound in (0, 4, 6, 8) if bound <= start)
            chunk = await h.store.read(state, start, 100)
            assert (chunk.start, chunk.payload) == (begin, content[begin:])
        assert await h.everything("c", limit=1) == content

    @on_a_loop
    async def test_forks_of_messages(self, h: Harness) -> None:
        await h.create("s", JSON, payload=b"1,22,333,")
        await h.fork("f", "s", 5)
        await h.append("f", b"4,", JSON)
        assert await h.everything("f") == b"1,22,4,"
        state = await h.state("f")
        assert (await h.store.read(state, 5, 100)).payload == b"4,"

    @on_a_loop
    async def test_fork_again_is_idempotent(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        assert (await h.fork("f", "s", 2)).new
        assert not (await h.fork("f", "s", 2)).new
        await refused(409, h.fork("f", "s", 1), "CONFLICT_EXISTS")
        await refused(409, h.create("f"), "CONFLICT_EXISTS")
        await h.create("plain")
        await refused(409, h.fork("plain", "s", 2), "CONFLICT_EXISTS")
        # A fork that was refused must not hold the source.
        await h.store.delete("f")
        await h.store.delete("s")
        assert await h.store.get("s") is None

    @on_a_loop
    async def test_sources_that_cannot_be_forked(self, h: Harness) -> None:
        await refused(404, h.store.create(Create("f", None, fork=ForkPoint("s", 1, 0))))
        state = (await h.create("s", "text/plain", payload=b"abc")).state
        await refused(409, h.fork("f", "s", content_type=JSON), "CONFLICT_CONTENT_TYPE")
        await h.store.delete("s")
        await h.create("s", "text/plain")
        point = ForkPoint("s", state.id, 3)  # of a stream that was deleted
        await refused(404, h.store.create(Create("f", None, fork=point)))
        assert await h.store.get("f") is None

    @on_a_loop
    async def test_a_closed_source(self, h: Harness) -> None:
        await h.create("s", payload=b"abc", closed=True)
        assert not (await h.fork("f", "s")).state.closed
        await h.append("f", b"d")
        assert await h.everything("f") == b"abcd"

    @on_a_loop
    async def test_a_fork_with_first_data_and_closed(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        state = (await h.fork("f", "s", 1, payload=b"XY", closed=True)).state
        assert (state.tail, state.closed) == (3, True)
        assert await h.everything("f") == b"aXY"

    @on_a_loop
    async def test_a_source_with_forks_is_deleted_softly(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        await h.fork("f", "s")
        await h.store.delete("s")
        assert (await h.state("s")).deleted
        await refused(410, h.append("s", b"x"))
        await refused(410, h.close("s"))
        await refused(410, h.store.delete("s"))
        await refused(409, h.create("s", BYTES), "CONFLICT_EXISTS")
        await refused(409, h.fork("g", "s"), "CONFLICT_DELETED")
        await h.append("f", b"d")
        assert await h.everything("f") == b"abcd"

    @on_a_loop
    async def test_the_last_fork_frees_its_source(self, h: Harness) -> None:
        source = (await h.create("s", payload=b"abc")).state
        await h.fork("f", "s")
        await h.fork("g", "s")
        await h.store.delete("s")
        await h.store.delete("f")
        assert (await h.state("s")).deleted
        assert await h.everything("g") == b"abc"
        await h.store.delete("g")
        assert await h.store.get("s") is None
        with contextlib.suppress(Rejection):  # the bytes may be removed a little later; they never change
            assert (await h.store.read(source, 0, 100)).payload == b"abc"
        assert (await h.create("s")).new

    @on_a_loop
    async def test_release_goes_up_the_whole_chain(self, h: Harness) -> None:
        await h.create("a", payload=b"a")
        for below, above in (("b", "a"), ("c", "b"), ("d", "c")):
            await h.fork(below, above)
            await h.append(below, below.encode())
        for name in ("a", "b", "c"):
            await h.store.delete(name)
            assert (await h.state(name)).deleted
        assert await h.everything("d") == b"abcd"
        await h.store.delete("d")
        for name in ("a", "b", "c", "d"):
            assert await h.store.get(name) is None
            assert (await h.create(name)).new

    @on_a_loop
    async def test_release_stops_at_what_still_lives(self, h: Harness) -> None:
        await h.create("a", payload=b"a")
        await h.fork("b", "a")
        await h.fork("c", "b")
        await h.store.delete("b")
        await h.store.delete("c")
        assert await h.store.get("b") is None
        assert not (await h.state("a")).deleted
        await h.append("a", b"A")
        await h.store.delete("a")
        assert await h.store.get("a") is None

    @on_a_loop
    async def test_deletions_at_once_free_everything(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        names = [f"f{number}" for number in range(10)]
        await asyncio.gather(*(h.fork(name, "s") for name in names))
        await asyncio.gather(h.store.delete("s"), *(h.store.delete(name) for name in names))
        for name in ("s", *names):
            assert await h.store.get(name) is None

    @on_a_loop
    async def test_a_path_that_becomes_a_fork_while_it_is_deleted(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        await h.create("f")
        point = ForkPoint("s", (await h.state("s")).id, 3)
        await asyncio.gather(
            h.store.delete("f"), h.store.create(Create("f", None, fork=point)), h.store.delete("f")
        )
        assert await h.store.get("f") is None
        await h.store.delete("s")
        assert await h.store.get("s") is None, "a fork that is no more holds its source"

    @on_a_loop
    async def test_forks_and_deletion_of_the_source_at_once(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        point = ForkPoint("s", (await h.state("s")).id, 3)
        outcomes = await asyncio.gather(
            *(h.store.create(Create(f"f{number}", None, fork=point)) for number in range(3)),
            h.store.delete("s"),
            *(h.store.create(Create(f"g{number}", None, fork=point)) for number in range(3)),
            return_exceptions=True,
        )
        made = [one.state.path for one in outcomes if one is not None and not isinstance(one, BaseException)]
        for path in made:
            assert await h.everything(path) == b"abc"
            await h.store.delete(path)
        assert await h.store.get("s") is None
