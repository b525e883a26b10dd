"""Create, append, close, delete (protocol sections 3 and 4)."""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

import asyncio
import contextlib

from durable_streams.protocol import headers as names
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.offsets import format_offset
from durable_streams.testing.contract.harness import BYTES, JSON, Harness, StoreFactory, on_a_loop, refused

__all__ = ["WriteContract"]


class WriteContract(StoreFactory):
    """Streams are created, grow, close and are deleted."""

    @on_a_loop
    async def test_a_path_without_a_stream(self, h: Harness) -> None:
        assert await h.store.get("nothing") is None
        await refused(404, h.append("nothing", b"x"))
        await refused(404, h.close("nothing"))
        await refused(404, h.store.delete("nothing"))

    @on_a_loop
    async def test_create_is_idempotent(self, h: Harness) -> None:
        first = await h.create("s", "text/plain; charset=utf-8", ttl=100)
        again = await h.create("s", "TEXT/Plain", ttl=100)
        assert (first.new, again.new) == (True, False)
        assert again.state == first.state == await h.state("s")
        assert first.state.content_type == "text/plain; charset=utf-8"

    @on_a_loop
    async def test_create_with_another_configuration_is_refused(self, h: Harness) -> None:
        await h.create("s", "text/plain", ttl=100)
        for content_type, options in (
            ("text/html", {"ttl": 100}),
            ("text/plain", {}),
            ("text/plain", {"ttl": 101}),
            ("text/plain", {"ttl": 100, "closed": True}),
            ("text/plain", {"expires_at": "2090-01-01T00:00:00Z", "deadline": 3_786_912_000.0}),
        ):
            await refused(409, h.create("s", content_type, **options), "CONFLICT_EXISTS")
        assert (await h.state("s")).ttl == 100

    @on_a_loop
    async def test_create_again_keeps_the_data(self, h: Harness) -> None:
        await h.create("s", payload=b"first")
        await h.append("s", b"second")
        again = await h.create("s", payload=b"other")
        assert not again.new
        assert await h.everything("s") == b"firstsecond"

    @on_a_loop
    async def test_create_with_data_and_closed(self, h: Harness) -> None:
        created = await h.create("s", payload=b"whole", closed=True)
        assert (created.state.tail, created.state.closed) == (5, True)
        assert await h.everything("s") == b"whole"
        await refused(409, h.append("s", b"more"), "STREAM_CLOSED")
        assert not (await h.create("s", closed=True)).new
        await refused(409, h.create("s"), "CONFLICT_EXISTS")

    @on_a_loop
    async def test_the_default_content_type(self, h: Harness) -> None:
        assert (await h.create("s", None)).state.content_type == BYTES
        assert not (await h.create("s", BYTES)).new

    @on_a_loop
    async def test_paths_are_told_apart(self, h: Harness) -> None:
        paths = ["a", "A", "a/b", "a//b", "a b", "ä", "日本", "a%2Fb", "'; --", "a\u00a0", "x" * 1024]
        for number, path in enumerate(paths):
            assert (await h.create(path, payload=b"%d" % number)).new, path
        for number, path in enumerate(paths):
            assert await h.everything(path) == b"%d" % number
        assert len({(await h.state(path)).id for path in paths}) == len(paths)

    @on_a_loop
    async def test_appends_grow_the_tail_by_what_they_bring(self, h: Harness) -> None:
        await h.create("s")
        tails = [(await h.append("s", b"x" * size)).state.tail for size in (1, 10, 100)]
        assert tails == [1, 11, 111]
        assert (await h.state("s")).tail == 111
        offsets = [format_offset(tail) for tail in tails]
        assert offsets == sorted(set(offsets))

    @on_a_loop
    async def test_every_byte_comes_back(self, h: Harness) -> None:
        every = bytes(range(256))
        await h.create("s", payload=b"\x00")
        for payload in (every, b"\x00" * 3, b"\xff\xfe", every[::-1], b"\r\n", b"'\"\\", every * 200):
            await h.append("s", payload)
        expected = (
            b"\x00" + every + b"\x00" * 3 + b"\xff\xfe" + every[::-1] + b"\r\n" + b"'\"\\" + every * 200
        )
        assert await h.everything("s") == expected
        assert await h.everything("s", limit=1) == expected

    @on_a_loop
    async def test_appends_at_once_share_no_position(self, h: Harness) -> None:
        await h.create("s")
        payloads = [b"%03d," % number * (1 + number % 7) for number in range(200)]
        appended = await asyncio.gather(*(h.append("s", payload) for payload in payloads))
        ends = [one.state.tail for one in appended]
        assert len(set(ends)) == len(ends)
        content = await h.everything("s")
        assert len(content) == sum(map(len, payloads)) == max(ends)
        for end, payload in zip(ends, payloads, strict=True):
            assert content[end - len(payload) : end] == payload

    @on_a_loop
    async def test_appends_at_once_to_many_streams(self, h: Harness) -> None:
        await asyncio.gather(*(h.create(f"s{number}") for number in range(20)))
        big = b"b" * 40_000  # larger than a store may treat as small
        await asyncio.gather(
            *(
                h.append(f"s{number % 20}", big if number % 9 == 0 else b"%03d" % number)
                for number in range(200)
            )
        )
        for stream in range(20):
            parts = [big if number % 9 == 0 else b"%03d" % number for number in range(stream, 200, 20)]
            assert await h.everything(f"s{stream}") == b"".join(parts)

    @on_a_loop
    async def test_append_of_another_content_type(self, h: Harness) -> None:
        await h.create("s", "text/plain")
        await refused(409, h.append("s", b"x", JSON), "CONFLICT_CONTENT_TYPE")
        await h.append("s", b"x", "Text/PLAIN;charset=utf-8")
        assert await h.everything("s") == b"x"

    @on_a_loop
    async def test_stream_seq_is_compared_bytewise(self, h: Harness) -> None:
        await h.create("s")
        for seq in ("10", "9", "B", "a", "aa", "é"):
            await h.append("s", b"x", seq=seq)
        for seq in ("é", "aa", "", "10", "z"):
            await refused(409, h.append("s", b"y", seq=seq), "CONFLICT_SEQ")
        await h.append("s", b"z")
        await refused(409, h.append("s", b"y", seq="é"))
        assert await h.everything("s") == b"xxxxxxz"

    @on_a_loop
    async def test_an_append_expects_a_tail(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        assert (await h.append("s", b"c", expected=2)).state.tail == 3
        for position in (0, 2, 4):
            refusal = await refused(412, h.append("s", b"d", expected=position), "CONFLICT_OFFSET")
            assert refusal.headers[names.STREAM_NEXT_OFFSET] == format_offset(3)
            assert refusal.headers[names.ETAG] == f'"{format_offset(3)}"'
        await refused(412, h.append("s", b"", None, close=True, expected=2), "CONFLICT_OFFSET")
        assert not (await h.state("s")).closed
        assert (await h.append("s", b"d", close=True, expected=3)).state.closed
        await refused(409, h.append("s", b"e", expected=4), "STREAM_CLOSED")
        assert (await h.append("s", b"", None, close=True, expected=4)).duplicate
        refusal = await refused(412, h.append("s", b"", None, close=True, expected=3), "CONFLICT_OFFSET")
        assert refusal.headers[names.STREAM_CLOSED] == "true"
        assert await h.everything("s") == b"abcd"

    @on_a_loop
    async def test_one_of_many_appends_that_expect_one_tail(self, h: Harness) -> None:
        await h.create("s")
        for begin in range(0, 15, 3):
            appends = [h.append("s", b"%03d" % number, expected=begin) for number in range(8)]
            outcomes = await asyncio.gather(*appends, return_exceptions=True)
            refusals = [one for one in outcomes if isinstance(one, Rejection)]
            assert [one.status for one in refusals] == [412] * 7
            assert (await h.state("s")).tail == begin + 3

    @on_a_loop
    async def test_close_is_final_and_idempotent(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        assert (await h.close("s")).state.closed
        assert (await h.close("s")).state.tail == 2
        refusal = await refused(409, h.append("s", b"c"), "STREAM_CLOSED")
        assert refusal.headers[names.STREAM_CLOSED] == "true"
        assert refusal.headers[names.STREAM_NEXT_OFFSET] == format_offset(2)
        await refused(409, h.append("s", b"c", close=True), "STREAM_CLOSED")
        assert await h.everything("s") == b"ab"

    @on_a_loop
    async def test_append_and_close_is_one_step(self, h: Harness) -> None:
        await h.create("s")
        state = (await h.append("s", b"last", close=True)).state
        assert (state.tail, state.closed) == (4, True)
        assert await h.everything("s") == b"last"

    @on_a_loop
    async def test_closed_is_checked_before_content_type_and_sequence(self, h: Harness) -> None:
        await h.create("s", "text/plain")
        await h.append("s", b"x", "text/plain", seq="5")
        await h.close("s")
        await refused(409, h.append("s", b"x", JSON), "STREAM_CLOSED")
        await refused(409, h.append("s", b"x", "text/plain", seq="1"), "STREAM_CLOSED")

    @on_a_loop
    async def test_content_type_is_checked_before_sequence(self, h: Harness) -> None:
        await h.create("s", "text/plain")
        await h.append("s", b"x", "text/plain", seq="5")
        await refused(409, h.append("s", b"x", JSON, seq="1"), "CONFLICT_CONTENT_TYPE")

    @on_a_loop
    async def test_delete_and_create_again(self, h: Harness) -> None:
        await h.create("s", "text/plain", payload=b"old", closed=True)
        old = await h.state("s")
        await h.store.delete("s")
        assert await h.store.get("s") is None
        await refused(404, h.append("s", b"x"))
        await refused(404, h.store.delete("s"))
        again = await h.create("s", JSON)
        assert again.new
        assert again.state.id != old.id
        assert (again.state.tail, again.state.closed, again.state.last_seq) == (0, False, None)
        await h.append("s", b"1,", JSON)
        assert await h.everything("s") == b"1,"
        with contextlib.suppress(Rejection):  # the bytes may be removed a little later; they never change
            assert (await h.store.read(old, 0, 100)).payload == b"old"

    @on_a_loop
    async def test_everything_at_once_on_one_path(self, h: Harness) -> None:
        await h.create("s")
        outcomes = await asyncio.gather(
            h.append("s", b"old"),
            h.produce("s", b"old", ("p", 7, 0)),
            h.store.delete("s"),
            h.create("s"),
            h.append("s", b"new"),
            return_exceptions=True,
        )
        # In any order of decisions, the last accepted one determines the state.
        assert not [one for one in outcomes if isinstance(one, Exception) and not hasattr(one, "status")]
        state = await h.store.get("s")
        if state is not None:
            assert (await h.everything("s")) in {b"new", b"", b"oldnew", b"newold", b"oldoldnew"}

    @on_a_loop
    async def test_a_stream_created_again_in_the_same_moment_knows_no_producer(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 0, 0))
        await asyncio.gather(h.produce("s", b"b", ("p", 0, 1)), h.store.delete("s"), h.create("s"))
        assert await h.everything("s") == b""
        assert not (await h.produce("s", b"c", ("p", 0, 0))).duplicate
        assert await h.everything("s") == b"c"

    @on_a_loop
    async def test_check_commits(self, h: Harness) -> None:
        await h.store.check()
        await h.create("s", payload=b"x")
        await asyncio.gather(h.store.check(), h.append("s", b"y"), h.store.check())
        assert await h.everything("s") == b"xy"
