"""A local imitation of X API v2's filtered stream and its other streams, for tests, and for readers without an account.

Invariants: all state belongs to the server's event loop, and public methods return once they took effect there; a
record goes out whole, ended by CR LF, in the order of publishing; a record that is published while no
connection is open is lost, unless the next connection asks for backfill in time.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from aiohttp import web

from durable_streams.testing.background import Background, Stoppable
from durable_streams.testing.faults import Faults
from durable_streams.testing.proxy import Proxy
from xdk_testing.feed import LONGEST_BACKFILL, Feed, RateLimit
from xdk_testing.rules import PROBLEMS, Rules, invalid_request

__all__ = ["Attempt", "XFilteredStream"]

T = TypeVar("T")

_PATH = "/2/tweets/search/stream"
_EVERY_PATH = r"/2/{stream:(?:[a-z0-9]+/)+stream(?:/lang/[a-z]+)?}"
_LINE_END = b"\r\n"
_RATE_WINDOW = 15  # minutes
_OPERATIONAL = {
    "title": "operational-disconnect",
    "disconnect_type": "UpstreamOperationalDisconnect",
    "detail": "This stream has been disconnected upstream for operational reasons.",
    "type": f"{PROBLEMS}operational-disconnect",
}
_TOO_MANY = {
    "title": "ConnectionException",
    "detail": "This stream is currently at the maximum allowed connection limit.",
    "connection_issue": "TooManyConnections",
    "type": f"{PROBLEMS}streaming-connection",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A request for a stream: the status of its answer, its query, its headers (names in lower case) and its path."""

    status: int
    query: dict[str, str]
    headers: dict[str, str]
    path: str = _PATH


