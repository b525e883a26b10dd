"""Read ranges and live views (protocol section 5)."""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

import asyncio
import contextlib

from durable_streams.protocol.commands import Rejection
from durable_streams.stores.base import Watch
from durable_streams.testing.contract.harness import JSON, Harness, StoreFactory, on_a_loop, refused

__all__ = ["ReadContract"]

_LONG = 30.0  # seconds: a wake-up that does not come
_SHORT = 0.05


class ReadContract(StoreFactory):
    """Whole appends, committed data, wake-ups."""

    @on_a_loop
    async def test_an_empty_stream(self, h: Harness) -> None:
        state = (await h.create("s")).state
        chunk = await h.store.read(state, 0, 100)
        assert (chunk.start, chunk.end, chunk.payload) == (0, 0, b"")

    @on_a_loop
    async def test_a_read_holds_whole_appends_and_at_least_one(self, h: Harness) -> None:
        await h.create("s")
        sizes = [1, 5, 100, 2, 30_000, 7]
        ends = [(await h.append("s", b"x" * size)).state.tail for size in sizes]
        state = await h.state("s")
        for start in (0, *ends[:-1]):
            for limit in (1, 2, 6, 7, 106, 107, 1000, 40_000):
                chunk = await h.store.read(state, start, limit)
                assert chunk.start == start
                assert chunk.end in ends
                assert chunk.end > start
                # About ``limit``: the append that reaches it is the last.
                assert chunk.end - start < limit + max(sizes)
                assert start + limit >= state.tail or chunk.end - start >= min(limit, 1)

    @on_a_loop
    async def test_a_read_with_room_for_all_brings_all(self, h: Harness) -> None:
        await h.create("s")
        for number in range(50):
            await h.append("s", b"%02d" % number)
        state = await h.state("s")
        chunk = await h.store.read(state, 0, 1 << 20)
        assert chunk.payload == b"".join(b"%02d" % number for number in range(50))
        chunk = await h.store.read(state, 40, 1 << 20)
        assert (chunk.start, chunk.end) == (40, 100)

    @on_a_loop
    async def test_the_tail(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        state = await h.state("s")
        chunk = await h.store.read(state, 3, 100)
        assert (chunk.start, chunk.end, chunk.payload) == (3, 3, b"")

    @on_a_loop
    async def test_a_read_ends_at_the_state_it_was_given(self, h: Harness) -> None:
        await h.create("s", payload=b"abc")
        before = await h.state("s")
        await h.append("s", b"def")
        assert (await h.store.read(before, 0, 100)).payload == b"abc"
        assert (await h.store.read(before, 3, 100)).payload == b""

    @on_a_loop
    async def test_a11_a_start_inside_an_append_reads_from_where_that_begins(self, h: Harness) -> None:
        for content_type in ("application/octet-stream", "text/plain", JSON):
            path = f"s/{content_type}"
            await h.create(path, content_type)
            payloads = (b"1,", b"[2],[22],", b"3333,", b"4,")
            bounds = [0, *[(await h.append(path, one, content_type)).state.tail for one in payloads]]
            content, state = await h.everything(path), await h.state(path)
            for start in range(state.tail):
                begin = max(bound for bound in bounds if bound <= start)
                chunk = await h.store.read(state, start, 100)
                assert (chunk.start, chunk.payload) == (begin, content[begin:])
                chunk = await h.store.read(state, start, 1)
                end = min(bound for bound in bounds if bound > start)
                assert (chunk.start, chunk.end, chunk.payload) == (begin, end, content[begin:end])

    @on_a_loop
    async def test_a11_a_start_inside_a_large_append(self, h: Harness) -> None:
        await h.create("s")
        large = bytes(range(251)) * 20_000  # more than one message of NATS
        await h.append("s", b"before")
        await h.append("s", large)
        await h.append("s", b"behind")
        state = await h.state("s")
        for start in (6, 7, 6 + len(large) // 2, 5 + len(large)):
            chunk = await h.store.read(state, start, 1)
            assert (chunk.start, chunk.end) == (6, 6 + len(large))
            assert chunk.payload == large

    @on_a_loop
    async def test_readers_during_appends_see_whole_appends_only(self, h: Harness) -> None:
        await h.create("s")
        done = asyncio.Event()

        async def write() -> None:
            for number in range(60):
                await asyncio.gather(*(h.append("s", b"%04d" % number * 25) for _ in range(5)))
            done.set()

        async def follow() -> bytes:
            seen = b""
            while True:
                finished = done.is_set()
                state = await h.state("s")
                assert state.tail % 100 == 0
                while len(seen) < state.tail:
                    chunk = await h.store.read(state, len(seen), 1000)
                    assert chunk.start == len(seen)
                    assert chunk.end % 100 == 0
                    seen += chunk.payload
                if finished:
                    return seen
                await asyncio.sleep(0)

        _, *seen = await asyncio.gather(write(), *(follow() for _ in range(4)))
        content = await h.everything("s")
        assert len(content) == 300 * 100
        assert all(one == content for one in seen)
        assert all(len(set(content[at : at + 100 : 4])) == 1 for at in range(0, len(content), 100))

    # -- live views

    @on_a_loop
    async def test_a_watch_shows_committed_state(self, h: Harness) -> None:
        with await h.store.watch("s") as watch:
            seen = [watch.state]
            for command in (h.create("s", payload=b"abc"), h.append("s", b"d"), h.store.delete("s")):
                await command
                seen.append(watch.state)
                assert watch.state == await h.store.get("s")
        assert [state and state.tail for state in seen] == [None, 3, 4, None]

    @on_a_loop
    async def test_every_commit_wakes(self, h: Harness) -> None:
        await h.create("s")
        with await h.store.watch("s") as watch:
            for command in (h.append("s", b"x"), h.close("s"), h.store.delete("s"), h.create("s")):
                waiting = asyncio.ensure_future(watch.changed(_LONG))
                await asyncio.sleep(0)
                assert not waiting.done()
                await command
                assert await waiting
            assert not await watch.changed(_SHORT)

    @on_a_loop
    async def test_a_commit_between_two_waits_is_not_missed(self, h: Harness) -> None:
        await h.create("s")
        with await h.store.watch("s") as watch:
            await h.append("s", b"x")
            assert await watch.changed(_LONG)
            assert not await watch.changed(_SHORT)
            assert not await watch.changed(_SHORT)
            await h.append("s", b"y")
            assert await watch.changed(_LONG)

    @on_a_loop
    async def test_other_streams_and_refusals_do_not_wake(self, h: Harness) -> None:
        await h.create("s")
        await h.create("t")
        with await h.store.watch("s") as watch:
            await h.append("t", b"x")
            await refused(409, h.append("s", b"x", JSON))
            assert not await watch.changed(_SHORT)

    @on_a_loop
    async def test_a_watch_can_be_woken_by_hand(self, h: Harness) -> None:
        await h.create("s")
        with await h.store.watch("s") as watch, await h.store.watch("s") as other:
            waiting = asyncio.ensure_future(watch.changed(_LONG))
            await asyncio.sleep(0)
            watch.wake()
            watch.wake()
            assert await waiting
            watch.wake()
            assert await watch.changed(_LONG)
            assert not await other.changed(_SHORT)

    @on_a_loop
    async def test_a_wait_can_be_cancelled(self, h: Harness) -> None:
        await h.create("s")
        with await h.store.watch("s") as watch:
            waiting = asyncio.ensure_future(watch.changed(_LONG))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await h.append("s", b"x")
            assert await watch.changed(_LONG)

    @on_a_loop
    async def test_recent_is_what_the_store_would_read(self, h: Harness) -> None:
        await h.create("s", payload=b"before")
        with await h.store.watch("s") as watch:
            ends = [6, *[(await h.append("s", b"x" * size)).state.tail for size in (1, 2, 3, 50_000, 4)]]
            state = await h.state("s")
            for position in (0, 3, *ends, 8, 100):
                chunk = watch.recent(position)
                if chunk is not None and chunk.payload:
                    assert chunk.start == position
                    assert chunk.end == state.tail
                    assert chunk.payload == (await h.store.read(state, position, 1 << 20)).payload

    @on_a_loop
    async def test_recent_never_begins_inside_an_append_of_messages(self, h: Harness) -> None:
        await h.create("s", JSON)
        with await h.store.watch("s") as watch:
            await h.append("s", b"[1],[22],", JSON)
            await h.append("s", b"[3],", JSON)
            for position in (1, 4, 5, 10):
                assert watch.recent(position) is None

    @on_a_loop
    async def test_recent_is_never_an_earlier_stream_of_the_path(self, h: Harness) -> None:
        await h.create("s")
        with await h.store.watch("s") as watch:
            await asyncio.gather(
                h.append("s", b"old"), h.store.delete("s"), h.create("s"), h.append("s", b"new data")
            )
            await self._agrees(h, watch)
            await h.append("s", b"more")
            await self._agrees(h, watch)

    async def _agrees(self, h: Harness, watch: Watch) -> None:
        state = await h.state("s")
        for position in range(state.tail):
            chunk = watch.recent(position)
            if chunk is not None:
                assert chunk.payload == (await h.store.read(state, position, 1000)).payload

    @on_a_loop
    async def test_recent_is_bounded(self, h: Harness) -> None:
        await h.create("s")
        with await h.store.watch("s") as watch:
            for _ in range(40):
                await h.append("s", b"x" * 200_000)
            assert watch.recent(0) is None
            assert watch.recent(200_000 * 39) is not None or watch.recent(200_000 * 40) is None

    @on_a_loop
    async def test_g1_recent_is_bounded_in_all_streams_together(self, h: Harness) -> None:
        paths = [f"s{number}" for number in range(60)]
        with contextlib.ExitStack() as stack:
            watches = {}
            for path in paths:
                await h.create(path)
                watches[path] = stack.enter_context(await h.store.watch(path))
            for path in paths:
                await h.append(path, b"x" * 1_000_000)
            kept = [path for path in paths if watches[path].recent(0) is not None]
            assert len(kept) <= 32
            for path in paths:
                assert (await h.store.read(await h.state(path), 0, 1)).end == 1_000_000

    @on_a_loop
    async def test_a_piece_is_cut_anywhere(self, h: Harness) -> None:
        await h.create("s")
        for size in (1, 5, 100, 2, 30_000, 7):
            await h.append("s", bytes(at % 251 for at in range(size)))
        state = await h.state("s")
        whole = (await h.store.read(state, 0, 1 << 20)).payload
        for start in (0, 1, 2, 5, 6, 50, 106, 108, 109, 20_000, state.tail - 8, state.tail - 1, state.tail):
            for limit in (1, 2, 6, 100, 1000, 29_999, 1 << 20):
                piece = await h.store.read_piece(state, start, limit)
                assert (piece.start, piece.end) == (start, start + len(piece.payload))
                assert piece.payload == whole[start : piece.end]
                assert min(1, state.tail - start) <= len(piece.payload) <= limit

    @on_a_loop
    async def test_an_aligned_piece_begins_with_its_append(self, h: Harness) -> None:
        source = (await h.create("s", JSON, payload=b"[1],[22],")).state
        await h.append("s", b"333,", JSON)
        state = await h.state("s")
        for start in range(state.tail):
            piece = await h.store.read_piece(state, start, 1 << 20, aligned=True)
            assert piece.start == (0 if start < source.tail else source.tail)
            assert piece.payload == b"[1],[22],333,"[piece.start : piece.end]
            first = await h.store.read_piece(state, start, 2, aligned=True)
            assert (first.start, first.payload) == (piece.start, piece.payload[:2])

    @on_a_loop
    async def test_boundaries(self, h: Harness) -> None:
        await h.create("s")
        ends = [(await h.append("s", b"x" * size)).state.tail for size in (3, 1, 5)]
        state = await h.state("s")
        bounds = [0, *ends]
        for position in range(state.tail + 1):
            assert await h.store.boundary(state, position) == min(at for at in bounds if at >= position)

    @on_a_loop
    async def test_many_watches_come_and_go(self, h: Harness) -> None:
        await h.create("s")
        done = asyncio.Event()

        async def watch() -> None:
            while not done.is_set():
                with await h.store.watch("s") as view:
                    await view.changed(_SHORT)

        watching = [asyncio.ensure_future(watch()) for _ in range(20)]
        for _ in range(30):
            await h.append("s", b"x")
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*watching)
        assert (await h.state("s")).tail == 30

    @on_a_loop
    async def test_a_reader_of_a_deleted_stream_gets_no_other_bytes(self, h: Harness) -> None:
        await h.create("s")
        for _ in range(50):
            await h.append("s", b"old.")
        state = await h.state("s")
        await h.store.delete("s")
        await h.create("s", payload=b"new!" * 50)
        with contextlib.suppress(Rejection):
            assert (await h.store.read(state, 0, 1000)).payload == b"old." * 50
