"""`Runs`: an answer is generated once, by a task, and read by requests that come and go."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_streams import DurableStreamError
from durable_streams.ai import RunActiveError, Runs
from durable_streams.embedded import DurableStreams
from durable_streams.testing import InMemoryStreamServer

WORDS = [f"word{number} " for number in range(20)]
ANSWER = "".join(WORDS)
GONE = "the answer was interrupted: the process that generated it has ended"
WITHIN = 30.0


def test_settings_that_make_no_sense() -> None:
    streams = DurableStreams()
    for settings, about in (
        ({"lease": 0}, "lease"),
        ({"ttl": 1.5}, "ttl"),
        ({"max_seconds": 0}, "max_seconds"),
    ):
        with pytest.raises(ValueError, match=about):
            Runs(streams, **settings)
    with pytest.raises(ValueError, match="format"):
        Runs(streams, format="xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="absolute"):
        Runs("streams")


class Source:
    """A source that a test lets go on, and that knows what became of it."""

    def __init__(self, words: list[str] = WORDS) -> None:
        self.words = words
        self.generated = 0
        self.may_end = asyncio.Event()
        self.closed = asyncio.Event()

    async def __call__(self) -> AsyncIterator[str]:
        return self._generate()

    async def _generate(self) -> AsyncIterator[str]:
        try:
            for word in self.words:
                self.generated += 1
                yield word
            await self.may_end.wait()
        finally:
            self.closed.set()


async def text(answer: Any) -> str:
    """Return what a client gets that reads to the end."""
    return b"".join([part async for part in answer.body]).decode()


async def some(answer: Any, size: int) -> str:
    """Return what a client gets that leaves in the middle."""
    found = b""
    async for part in answer.body:
        found += part
        if len(found) >= size:
            break
    await answer.body.aclose()
    return found.decode()


@pytest.fixture(params=["memory", "sqlite", "http"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DurableStreams | str]:
    """Give streams of this process, and a server's."""
    if request.param == "http":
        with InMemoryStreamServer() as server:
            yield server.url("").rstrip("/")
    else:
        yield DurableStreams(tmp_path if request.param == "sqlite" else None)


def in_app(place: DurableStreams | str, work: Callable[[Callable[..., Runs]], Awaitable[None]]) -> None:
    """Run a test within the lifespan of its application; it is given a function that makes runs."""

    async def main() -> None:
        made: list[Runs] = []

        def make(**settings: Any) -> Runs:
            made.append(Runs(place, **{"format": "text", **settings}))
            return made[-1]

        if isinstance(place, DurableStreams):
            async with place.lifespan():
                await asyncio.wait_for(work(make), WITHIN)
            return
        try:
            await asyncio.wait_for(work(make), WITHIN)
        finally:
            for runs in made:
                await runs.aclose()

    asyncio.run(main())


def test_a_client_that_leaves_stops_nothing(place: DurableStreams | str) -> None:
    async def work(make: Callable[..., Runs]) -> None:
        runs, source = make(), Source()
        assert (await runs.resume("chat")).status == 204
        answer = await runs.start("chat", source)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert ANSWER.startswith(await some(answer, 20))
        second, third = await runs.resume("chat"), await runs.resume("chat")
        reading = asyncio.gather(text(second), text(third))
        source.may_end.set()
        assert await reading == [ANSWER, ANSWER]
        assert source.generated == len(WORDS)
        await source.closed.wait()
        assert (await runs.resume("chat")).status == 204
        assert await text(await runs.resume("chat", ended=True)) == ANSWER
        assert not await runs.stop("chat")

    in_app(place, work)


def test_one_run_at_a_time_in_each_chat(place: DurableStreams | str) -> None:
    async def work(make: Callable[..., Runs]) -> None:
        runs, first = make(), Source()
        await runs.start("chat", first)
        refused = Source()
        with pytest.raises(RunActiveError, match="in the chat 'chat'") as error:
            await runs.start("chat", refused)
        assert (error.value.code, error.value.status, refused.generated) == ("RUN_ACTIVE", 409, 0)
        for name in ("another/chat?", "..", "%-x", "流" * 256):
            other = Source(["x"])
            other.may_end.set()
            assert await text(await runs.start(name, other)) == "x"
        following = asyncio.create_task(text(await runs.resume("chat")))
        second = Source(["new"])
        replaced = await runs.start("chat", second, on_active="replace")
        second.may_end.set()
        assert await text(replaced) == "new"
        assert await following == ANSWER
        await first.closed.wait()
        latest = await runs.current("chat")
        assert latest is not None
        assert (latest.chat_id, latest.number) == ("chat", 2)

    in_app(place, work)


