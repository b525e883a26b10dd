"""What the server answers while its store cannot say what is current, and from a glance that lags behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from durable_streams.protocol.commands import Append, Appended
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import StreamState
from durable_streams.server.app import App
from durable_streams.server.asgi import AsgiApp
from durable_streams.server.config import ServerConfig
from durable_streams.stores.base import Chunk, StoreUnavailableError, StoreUncertainError
from durable_streams.stores.memory import MemoryStore
from durable_streams.stores.slots import SlotWatch

TEXT = "text/plain"
SHORT = 0.2  # seconds
LONG = 20.0


class Gateway(MemoryStore):
    """A store that other servers write to as well: what it sees at a glance can be held back, and it can be cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, StreamState | None] = {}
        self.cut_off = self.unreadable = self.unheard = False
        self.watched = asyncio.Event()

    async def get(self, path: str) -> StreamState | None:
        if self.cut_off:
            raise StoreUnavailableError("NATS cannot be reached; nothing of this request was stored")
        return await super().get(path)

    async def glance(self, path: str) -> StreamState | None:
        return self.seen[path] if path in self.seen else await super().get(path)

    async def read(self, state: StreamState, start: int, limit: int) -> Chunk:
        if self.unreadable:
            raise StoreUnavailableError("NATS cannot be reached")
        return await super().read(state, start, limit)

    async def read_piece(self, state: StreamState, start: int, limit: int, *, aligned: bool = False) -> Chunk:
        if self.unreadable:
            raise StoreUnavailableError("NATS cannot be reached")
        return await super().read_piece(state, start, limit, aligned=aligned)

    async def append(self, path: str, command: Append) -> Appended:
        appended = await super().append(path, command)
        if self.unheard:
            raise StoreUncertainError("the append may have been stored")
        return appended

    async def watch(self, path: str) -> SlotWatch:
        self.watched.set()
        return await super().watch(path)

    async def hold_back(self, path: str) -> None:
        """Let `glance` go on seeing what there is now."""
        self.seen[path] = await super().get(path)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])

    @property
    def offset(self) -> str:
        return self.headers["stream-next-offset"]


