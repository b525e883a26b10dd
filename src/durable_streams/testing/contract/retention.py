"""Retention: streams give up their first bytes, on request and by their policies."""
# ruff: noqa: D102, S101 - a test's name is its documentation; tests assert

from __future__ import annotations

import asyncio

from durable_streams.protocol import headers as names
from durable_streams.protocol.commands import SetRetention
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import Policy
from durable_streams.testing.contract.harness import BYTES, Harness, StoreFactory, on_a_loop, refused

__all__ = ["RetentionContract"]


class RetentionContract(StoreFactory):
    """What is given up cannot be read, and all else stays as it was."""

    @on_a_loop
    async def test_a_trimmed_stream(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        await h.append("s", b"cde")
        await h.append("s", b"f")
        state = await h.trim("s", 2)
        assert (state.earliest, state.tail) == (2, 6)
        assert await h.state("s") == state
        assert await h.everything("s") == b"cdef"
        assert (await h.append("s", b"g")).state.earliest == 2
        assert (await h.trim("s", 5)).earliest == 5
        assert await h.everything("s", limit=1) == b"fg"

    @on_a_loop
    async def test_a_trim_never_goes_back(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        await h.append("s", b"cd")
        assert (await h.trim("s", 2)).earliest == 2
        for position in (0, 2):
            assert (await h.trim("s", position)).earliest == 2
        assert await h.everything("s") == b"cd"

    @on_a_loop
    async def test_a_stream_that_gave_up_everything_goes_on(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        assert (await h.trim("s", 2)).earliest == 2
        assert await h.everything("s") == b""
        if self.durable:
            await h.restart()
        assert ((await h.state("s")).tail, (await h.state("s")).earliest) == (2, 2)
        assert (await h.append("s", b"c", expected=2)).state.tail == 3
        assert await h.everything("s") == b"c"

    @on_a_loop
    async def test_what_cannot_be_trimmed(self, h: Harness) -> None:
        await refused(404, h.store.retain("nothing", SetRetention(None)))
        await h.create("s", payload=b"ab")
        old = await h.state("s")
        await h.store.delete("s")
        await h.create("s", payload=b"abcd")
        await refused(404, h.trim("s", 2, stream_id=old.id))
        await h.fork("f", "s")
        await h.store.delete("s")
        await refused(410, h.trim("s", 2))

    @on_a_loop
    async def test_a_trimmed_stream_keeps_what_it_is(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        await h.produce("s", b"cd", ("p", 1, 0))
        await h.append("s", b"ef", seq="5")
        await h.trim("s", 6)
        if self.durable:
            await h.restart()
        assert (await h.produce("s", b"cd", ("p", 1, 0))).duplicate
        await refused(403, h.produce("s", b"x", ("p", 0, 0)))
        await refused(409, h.append("s", b"x", seq="5"), "CONFLICT_SEQ")
        assert not (await h.produce("s", b"gh", ("p", 1, 1))).duplicate
        await h.close("s")
        assert (await h.trim("s", 8)).closed
        assert await h.everything("s") == b""
        assert (await h.state("s")).closed

    @on_a_loop
    async def test_large_appends_are_given_up(self, h: Harness) -> None:
        large = bytes(range(256)) * 3000
        await h.create("s", payload=b"ab")
        for _ in range(3):
            await h.append("s", large)
        await h.append("s", b"cd")
        await h.trim("s", 2 + len(large))
        assert await h.everything("s") == large * 2 + b"cd"
        await h.trim("s", 2 + 3 * len(large))
        assert await h.everything("s") == b"cd"

    @on_a_loop
    async def test_a_read_from_an_older_state(self, h: Harness) -> None:
        await h.create("s", payload=b"a" * 300_000)
        await h.append("s", b"b")
        old = await h.state("s")
        await h.trim("s", old.tail - 1)
        for _ in range(20):  # the bytes may be removed a little later; they never change
            try:
                assert (await h.store.read_piece(old, 0, 10)).payload == b"a" * 10
            except Exception as error:  # noqa: BLE001 - whatever it is, it must be the refusal
                await refused(410, _raising(error), "RETENTION_GONE")
                break
            await asyncio.sleep(0.01)
        assert (await h.store.read(old, old.tail - 1, 10)).payload == b"b"

    # -- forks

    @on_a_loop
    async def test_a_fork_keeps_what_it_began_with(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        for part in (b"cd", b"ef", b"gh"):
            await h.append("s", part)
        await h.trim("s", 2)
        fork = (await h.fork("f", "s", 6)).state
        assert (fork.earliest, fork.tail) == (2, 6)
        await h.trim("s", 8)
        await h.append("f", b"F")
        assert (await h.everything("f"), await h.everything("s")) == (b"cdefF", b"")
        if self.durable:
            await h.restart()
        assert (await h.everything("f"), await h.everything("s")) == (b"cdefF", b"")
        await h.trim("f", 4)
        assert await h.everything("f") == b"efF"
        await h.trim("f", 6)
        assert await h.everything("f") == b"F"
        await h.store.delete("f")
        assert (await h.state("s")).floor == 8
        assert (await h.append("s", b"i")).state.tail == 9
        assert await h.everything("s") == b"i"

    @on_a_loop
    async def test_a_fork_before_what_is_retained(self, h: Harness) -> None:
        await h.create("s", payload=b"ab")
        await h.append("s", b"cd")
        await h.trim("s", 2)
        refusal = await refused(410, h.fork("f", "s", 0), "RETENTION_GONE")
        assert refusal.headers[names.STREAM_EARLIEST_OFFSET] == format_offset(2)
        assert (await h.fork("f", "s", 2)).state.earliest == 2
        assert await h.everything("f") == b""

    @on_a_loop
    async def test_a_chain_of_forks_and_trims(self, h: Harness) -> None:
        await h.create("a", payload=b"aa")
        await h.append("a", b"AA")
        await h.fork("b", "a")
        await h.append("b", b"bb")
        await h.trim("a", 4)
        await h.fork("c", "b")
        await h.append("c", b"cc")
        await h.trim("b", 6)
        await h.store.delete("b")
        assert await h.everything("c") == b"aaAAbbcc"
        await h.trim("c", 2)
        assert await h.everything("c") == b"AAbbcc"
        await h.store.delete("c")
        assert await h.store.get("b") is None
        assert (await h.state("a")).floor == 4

    # -- policies

    @on_a_loop
    async def test_a_limit_in_bytes(self, h: Harness) -> None:
        await h.create("s", policy=Policy(max_bytes=320))
        written = 0
        for _ in range(100):
            state = (await h.append("s", b"0123456789")).state
            written += 10
            assert state.tail == written
            assert state.tail - state.earliest <= 320
            assert state.earliest % 10 == 0
            assert written < 320 or state.tail - state.earliest >= 300
        assert await h.everything("s") == b"0123456789" * ((state.tail - state.earliest) // 10)
        assert state.retention is not None
        assert len(state.retention.marks) < 70

    @on_a_loop
    async def test_the_last_append_is_kept_whatever_its_size(self, h: Harness) -> None:
        await h.create("s", policy=Policy(max_bytes=4))
        for payload in (b"ab", b"0123456789", b"c", b"9876543210"):
            await h.append("s", payload)
            assert (await h.everything("s")).endswith(payload)
        assert await h.everything("s") == b"9876543210"

    @on_a_loop
    async def test_an_age_limit(self, h: Harness) -> None:
        if not self.controls_time:
            return
        await h.create("s", policy=Policy(max_age=3200))
        for number in range(64):
            await h.append("s", b"%02d" % number)
            h.clock.advance(100)
            if number == 10:
                if self.durable:
                    await h.restart()
                assert (await h.state("s")).earliest == 0
        state = await h.state("s")
        # 3,200 seconds, and a mark for each 100: 32 appends, give or take a mark.
        assert 60 <= state.tail - state.earliest <= 70
        assert (await h.everything("s")).endswith(b"62" + b"63")

    @on_a_loop
    async def test_an_idle_stream_grows_old(self, h: Harness) -> None:
        if not self.controls_time:
            return
        await h.create("s", payload=b"ab", policy=Policy(max_age=100))
        await h.append("s", b"cd")
        h.clock.advance(99)
        assert (await h.append("s", b"ef")).state.earliest == 0
        h.clock.advance(20)
        assert (await h.trim("s", 0, max_age=100)).earliest == 4
        h.clock.advance(81)
        assert (await h.trim("s", 0, max_age=100)).earliest == 4
        h.clock.advance(10)
        assert (await h.trim("s", 0, max_age=100)).earliest == 6
        assert (await h.append("s", b"gh")).state.tail == 8
        assert await h.everything("s") == b"gh"

    @on_a_loop
    async def test_a_trim_by_age_needs_to_know_it(self, h: Harness) -> None:
        await h.create("s", payload=b"ab", policy=Policy(max_bytes=100))
        await refused(409, h.trim("s", 0, max_age=1), "CONFLICT")

    @on_a_loop
    async def test_a_policy_can_be_changed(self, h: Harness) -> None:
        await h.create("s")
        for _ in range(10):
            await h.append("s", b"0123456789")
        state = await h.store.retain("s", SetRetention(Policy(max_bytes=1000)))
        assert state.retention is not None
        assert state.retention.policy == Policy(max_bytes=1000)
        assert await h.state("s") == state
        for _ in range(200):
            await h.append("s", b"0123456789")
        state = await h.state("s")
        assert 900 <= state.tail - state.earliest <= 1000
        state = await h.store.retain("s", SetRetention(None))
        assert state.retention is None
        for _ in range(10):
            await h.append("s", b"0123456789")
        assert (await h.state("s")).earliest == state.earliest

    @on_a_loop
    async def test_a_policy_is_part_of_the_configuration(self, h: Harness) -> None:
        policy = Policy(max_age=60, max_bytes=1000)
        await h.create("s", policy=policy)
        assert not (await h.create("s", policy=policy)).new
        assert not (await h.create("s")).new
        await refused(409, h.create("s", policy=Policy(max_age=61, max_bytes=1000)), "CONFLICT_EXISTS")
        await h.create("other")
        await refused(409, h.create("other", policy=policy), "CONFLICT_EXISTS")
        assert not (await h.create("other", policy=Policy(max_age=5, is_default=True))).new
        fork = (await h.fork("f", "s")).state
        assert fork.retention is not None
        assert fork.retention.policy == policy

    @on_a_loop
    async def test_trims_and_appends_at_once(self, h: Harness) -> None:
        await h.create("s", BYTES, policy=Policy(max_bytes=50))

        async def write(number: int) -> None:
            for _ in range(20):
                await h.append("s", b"%02d" % number)

        async def trim() -> None:
            for _ in range(20):
                await h.trim("s", (await h.state("s")).tail)

        await asyncio.gather(*map(write, range(8)), trim())
        state = await h.state("s")
        assert state.tail == 8 * 20 * 2
        assert state.tail - state.earliest <= 50
        assert len(await h.everything("s")) == state.tail - state.earliest
        if self.durable:
            await h.restart()
            after = await h.state("s")
            assert (after.tail, after.earliest, after.floor) == (state.tail, state.earliest, state.floor)


async def _raising(error: Exception) -> None:
    raise error
