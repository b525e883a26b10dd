"""Each store against a model of streams that fits on a page, under random interleavings of everything.

Time stands still unless a step moves it; SQLite is closed and opened again in between, and hardly anything stays in
memory, so that streams and producers are forgotten and loaded all the time.
"""
# ruff: noqa: C901, PLR0917 - the model is a decision table

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from durable_streams.protocol.commands import Append, Create, ForkPoint, Rejection
from durable_streams.protocol.rules import touch_slack
from durable_streams.protocol.state import ProducerStamp

T = TypeVar("T")
BYTES = "application/octet-stream"
TEXT = "text/plain"
PATHS = ["a", "b", "c", "d", "e"]
BEGIN = 1_800_000_000.0


class Big(bytes):
    """Bytes that do not fill the report of a failure."""

    def __repr__(self) -> str:
        return "BIG"


BIG = Big(b"x" * 17_000)  # beyond what a store treats as small
paths = st.sampled_from(PATHS)
producers = st.sampled_from(["p", "q", "r"])
payloads = st.one_of(st.binary(min_size=1, max_size=8), st.just(BIG))
ttls = st.one_of(st.none(), st.sampled_from([10, 100]))


@dataclass
class Stream:
    """What a stream is, without any thought for how it is kept."""

    content_type: str
    content: bytes = b""
    ends: list[int] = field(default_factory=list)  # of appends, where they can be seen apart
    closed: bool = False
    ttl: int | None = None
    touched: float = 0.0
    last_seq: str | None = None
    producers: dict[str, tuple[int, int]] = field(default_factory=dict)
    source: str | None = None
    position: int = 0
    forks: int = 0
    deleted: bool = False


class Model:
    """Streams by path; a refusal is its status."""

    def __init__(self) -> None:
        self.streams: dict[str, Stream] = {}
        self.now = BEGIN
        self.watched: Counter[str] = Counter()

    def live(self, path: str) -> Stream | None:
        stream = self.streams.get(path)
        if stream is not None and not stream.deleted and self.expired(path):
            self.release(path)
            stream = self.streams.get(path)
        return stream

    def expired(self, path: str) -> bool:
        stream = self.streams[path]
        return stream.ttl is not None and not self.watched[path] and self.now >= stream.touched + stream.ttl

    def release(self, path: str) -> None:
        stream = self.streams[path]
        if stream.forks:
            stream.deleted = True
            return
        del self.streams[path]
        if stream.source is not None:
            source = self.streams[stream.source]
            source.forks -= 1
            if source.deleted and not source.forks:
                self.release(stream.source)

    def create(
        self,
        path: str,
        content_type: str | None,
        payload: bytes,
        closed: bool,
        ttl: int | None,
        fork: tuple[str, int] | None,
    ) -> int:
        existing = self.live(path)
        source = None if fork is None else self.live(fork[0])
        if existing is not None:
            if existing.deleted:
                return 409
            origin = (existing.source, existing.position if existing.source else 0)
            wanted = content_type or (existing.content_type if fork else BYTES)
            same = (
                origin == (fork or (None, 0))
                and existing.content_type == wanted
                and existing.closed == closed
                and (existing.ttl == ttl or (fork is not None and ttl is None))
            )
            if same:
                existing.touched = self.now
            return 200 if same else 409
        if fork is not None:
            if source is None:
                return 404
            if source.deleted or (content_type is not None and content_type != source.content_type):
                return 409
            made = Stream(
                source.content_type,
                source.content[: fork[1]],
                # Where a fork leaves its source is an end too, and stays one for the forks of it.
                [*(end for end in source.ends if end < fork[1]), fork[1]],
                ttl=source.ttl if ttl is None else ttl,
                source=fork[0],
                position=fork[1],
            )
            source.forks += 1
        else:
            made = Stream(content_type or BYTES, ttl=ttl)
        made.closed, made.touched = closed, self.now
        self._add(made, payload)
        self.streams[path] = made
        return 201

    def append(
        self,
        path: str,
        content_type: str,
        payload: bytes,
        close: bool,
        seq: str | None,
        stamp: tuple[str, int, int] | None,
    ) -> int:
        stream = self.live(path)
        if stream is None:
            return 404
        if stream.deleted:
            return 410
        known = stream.producers.get(stamp[0]) if stamp else None
        if stream.closed:
            repeated = (
                stamp is not None and known is not None and known[0] == stamp[1] and stamp[2] <= known[1]
            )
            if not repeated and not (close and not payload):
                return 409
            stream.touched = self.now
            return 204
        if payload and content_type != stream.content_type:
            return 409
        if stamp is not None:
            verdict = self._judge(known, stamp)
            if verdict == 204:
                stream.touched = self.now
            if verdict != 200:
                return verdict
        if seq is not None:
            if stream.last_seq is not None and seq <= stream.last_seq:
                return 409
            stream.last_seq = seq
        if stamp is not None:
            stream.producers[stamp[0]] = (stamp[1], stamp[2])
        self._add(stream, payload)
        stream.closed, stream.touched = close, self.now
        return 200

    def _judge(self, known: tuple[int, int] | None, stamp: tuple[str, int, int]) -> int:
        _, epoch, seq = stamp
        if known is None:
            return 200 if seq == 0 else 409
        if epoch < known[0]:
            return 403
        if epoch > known[0]:
            return 200 if seq == 0 else 400
        return 204 if seq <= known[1] else 200 if seq == known[1] + 1 else 409

    def _add(self, stream: Stream, payload: bytes) -> None:
        if payload:
            stream.content += payload
            stream.ends.append(len(stream.content))


