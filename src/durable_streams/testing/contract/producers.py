"""Idempotent producers, the table of protocol section 4 row by row."""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

import asyncio

from durable_streams.protocol import headers as names
from durable_streams.protocol.state import ProducerState
from durable_streams.testing.contract.harness import BYTES, JSON, Harness, StoreFactory, on_a_loop, refused

__all__ = ["ProducerContract"]


class ProducerContract(StoreFactory):
    """State per stream and producer, stored with the data."""

    @on_a_loop
    async def test_an_older_epoch_is_fenced(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 5, 0))
        for seq in (0, 1, 9):
            refusal = await refused(403, h.produce("s", b"b", ("p", 4, seq)), "STALE_EPOCH")
            assert refusal.headers[names.PRODUCER_EPOCH] == "5"
        assert await h.everything("s") == b"a"

    @on_a_loop
    async def test_a_new_epoch_starts_at_zero(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 0, 0))
        await refused(400, h.produce("s", b"b", ("p", 1, 1)))
        await refused(400, h.produce("s", b"b", ("p", 7, 3)))
        taken = await h.produce("s", b"c", ("p", 7, 0))
        assert (taken.duplicate, taken.producer) == (False, ProducerState(7, 0))
        assert await h.everything("s") == b"ac"

    @on_a_loop
    async def test_an_unknown_producer_starts_at_zero(self, h: Harness) -> None:
        await h.create("s")
        refusal = await refused(409, h.produce("s", b"x", ("p", 3, 2)), "SEQUENCE_GAP")
        assert refusal.headers[names.PRODUCER_EXPECTED_SEQ] == "0"
        assert refusal.headers[names.PRODUCER_RECEIVED_SEQ] == "2"
        taken = await h.produce("s", b"a", ("p", 3, 0))
        assert taken.producer == ProducerState(3, 0)
        assert await h.everything("s") == b"a"

    @on_a_loop
    async def test_what_was_accepted_is_a_duplicate(self, h: Harness) -> None:
        await h.create("s")
        for seq in range(3):
            assert not (await h.produce("s", b"%d" % seq, ("p", 0, seq))).duplicate
        for seq in (2, 0, 1, 2):
            again = await h.produce("s", b"other", ("p", 0, seq))
            assert (again.duplicate, again.producer) == (True, ProducerState(0, 2))
            assert again.state.tail == 3
        assert await h.everything("s") == b"012"

    @on_a_loop
    async def test_a_gap_is_refused(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 0, 0))
        refusal = await refused(409, h.produce("s", b"c", ("p", 0, 2)), "SEQUENCE_GAP")
        assert refusal.headers[names.PRODUCER_EXPECTED_SEQ] == "1"
        assert refusal.headers[names.PRODUCER_RECEIVED_SEQ] == "2"
        await h.produce("s", b"b", ("p", 0, 1))
        await h.produce("s", b"c", ("p", 0, 2))
        assert await h.everything("s") == b"abc"

    @on_a_loop
    async def test_the_largest_numbers(self, h: Harness) -> None:
        await h.create("s")
        top = names.MAX_SAFE_INTEGER
        await h.produce("s", b"a", ("p", top, 0))
        assert (await h.produce("s", b"a", ("p", top, 0))).duplicate
        await refused(409, h.produce("s", b"b", ("p", top, top)), "SEQUENCE_GAP")

    @on_a_loop
    async def test_producers_do_not_know_each_other(self, h: Harness) -> None:
        await h.create("s")
        await h.create("t")
        for identity in ("p", "P", "p/1", "'", "é", "x" * 1024):
            await h.produce("s", b"a", (identity, 0, 0))
            await h.produce("s", b"b", (identity, 0, 1))
        await h.produce("t", b"c", ("p", 0, 0))
        assert await h.everything("s") == b"ab" * 6
        assert await h.everything("t") == b"c"

    @on_a_loop
    async def test_producers_are_listed_in_the_order_of_their_ids(self, h: Harness) -> None:
        identities = ["p", "P", "p/1", "'", "é", "\U0001f600", "\uffee", "x" * 1024]
        for path in ("s", "t"):
            await h.create(path)
        assert await h.store.list_producers(await h.state("s"), "", 10) == []
        for number, identity in enumerate(identities):
            await h.produce("s", b"a", (identity, number, 0))
        await h.produce("s", b"b", ("p", 0, 1))
        await h.produce("t", b"c", ("q", 5, 0))
        state, in_order = await h.state("s"), sorted(identities)
        found = await h.store.list_producers(state, "", 10)
        assert [name for name, _ in found] == in_order
        assert dict(found)["p"] == ProducerState(0, 1)
        assert dict(found)["é"] == ProducerState(4, 0)
        assert await h.store.list_producers(state, "", 3) == found[:3]
        assert await h.store.list_producers(state, in_order[2], 3) == found[3:6]
        assert await h.store.list_producers(state, in_order[-1], 3) == []
        if self.durable:
            await h.restart()
            await h.produce("s", b"d", ("p", 9, 0))
            again = await h.store.list_producers(await h.state("s"), "", 10)
            assert dict(again) == dict(found) | {"p": ProducerState(9, 0)}

    @on_a_loop
    async def test_neither_a_fork_nor_a_new_stream_lists_producers_of_others(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 3, 0))
        await h.fork("f", "s")
        assert await h.store.list_producers(await h.state("f"), "", 10) == []
        await h.store.delete("f")
        await h.store.delete("s")
        await h.create("s")
        assert await h.store.list_producers(await h.state("s"), "", 10) == []

    @on_a_loop
    async def test_requests_in_flight_are_taken_in_order(self, h: Harness) -> None:
        await h.create("s")
        await asyncio.gather(*(h.produce("s", b"%03d" % seq, ("p", 0, seq)) for seq in range(100)))
        assert await h.everything("s") == b"".join(b"%03d" % seq for seq in range(100))

    @on_a_loop
    async def test_the_same_request_many_times_at_once(self, h: Harness) -> None:
        await h.create("s")
        outcomes = await asyncio.gather(*(h.produce("s", b"x", ("p", 0, 0)) for _ in range(20)))
        assert [one.duplicate for one in outcomes].count(False) == 1
        assert await h.everything("s") == b"x"

    @on_a_loop
    async def test_more_producers_than_anybody_keeps_in_memory(self, h: Harness) -> None:
        await h.create("s")
        producers = [f"p{number}" for number in range(1500)]
        for seq in range(2):
            await asyncio.gather(*(h.produce("s", b"x", (one, 0, seq)) for one in producers))
        again = await asyncio.gather(*(h.produce("s", b"y", (one, 0, 1)) for one in producers))
        assert all(one.duplicate for one in again)
        await refused(409, h.produce("s", b"z", ("p0", 0, 3)), "SEQUENCE_GAP")
        assert await h.everything("s") == b"x" * 3000

    @on_a_loop
    async def test_a_refused_append_moves_nothing(self, h: Harness) -> None:
        await h.create("s")
        await h.append("s", b"a", seq="5")
        await refused(409, h.produce("s", b"b", ("p", 0, 0), seq="4"), "CONFLICT_SEQ")
        await refused(409, h.produce("s", b"b", ("p", 0, 0), content_type=JSON))
        assert not (await h.produce("s", b"c", ("p", 0, 0), seq="6")).duplicate
        assert await h.everything("s") == b"ac"

    @on_a_loop
    async def test_the_request_that_closed_may_be_repeated(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 0, 0))
        assert (await h.produce("s", b"b", ("p", 0, 1), close=True)).state.closed
        again = await h.produce("s", b"b", ("p", 0, 1), close=True)
        assert (again.duplicate, again.state.closed, again.state.tail) == (True, True, 2)
        await refused(409, h.produce("s", b"c", ("p", 0, 2)), "STREAM_CLOSED")
        await refused(409, h.produce("s", b"c", ("q", 0, 0)), "STREAM_CLOSED")
        await refused(409, h.append("s", b"b", close=True), "STREAM_CLOSED")

    @on_a_loop
    async def test_a_new_stream_at_the_path_knows_nobody(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 9, 0))
        await h.store.delete("s")
        await h.create("s")
        await refused(409, h.produce("s", b"b", ("p", 9, 1)), "SEQUENCE_GAP")
        assert not (await h.produce("s", b"b", ("p", 0, 0))).duplicate

    @on_a_loop
    async def test_a_fork_inherits_no_producer_and_no_sequence(self, h: Harness) -> None:
        await h.create("s")
        await h.produce("s", b"a", ("p", 3, 0), seq="7")
        await h.fork("f", "s")
        await refused(409, h.produce("f", b"b", ("p", 3, 1)), "SEQUENCE_GAP")
        assert not (await h.produce("f", b"b", ("p", 0, 0), seq="1")).duplicate
        assert (await h.everything("f"), await h.everything("s")) == (b"ab", b"a")

    @on_a_loop
    async def test_empty_close_by_a_producer(self, h: Harness) -> None:
        await h.create("s", BYTES)
        await h.produce("s", b"", ("p", 0, 0), content_type=None, close=True)
        assert (await h.produce("s", b"", ("p", 0, 0), content_type=None, close=True)).duplicate
        assert (await h.state("s")).closed