def test_of_many_starts_at_once_one_generates(place: DurableStreams | str) -> None:
    """In several processes, as far as the streams can tell: each has runs of its own."""

    async def work(make: Callable[..., Runs]) -> None:
        sources = [Source() for _ in range(8)]
        starts = [make().start("chat", source) for source in sources]
        results = await asyncio.gather(*starts, return_exceptions=True)
        refused = [result for result in results if isinstance(result, RunActiveError)]
        assert len(refused) == 7, results
        (started,) = [source for source in sources if source.generated or source is _of(results, sources)]
        started.may_end.set()
        assert await text(await make().resume("chat", ended=True)) == ANSWER
        assert sum(source.generated for source in sources) == len(WORDS)

    def _of(results: list[Any], sources: list[Source]) -> Source:
        return next(
            source
            for source, result in zip(sources, results, strict=True)
            if not isinstance(result, Exception)
        )

    in_app(place, work)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another process"])
def test_stop_ends_the_source_and_is_in_the_stream(place: DurableStreams | str, elsewhere: bool) -> None:
    async def work(make: Callable[..., Runs]) -> None:
        runs, source = make(format="events"), Source()
        reading = asyncio.create_task(text(await runs.start("chat", source)))
        await some(await runs.resume("chat"), 20 * len(WORDS))
        assert await (make(format="events") if elsewhere else runs).stop("chat")
        await source.closed.wait()
        found = await reading
        assert found.endswith('data: {"state":"stopped"}\n\n')
        assert found.count("event: end") == 1
        assert found.count("word") == len(WORDS)
        assert not await runs.stop("chat")
        assert not await runs.stop("never")

    in_app(place, work)


def test_another_process_takes_over(place: DurableStreams | str) -> None:
    """The older process writes nothing more, and its source is closed."""

    async def work(make: Callable[..., Runs]) -> None:
        old, new = make(), make()
        first, second = Source(["old "]), Source(["new"])
        reading = asyncio.create_task(text(await old.start("chat", first)))
        assert await some(await new.resume("chat"), 4) == "old "
        answer = await new.start("chat", second, on_active="replace")
        await first.closed.wait()
        second.may_end.set()
        assert await text(answer) == "new"
        assert await reading == "old "

    in_app(place, work)