class StoreMachine(RuleBasedStateMachine):
    """Every step is taken by the model and by the store; both must say the same."""

    store_type: ClassVar[Callable[[Path, Callable[[], float]], Any]]
    durable: ClassVar[bool] = False
    sees_forks: ClassVar[bool] = (
        True  # whether `get` tells how many forks there are now: no answer depends on it
    )

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.folder = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.loop = asyncio.new_event_loop()
        self.watches: list[tuple[str, Any]] = []
        self.store = self.make()

    def make(self) -> Any:
        store = type(self).store_type(self.folder, lambda: self.model.now)
        self.run(store.open())
        return store

    def one_store(self) -> Any:
        """Return who takes what is asked for at once, in that order."""
        return self.store

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    def outcome(self, work: Awaitable[Any]) -> tuple[int, Any]:
        try:
            return 0, self.run(work)
        except Rejection as refusal:
            return refusal.status, None

    def teardown(self) -> None:
        try:
            self.everything_can_be_freed()
        finally:
            self.shut_down()

    def everything_can_be_freed(self) -> None:
        """Nothing that is left keeps anything else alive."""
        self.model.now += 1000
        while self.watches:
            self.unwatch()
        self.model.now += 1000
        for path in PATHS * len(PATHS):
            self.outcome(self.store.create(Create(path, BYTES)))
            self.outcome(self.store.delete(path))
        assert [self.run(self.store.get(path)) for path in PATHS] == [None] * len(PATHS)

    def shut_down(self) -> None:
        for _, watch in self.watches:
            self.run(self.leave(watch))
        self.run(self.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    @initialize(path=paths)
    def begin(self, path: str) -> None:
        self.create(path, BYTES, b"begin", False, None)

    @rule(
        path=paths,
        content_type=st.sampled_from([BYTES, BYTES, BYTES, TEXT, None]),
        payload=st.one_of(st.just(b""), payloads),
        closed=st.sampled_from([False, False, False, True]),
        ttl=ttls,
    )
    def create(
        self, path: str, content_type: str | None, payload: bytes, closed: bool, ttl: int | None
    ) -> None:
        self.agree_on_time(lazy=path)
        expected = self.model.create(path, content_type, payload, closed, ttl, None)
        command = Create(path, content_type, payload, closed, ttl)
        status, created = self.outcome(self.store.create(command))
        assert (status or (201 if created.new else 200)) == expected

    @rule(
        path=paths, source=paths, share=st.floats(0, 1), payload=st.sampled_from([b"", b"", b"own"]), ttl=ttls
    )
    def fork(self, path: str, source: str, share: float, payload: bytes, ttl: int | None) -> None:
        self.agree_on_time(lazy=path)
        origin = self.model.live(source)
        state = self.run(self.store.get(source))
        position = 0 if origin is None else round(share * len(origin.content))
        point = ForkPoint(source, -1 if state is None else state.id, position)
        expected = self.model.create(path, None, payload, False, ttl, (source, position))
        status, created = self.outcome(self.store.create(Create(path, None, payload, ttl=ttl, fork=point)))
        assert (status or (201 if created.new else 200)) == expected

    @rule(
        path=paths,
        content_type=st.sampled_from([BYTES, BYTES, BYTES, TEXT]),
        payload=payloads,
        close=st.sampled_from([False] * 7 + [True]),
        seq=st.sampled_from([None, None, "1", "2", "3"]),
    )
    def append(self, path: str, content_type: str, payload: bytes, close: bool, seq: str | None) -> None:
        self._append(path, content_type, payload, close, seq, None)

    @rule(
        path=paths,
        who=producers,
        step=st.sampled_from([-1, 0, 1, 1, 1, 1, 2]),
        payload=payloads,
        close=st.sampled_from([False] * 9 + [True]),
    )
    def produce(self, path: str, who: str, step: int, payload: bytes, close: bool) -> None:
        stream = self.model.streams.get(path)
        epoch, last = (stream.producers.get(who) if stream else None) or (0, -1)
        content_type = stream.content_type if stream else BYTES
        self._append(path, content_type, payload, close, None, (who, epoch, max(0, last + step)))

    @rule(path=paths, who=producers, epoch=st.integers(0, 3), seq=st.integers(0, 2))
    def claim(self, path: str, who: str, epoch: int, seq: int) -> None:
        stream = self.model.streams.get(path)
        self._append(path, stream.content_type if stream else BYTES, b"claim", False, None, (who, epoch, seq))

    @rule(path=paths)
    def close(self, path: str) -> None:
        self._append(path, BYTES, b"", True, None, None)

    def _append(
        self,
        path: str,
        content_type: str,
        payload: bytes,
        close: bool,
        seq: str | None,
        stamp: tuple[str, int, int] | None,
    ) -> None:
        self.agree_on_time()
        expected = self.model.append(path, content_type, payload, close, seq, stamp)
        producer = None if stamp is None else ProducerStamp(*stamp)
        command = Append(content_type if payload else None, payload, close, seq, producer)
        status, appended = self.outcome(self.store.append(path, command))
        assert (status or (204 if appended.duplicate else 200)) == expected
        if appended is not None:
            assert appended.state.tail == len(self.model.streams[path].content)

    @rule(path=paths)
    def delete(self, path: str) -> None:
        self.agree_on_time()
        stream = self.model.live(path)
        expected = 404 if stream is None else 410 if stream.deleted else 0
        if not expected:
            self.model.release(path)
        status, _ = self.outcome(self.store.delete(path))
        assert status == expected

    @rule(path=paths, share=st.floats(0, 1), limit=st.sampled_from([1, 5, 100, 1 << 20]))
    def read(self, path: str, share: float, limit: int) -> None:
        self.agree_on_time()
        stream = self.model.live(path)
        state = self.run(self.store.get(path))
        if stream is None or stream.deleted:
            assert state is None or state.deleted
            return
        assert state is not None
        self.loop.call_soon(self.store.touch, path)
        stream.touched = self.model.now
        start = round(share * len(stream.content))
        chunk = self.run(self.store.read(state, start, limit))
        assert chunk.payload == stream.content[chunk.start : chunk.end]
        # A start inside an append stands for the start of that append (A11).
        assert chunk.start == max(bound for bound in (0, *stream.ends) if bound <= start)
        assert chunk.end == len(stream.content) or chunk.end in stream.ends or chunk.end == stream.position
        assert chunk.end > start or start == len(stream.content)

    @rule(seconds=st.sampled_from([1.0, 9.5, 11.5, 95.0, 120.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(self.model.now + seconds)

    def pass_time(self, until: float) -> None:
        """Set the clock of the model and of the store."""
        self.model.now = until

    @rule(path=paths)
    def watch(self, path: str) -> None:
        self.agree_on_time()
        stream = self.model.live(path)
        if stream is None or stream.deleted or len(self.watches) > 2:
            return
        watch = self.run(self.store.watch(path))
        watch.__enter__()
        self.model.watched[path] += 1
        self.watches.append((path, watch))

    @precondition(lambda self: self.watches)
    @rule()
    def unwatch(self) -> None:
        path, watch = self.watches.pop()
        self.run(self.leave(watch))
        self.model.watched[path] -= 1
        if not self.model.watched[path] and path in self.model.streams:
            self.model.streams[path].touched = self.model.now

    @precondition(lambda self: self.durable)
    @rule()
    def restart(self) -> None:
        while self.watches:
            self.unwatch()
        self.stop()
        self.store = self.make()

    def stop(self) -> None:
        """End the store, so that another one goes on with what is in its folder."""
        self.run(self.store.close())

    @rule(path=paths, payloads=st.lists(payloads, min_size=2, max_size=5), delete=st.booleans())
    def many_at_once(self, path: str, payloads: list[bytes], delete: bool) -> None:
        """Plain appends in one go, perhaps a deletion and a new stream among them: taken in the order of asking."""
        self.agree_on_time()
        stream = self.model.live(path)
        if stream is None or stream.deleted or stream.closed:
            return
        store = self.one_store()
        self.run(store.get(path))  # what has to be loaded first may be taken later
        delete = delete and stream.source is None
        content_type, expected, works = stream.content_type, [], []
        for number, payload in enumerate(payloads):
            if delete and number == 1:
                expected.append(0)
                self.model.release(path)
                works.append(store.delete(path))
                expected.append(
                    {201: 0, 409: 409}[self.model.create(path, content_type, b"", False, None, None)]
                )
                works.append(store.create(Create(path, content_type)))
            verdict = self.model.append(path, content_type, payload, False, None, None)
            expected.append(0 if verdict == 200 else verdict)
            works.append(store.append(path, Append(content_type, payload)))

        async def together() -> list[Any]:
            return await asyncio.gather(*works, return_exceptions=True)

        statuses = [one.status if isinstance(one, Rejection) else 0 for one in self.run(together())]
        assert statuses == expected

    def agree_on_time(self, *, lazy: str | None = None) -> None:
        """Let the model follow where a store may be late: it may forget the last touch, and errs on the late side.

        What has expired is swept, all but ``lazy``: for that the step about to be taken has to see to it itself.
        """
        for path in PATHS * 2:  # the end of a fork may be the end of its source
            stream = self.model.streams.get(path)
            if stream is None or stream.deleted or stream.ttl is None or not self.model.expired(path):
                continue
            if self.run(self.store.get(path)) is not None:
                late = self.model.now - (stream.touched + stream.ttl)
                assert late <= touch_slack(stream.ttl), f"{path} should have expired {late} seconds ago"
                self.pass_time(stream.touched + stream.ttl + touch_slack(stream.ttl) + 0.001)
                return self.agree_on_time(lazy=lazy)
            if path != lazy:
                self.run(self.sweep(path))
                self.model.release(path)
        return None

    async def leave(self, watch: Any) -> None:
        watch.__exit__(None, None, None)

    async def sweep(self, path: str) -> None:
        await self.store._expire(await self.store._slots.get(path))

    @invariant()
    def every_stream_is_what_it_should_be(self) -> None:
        self.agree_on_time(lazy=PATHS[0])
        for path in PATHS:
            expected = self.model.streams.get(path)
            state = self.run(self.store.get(path))
            if expected is None or (not expected.deleted and self.model.expired(path)):
                assert state is None, path
                continue
            if expected.deleted and state is None:
                continue  # it expired, and nobody has asked for it since
            assert state is not None, path
            assert state.deleted == expected.deleted
            if expected.deleted:
                continue
            assert (state.content_type, state.tail) == (expected.content_type, len(expected.content))
            assert (state.closed, state.ttl, state.last_seq) == (
                expected.closed,
                expected.ttl,
                expected.last_seq,
            )
            assert state.forked_from == expected.source
            assert state.forks == expected.forks or not self.sees_forks

    @invariant()
    def every_byte_is_where_it_should_be(self) -> None:
        for path, stream in self.model.streams.items():
            state = self.run(self.store.get(path))
            if state is None or state.deleted or self.model.expired(path):
                continue
            content = b""
            while len(content) < state.tail:
                chunk = self.run(self.store.read(state, len(content), 10_000))
                content += chunk.payload
            assert content == stream.content


def steps(machine: type[StoreMachine], examples: int) -> Any:
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return case