class XFilteredStream(Stoppable):
    """The filtered stream of X API v2 at ``stream_url``, with its rules at ``rules_url``.

    It runs when the constructor returns. The paths of X's other streams (``/2/tweets/sample/stream``,
    ``/2/users/compliance/stream`` and so on) give the same records.

    ``publish(record)`` sends a record to every open connection, with the ``matching_rules`` that match it.
    ``disconnect()``, ``drop()`` and ``stall()`` act on the open connections, ``faults`` and ``refuse()``
    on the next requests. Use it as a context manager, or call ``stop()``.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        bearer_token: The token that requests must have; the attribute may be changed later.
        heartbeat: After how many seconds of silence a CR LF is sent.
        connections: How many connections may be open at once.
        rate_limit: How many requests for the stream are allowed in fifteen minutes.
        minute: How many seconds a minute lasts, for backfill and for the rate limit.
        overlap: How many seconds before a disconnection backfill starts, which makes duplicates.
        compress: Whether clients that accept gzip get it, as from X.
        rules: The rules at the start; of X's query language only words have an effect. The default matches everything.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        bearer_token: str = "test-token",  # noqa: S107 - no secret
        heartbeat: float = 20.0,
        connections: int = 1,
        rate_limit: int = 50,
        minute: float = 60.0,
        overlap: float = 5.0,
        compress: bool = True,
        rules: Iterable[str] = ("lang:en",),
    ) -> None:
        self.bearer_token = bearer_token
        self.faults = Faults()
        self._feed = Feed(
            heartbeat=heartbeat, connections=connections, minute=minute, overlap=overlap, compress=compress
        )
        self._limit = RateLimit(rate_limit, _RATE_WINDOW * minute)
        self._rules = Rules(rules)
        self._attempts: list[Attempt] = []
        listener = socket.create_server((host, port), backlog=128)
        self.base_url = f"http://{host}:{listener.getsockname()[1]}"
        self._background = Background[asyncio.AbstractEventLoop](
            "durable-streams-x", lambda stop, ready: self._main(listener, stop, ready)
        )

    @property
    def stream_url(self) -> str:
        """The URL of the filtered stream."""
        return self.base_url + _PATH

    @property
    def rules_url(self) -> str:
        """The URL of its rules."""
        return f"{self.base_url}{_PATH}/rules"

    @property
    def attempts(self) -> list[Attempt]:
        """The requests for the stream so far, without those that a fault answered."""
        return list(self._attempts)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._feed.readers)

    def publish(self, *records: Mapping[str, Any] | bytes) -> int:
        """Send records to every open connection; return how many of them matched a rule, or needed to match none.

        A record without ``matching_rules`` gets those that match its text, and goes out only if there are any. Bytes
        go out as they are, as one line.
        """
        lines = [line for record in records if (line := self._line(record)) is not None]
        self._do(lambda: self._feed.publish(lines))
        return len(lines)

    def wait_for_connections(self, count: int = 1, timeout: float = 10.0) -> None:
        """Wait until at least this many connections are open; raises TimeoutError after ``timeout`` seconds."""
        self._run(self._feed.wait(lambda open_now: open_now >= count, timeout))

    def wait_for_no_connection(self, timeout: float = 10.0) -> None:
        """Wait until no connection is open; raises TimeoutError after ``timeout`` seconds."""
        self._run(self._feed.wait(lambda open_now: open_now == 0, timeout))

    def disconnect(self, error: Mapping[str, Any] | None = None) -> None:
        """End all connections as X does: with an ``errors`` record, by default an operational disconnect."""
        last = _encoded({"errors": [_OPERATIONAL if error is None else dict(error)]}) + _LINE_END
        self._do(lambda: self._feed.end(last, "regular"))

    def end(self) -> None:
        """End all connections with nothing but the regular end of the answer."""
        self._do(lambda: self._feed.end(b"", "regular"))

    def drop(self, *, partial: bytes = b"", reset: bool = False) -> None:
        """End all connections in the middle of the answer, after ``partial`` of one more record.

        ``reset``: break them, so that what is still on its way may be lost too.
        """
        self._do(lambda: self._feed.end(partial, "reset" if reset else "cut"))

    def stall(self) -> None:
        """Fall silent on the open connections, heartbeats included, without ending them."""
        self._do(self._feed.stall)

    def refuse(
        self, status: int, *, retry_after: float | None = None, times: int | None = 1, **headers: str
    ) -> None:
        """Answer the next requests with a status and X's body for it. ``x_name="..."`` is the header ``x-name``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.respond(
            status,
            retry_after=retry_after,
            times=times,
            body=_encoded(_problem(status)),
            headers={"content-type": "application/json; charset=utf-8", **named},
        )

    # -- the server

    async def _main(
        self,
        listener: socket.socket,
        stop: asyncio.Event,
        ready: Callable[[asyncio.AbstractEventLoop], None],
    ) -> None:
        app = web.Application()
        app.router.add_get(_EVERY_PATH, self._stream, allow_head=False)
        app.router.add_get(f"{_PATH}/rules", self._list_rules)
        app.router.add_post(f"{_PATH}/rules", self._change_rules)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy = Proxy(self.faults.take)
        proxy.upstream.set_result(runner.addresses[0][:2])
        await proxy.open(listener)
        ready(asyncio.get_running_loop())
        await stop.wait()
        await proxy.close()
        await runner.cleanup()

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        allowed, limits = self._limit.take()
        minutes = request.query.get("backfill_minutes", "0")
        status, body = self._admission(request, allowed=allowed, minutes=minutes)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self._attempts.append(Attempt(status, dict(request.query), headers, request.path))
        if status != 200:
            return web.json_response(body, status=status, headers=limits)
        return await self._feed.serve(request, int(minutes), limits)

    def _admission(self, request: web.Request, *, allowed: bool, minutes: str) -> tuple[int, dict[str, Any]]:
        if not self._authorised(request):
            return 401, _problem(401)
        if not allowed:
            return 429, _problem(429)
        if not (minutes.isdecimal() and int(minutes) <= LONGEST_BACKFILL):
            message = f"The `backfill_minutes` query parameter value [{minutes}] is not between 0 and 5"
            return 400, invalid_request({"backfill_minutes": [minutes]}, message)
        return (429, _TOO_MANY) if self._feed.full else (200, {})

    async def _list_rules(self, request: web.Request) -> web.Response:
        if not self._authorised(request):
            return web.json_response(_problem(401), status=401)
        return web.json_response(self._rules.answer(request.query))

    async def _change_rules(self, request: web.Request) -> web.Response:
        if not self._authorised(request):
            return web.json_response(_problem(401), status=401)
        try:
            body = await request.json()
        except ValueError:
            body = None
        status, answer = self._rules.change(body, dry_run=request.query.get("dry_run") == "true")
        return web.json_response(answer, status=status)

    def _authorised(self, request: web.Request) -> bool:
        return request.headers.get("Authorization", "") == f"Bearer {self.bearer_token}"

    # -- the loop

    def _line(self, record: Mapping[str, Any] | bytes) -> bytes | None:
        if isinstance(record, bytes):
            return record + _LINE_END
        if "matching_rules" not in record:
            matching = self._rules.matching(record)
            if not matching:
                return None
            record = {**record, "matching_rules": matching}
        return _encoded(record) + _LINE_END

    def _do(self, act: Callable[[], T]) -> T:
        async def run() -> T:
            return act()

        return self._run(run())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            running = asyncio.run_coroutine_threadsafe(work, self._background.value)
        except RuntimeError:
            work.close()
            raise RuntimeError("This imitation of X was stopped.") from None
        return running.result()


def _problem(status: int) -> dict[str, Any]:
    title = HTTPStatus(status).phrase
    return {"title": title, "detail": title, "type": "about:blank", "status": status}


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