def test_a_source_that_fails(place: DurableStreams | str, caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncIterator[str]:
        yield "half of "
        raise OSError("the key is s3cret")

    async def work(make: Callable[..., Runs]) -> None:
        found = await text(await make(format="events").start("a", failing()))
        assert found.endswith('data: {"state":"failed","error":"the answer failed"}\n\n')
        assert '"half of "' in found
        frank = make(format="ai-sdk", on_error=lambda error: type(error).__name__)
        found = await text(await frank.start("b", failing()))
        assert found.endswith('data: {"type":"error","errorText":"OSError"}\n\ndata: [DONE]\n\n')

    with caplog.at_level(logging.CRITICAL, "durable_streams.ai"):
        in_app(place, work)


CRASHING = """
import asyncio, sys
from durable_streams.ai import Runs
from durable_streams.embedded import DurableStreams

async def generate():
    for word in ("half ", "of "):
        yield word
    print("generated", flush=True)
    await asyncio.sleep(100)

async def main():
    streams = DurableStreams(sys.argv[1])
    async with streams.lifespan():
        answer = await Runs(streams, format="events", lease=1).start("chat", generate())
        async for part in answer.body:
            print("sent", flush=True)

asyncio.run(main())
"""


def test_a_crash_is_an_interruption_and_not_an_endless_answer(tmp_path: Path) -> None:
    """Of a process that is killed: the next reader of the answer finds out, and has what there is."""
    with subprocess.Popen([sys.executable, "-c", CRASHING, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said: list[bytes] = []
        while said.count(b"sent\n") < 1 or b"generated\n" not in said:
            said.append(process.stdout.readline())
        time.sleep(0.1)
        process.kill()

    async def main() -> None:
        async with (streams := DurableStreams(tmp_path)).lifespan():
            runs = Runs(streams, format="events", lease=1)
            found = await text(await runs.resume("chat"))
            assert '"half "' in found
            assert found.endswith(f'data: {{"state":"interrupted","error":"{GONE}"}}\n\n')
            assert (await runs.resume("chat")).status == 204
            again = await text(await runs.resume("chat", ended=True))
            assert [data_of(event) for event in again.split("\n\n")] == [
                data_of(event) for event in found.replace(":\n\n", "").split("\n\n")
            ]
            assert "new" in await text(await runs.start("chat", iter(["new"])))

    asyncio.run(main())


def test_the_end_of_the_application_is_an_interruption(tmp_path: Path) -> None:
    async def main() -> None:
        streams = DurableStreams(tmp_path)
        runs = Runs(streams, format="events")
        async with streams.lifespan():
            source = Source()
            await runs.start("chat", source)
            await asyncio.sleep(0.05)
        assert source.closed.is_set()
        async with (again := DurableStreams(tmp_path)).lifespan():
            found = await text(await Runs(again, format="events").resume("chat", ended=True))
        assert '"state":"interrupted"' in found

    asyncio.run(main())


def data_of(event: str) -> str:
    return event.partition("data: ")[2]


class EventSourceRequest:
    """A request of an EventSource that comes back."""

    def __init__(self, last_event_id: str) -> None:
        self.headers = {"last-event-id": last_event_id}


def test_an_event_source_comes_back_behind_each_event(place: DurableStreams | str) -> None:
    async def work(make: Callable[..., Runs]) -> None:
        runs = make(format="events")
        source = Source()
        source.may_end.set()
        whole = await text(await runs.start("chat", source))
        events = whole.removesuffix("\n\n").split("\n\n")
        assert len(events) == len(WORDS) + 1
        for number in (0, 1, 7, len(events) - 2):
            place = events[number].partition("id: ")[2].partition("\n")[0]
            answer = await runs.resume("chat", EventSourceRequest(place))
            rest = (await text(answer)).removesuffix("\n\n").split("\n\n")
            assert [data_of(event) for event in rest] == [data_of(event) for event in events[number + 1 :]]
        last = events[-1].partition("id: ")[2].partition("\n")[0]
        assert (await runs.resume("chat", EventSourceRequest(last))).status == 204, (
            "which ends an EventSource"
        )
        for strange in ("x", "1-zz:now:1", "1-a:b:c", "9" * 600):
            assert (await runs.resume("chat", EventSourceRequest(strange))).status == 204

    in_app(place, work)


def test_a_synchronous_source_runs_in_a_thread(place: DurableStreams | str) -> None:
    names, closed = [], threading.Event()

    def generate() -> Iterator[bytes]:
        try:
            for word in WORDS:
                names.append(threading.current_thread().name)
                time.sleep(0.001)
                yield word.encode()
        finally:
            closed.set()

    def endless() -> Iterator[str]:
        try:
            while True:
                time.sleep(0.005)
                yield "x"
        finally:
            closed.set()

    async def work(make: Callable[..., Runs]) -> None:
        runs = make()
        assert await text(await runs.start("chat", generate)) == ANSWER
        assert threading.main_thread().name not in names
        assert closed.is_set()
        closed.clear()
        await runs.start("chat", endless())
        await asyncio.sleep(0.05)
        assert await runs.stop("chat")
        assert closed.is_set()

    in_app(place, work)


def test_limits() -> None:
    async def endless() -> AsyncIterator[str]:
        while True:
            yield "x" * 1000
            await asyncio.sleep(0)

    async def work(make: Callable[..., Runs]) -> None:
        long = make(format="events", max_seconds=0.2)
        assert "took more than 0.2 seconds" in await text(await long.start("a", endless()))
        large = make(format="events", max_bytes=10_000)
        found = await text(await large.start("b", endless()))
        assert "larger than 10000 bytes" in found
        assert found.count("x" * 1000) == 9
        few = make(max_active=2)
        for chat in "cd":
            await few.start(chat, Source())
        with pytest.raises(RunActiveError, match="as many as max_active"):
            await few.start("e", Source())
        for chat in ("", "x" * 257, 5):
            with pytest.raises(ValueError, match="id"):
                await few.resume(chat)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="on_active"):
            await few.start("f", Source(), on_active="wait")  # type: ignore[arg-type]
        found = await text(await make(format="events").start("g", 5))
        assert '"state":"failed"' in found

    in_app(DurableStreams(), work)


def test_idle_answers_show_signs_of_life() -> None:
    async def work(make: Callable[..., Runs]) -> None:
        source = Source(["one"])
        answer = await make(format="events", lease=3).start("chat", source)
        parts = aiter(answer.body)
        while await anext(parts) != b":\n\n":
            pass
        source.may_end.set()
        assert '"state":"completed"' in "".join([part.decode() async for part in parts])

    in_app(DurableStreams(), work)


def test_a_chats_streams_are_json_for_other_clients() -> None:
    async def work(make: Callable[..., Runs]) -> None:
        runs = make(format="ai-sdk")
        await text(await runs.start("chat", iter([{"type": "start"}, {"type": "finish"}])))
        await runs.aclose()
        run = await runs.current("chat")
        assert run is not None
        stream = streams.stream(run.stream)
        assert (await stream.head()).stream_closed
        assert await (await stream.stream(live=False)).read_json() == [{"type": "start"}, {"type": "finish"}]
        with pytest.raises(DurableStreamError):
            await streams.stream(f"{run.stream}/alive").head()
        assert await runs.current("none") is None

    streams = DurableStreams()
    in_app(streams, work)