class Client:
    """Requests to the application, over ASGI."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def ask(self, method: str, query: str = "", body: bytes = b"", **headers: str) -> Answer:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await self.send(method, query, body, send, headers)
        return self.answer(sent)

    async def send(
        self,
        method: str,
        query: str,
        body: bytes,
        send: Callable[[Any], Awaitable[None]],
        headers: dict[str, str],
    ) -> None:
        incoming = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if not incoming:
                await asyncio.Event().wait()  # the client stays
            return incoming.pop()

        given = {"host": "test", "content_type": TEXT, **headers}
        scope = {
            "type": "http",
            "method": method,
            "path": "/v1/stream/s",
            "query_string": query.encode(),
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()],
        }
        await self._app(scope, receive, send)

    @staticmethod
    def answer(sent: list[Any]) -> Answer:
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], headers, b"".join(message["body"] for message in sent[1:]))


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[Gateway, Client]]:
    store = Gateway()
    app = AsgiApp(App(store, ServerConfig(long_poll_timeout=SHORT, sse_heartbeat=SHORT, **settings)))
    await app.startup()
    try:
        yield store, Client(app)
    finally:
        store.cut_off = store.unreadable = False
        await app.shutdown()


def test_a_refusal_seen_at_a_glance_is_checked() -> None:
    async def main() -> None:
        async with serving() as (store, client):
            await store.hold_back("s")  # there is no such stream
            await client.ask("PUT")
            assert (await client.ask("POST", body=b"a")).status == 204
            await store.hold_back("s")  # a stream of text
            await client.ask("DELETE")
            await client.ask("PUT", content_type="application/json")
            assert (await client.ask("POST", body=b"[1]", content_type="application/json")).status == 204
            store.cut_off = True
            refused = await client.ask("POST", body=b"[1]", content_type="application/json")
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            store.cut_off = False
            store.seen.clear()
            assert (await client.ask("POST", body=b"b")).code == "CONFLICT_CONTENT_TYPE"
            assert (await client.ask("GET")).body == b"[1]"

    asyncio.run(main())


def test_an_append_that_was_accepted_at_a_glance_is_decided_on_what_is_true() -> None:
    async def main() -> None:
        async with serving() as (store, client):
            await client.ask("PUT")
            await store.hold_back("s")
            await client.ask("POST", stream_closed="true")
            assert (await client.ask("POST", body=b"a")).code == "STREAM_CLOSED"

    asyncio.run(main())


def test_an_outcome_that_was_not_heard_is_not_offered_for_repetition() -> None:
    async def main() -> None:
        async with serving() as (store, client):
            await client.ask("PUT")
            store.unheard = True
            answer = await client.ask("POST", body=b"a")
            assert (answer.status, answer.code) == (503, "OUTCOME_UNKNOWN")
            assert "retry-after" not in answer.headers

    asyncio.run(main())


@pytest.mark.parametrize("closed", [False, True])
def test_reads_in_an_outage_go_as_far_as_what_is_known(closed: bool) -> None:
    async def main() -> None:
        async with serving(chunk_size=4) as (store, client):
            await client.ask("PUT", body=b"aaaa")
            await client.ask("POST", body=b"bbbb", **({"stream_closed": "true"} if closed else {}))
            await store.hold_back("s")
            if not closed:
                await client.ask("POST", body=b"cccc")
            store.cut_off = True
            everything = await client.ask("GET", "offset=-1")
            assert (everything.status, everything.body) == (200, b"aaaabbbb")
            first = await client.ask("GET", "offset=-1", stream_max_bytes="4")
            assert (first.status, first.body) == (200, b"aaaa")
            second = await client.ask("GET", f"offset={first.offset}")
            assert (second.status, second.body) == (200, b"bbbb")
            for answer in (everything, first, second):
                assert "stream-up-to-date" not in answer.headers
                assert "stream-closed" not in answer.headers
            repeated = await client.ask("GET", f"offset={first.offset}", if_none_match=second.headers["etag"])
            assert repeated.status == 304
            beyond = format_offset(1000)
            for query in (f"offset={second.offset}", f"offset={beyond}", "offset=now", "offset=nonsense"):
                answer = await client.ask("GET", query)
                assert (answer.status, answer.headers["retry-after"]) == (503, "1"), query
            store.cut_off = False
            assert (await client.ask("GET", f"offset={second.offset}")).headers["stream-up-to-date"] == "true"

    asyncio.run(main())


def test_nothing_but_a_catch_up_is_answered_from_a_glance() -> None:
    async def main() -> None:
        async with serving() as (store, client):
            await client.ask("PUT", body=b"a")
            store.cut_off = True
            for method, query in [
                ("HEAD", ""),
                ("GET", "offset=-1&live=sse"),
                ("GET", "offset=-1&live=long-poll"),
            ]:
                answer = await client.ask(method, query)
                assert (answer.status, answer.headers["retry-after"]) == (503, "1"), (method, query)
            store.seen["s"] = None
            assert (await client.ask("GET")).status == 503

    asyncio.run(main())


def test_a_long_poll_does_not_say_up_to_date_when_nobody_knows() -> None:
    async def main() -> None:
        async with serving() as (store, client):
            await client.ask("PUT", body=b"a")
            waiting = asyncio.create_task(client.ask("GET", "offset=now&live=long-poll"))
            await asyncio.wait_for(store.watched.wait(), LONG)
            store.cut_off = True
            answer = await asyncio.wait_for(waiting, LONG)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")

    asyncio.run(main())


def test_an_event_stream_waits_for_what_cannot_be_read_now() -> None:
    async def main() -> None:
        async with serving(chunk_size=4) as (store, client):
            await client.ask("PUT", body=b"aaaa")
            await client.ask("POST", body=b"bbbb", stream_closed="true")
            received = bytearray()
            beats = asyncio.Event()

            async def send(message: Any) -> None:
                received.extend(message.get("body", b""))
                store.unreadable = b"aaaa" in received and not beats.is_set()
                if b"keep-alive" in received:
                    beats.set()

            listening = asyncio.create_task(client.send("GET", "offset=-1&live=sse", b"", send, {}))
            await asyncio.wait_for(beats.wait(), LONG)
            assert b"bbbb" not in received
            assert b"upToDate" not in received
            store.unreadable = False
            await asyncio.wait_for(listening, LONG)
            assert received.count(b"aaaa") == received.count(b"bbbb") == 1
            assert received.index(b"bbbb") < received.index(b"streamClosed")

    asyncio.run(main())
