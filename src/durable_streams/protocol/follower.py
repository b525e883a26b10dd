"""Many streams followed over one connection, as a machine (`effects`): the client's side of `following`.

`Follower.run` gives a `Followed` at a time. It calls ``on_error(error)`` for an error that no retry can fix; the call
returns whether the caller has removed the cause. It may be begun again at any time: it goes on from `offsets`.

Invariants: `offsets` moves with the handing over of an event, so that nothing is skipped or given twice, wherever a
connection ends; a stream that has ended is not asked for again; no stream's position goes back; the back-off grows
with every connection that brings nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from durable_streams.errors import (
    DurableStreamError,
    FetchError,
    RetentionGoneError,
    SSENotSupportedError,
    StreamNotFoundError,
    StreamParseError,
)
from durable_streams.protocol import headers as h
from durable_streams.protocol.effects import READ, RELEASE, Call, Give, Head, Machine, Pause, Send
from durable_streams.protocol.exchange import read_short_body
from durable_streams.protocol.following import MAX_STREAMS, PartError, decoded_event, joined
from durable_streams.protocol.lines import DEFAULT_LIMIT
from durable_streams.protocol.request import Request, Response, error_from, parse_retry_after, with_query
from durable_streams.protocol.resources import split_root
from durable_streams.protocol.retry import (
    DEFAULT_POLICY,
    ENDLESS,
    RetryPolicy,
    is_retryable_status,
)
from durable_streams.protocol.sse import SSEDecoder, SSEEvent
from durable_streams.types import Followed

__all__ = ["Follower"]

_LIVE_POLICY = replace(DEFAULT_POLICY, max_retries=ENDLESS, max_delay=2.0)
_RESERVED = (h.OFFSET_START, h.OFFSET_NOW)
_FORMS = 2  # bytes of an event for each of its data: base64, or text whose characters are escaped
_HEALTHY = 5.0  # seconds after which a connection that ended well is no failure, whatever it brought


class Follower:
    """Follows streams of one server.

    Args:
        root: The URL of the server's streams, perhaps with a path behind it that all paths begin with.
        streams: The paths below it.
        random: Gives numbers in [0, 1) for jitter.
        clock: Gives seconds of any steady clock.
        offsets: Where each stream begins: one offset for all, or one for each by its path.
        policy: How failures are retried; None for the default, and forever once the first event came.
        limit: The most bytes of data that one event may have.
        trickle: Seconds that the body of a refusal may take.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        root: str,
        streams: Sequence[str],
        *,
        random: Callable[[], float],
        clock: Callable[[], float],
        offsets: str | Mapping[str, str],
        policy: RetryPolicy | None,
        limit: int = DEFAULT_LIMIT,
        trickle: float,
    ) -> None:
        if isinstance(streams, str) or not 1 <= len(streams) <= MAX_STREAMS:
            raise ValueError(
                f"follow takes a list of 1 to {MAX_STREAMS} paths of streams, not {streams!r:.80}."
            )
        if len(set(streams)) < len(streams):
            raise ValueError("follow takes each stream once, and one of these paths is there twice.")
        given = offsets if isinstance(offsets, Mapping) else dict.fromkeys(streams, offsets)
        if unknown := set(given) - set(streams):
            raise ValueError(f"offsets names {min(unknown)!r}, which is none of the streams.")
        self.offsets: dict[str, str] = {path: given.get(path, h.OFFSET_START) for path in streams}
        """Where each stream is: behind the data that was handed over."""
        self.ended: set[str] = set()
        """The streams of which nothing more comes."""
        root, below = split_root(root)
        self.url = f"{root}/__ds/follow"
        self._below = f"{below}/" if below else ""
        self._names = {self._below + path: path for path in streams}
        self._random, self._clock = random, clock
        self._policy, self._limit, self._trickle = policy, limit, trickle
        self._failures = 0
        self._began = self._progress = False

    @property
    def finished(self) -> bool:
        """Whether all streams have ended."""
        return len(self.ended) == len(self.offsets)

    def run(self) -> Machine[None]:
        """Return the machine that follows until all streams have ended; it raises the error that no retry can fix."""
        delay = 0.0
        while not self.finished:
            if delay:
                yield Pause(delay)
            began, self._progress = self._clock(), False
            try:
                failure = yield from self._connection()
            except DurableStreamError as error:
                yield RELEASE
                if not (yield Call("on_error", (error,))):
                    raise
                failure = error
            if self._progress or (failure is None and self._clock() - began >= _HEALTHY):
                self._failures = 0
                delay = 0.0
            else:
                delay = self._next_delay(failure)

    def _next_delay(self, failure: DurableStreamError | None) -> float:
        policy = self._policy or (_LIVE_POLICY if self._began else DEFAULT_POLICY)
        if failure is not None and not policy.allows(self._failures):
            raise failure
        asked = None if failure is None else failure.retry_after
        delay = policy.delay(self._failures, self._random, asked)
        self._failures += 1
        return delay

    def _connection(self) -> Machine[DurableStreamError | None]:
        """Give what one connection brings; return its failure, None where it ended well."""
        request = self._request()
        try:
            head: Head = yield Send(request)
            if head.status != 200:
                return (yield from self._refused(request, head))
            if h.media_type(head.headers.get("content-type", "")) != h.SSE_CONTENT_TYPE:
                raise SSENotSupportedError(
                    f"{self.url} does not answer with an event stream; check that it is a server of this project.",
                    url=self.url,
                    status=head.status,
                )
            decoder = SSEDecoder(_FORMS * self._limit)
            while not self.finished and (chunk := (yield READ)):
                for event in decoder.feed(chunk):
                    yield from self._event(event)
        except FetchError as error:
            yield RELEASE
            return error
        yield RELEASE
        return None

    def _request(self) -> Request:
        paths = [path for path in self.offsets if path not in self.ended]
        query = {
            "streams": joined([self._below + path for path in paths]),
            "offsets": ",".join(self.offsets[path] for path in paths),
        }
        headers = {"accept": h.SSE_CONTENT_TYPE}
        return Request("GET", with_query(self.url, query), headers, streaming=True, trickle=self._trickle)

    def _refused(self, request: Request, head: Head) -> Machine[DurableStreamError]:
        """Return the error of an answer that a retry may fix; raises any other one."""
        body = yield from read_short_body(self._clock, self._trickle)
        yield RELEASE
        error = error_from(Response(head.status, head.headers, body), request)
        error.retry_after = parse_retry_after(head.headers)
        if is_retryable_status(head.status):
            return error
        raise error

    def _event(self, event: SSEEvent) -> Machine[None]:
        if event.event not in ("data", "tail", "end"):
            return  # of a later version
        said = decoded_event(event.data)
        path = self._names.get(said.stream)
        if path is None or path in self.ended:
            raise StreamParseError(
                f"The server sent an event of {said.stream!r:.80}, which was not asked for."
            )
        if said.offset:
            self._move(path, said.offset)
        elif said.error is None:
            raise StreamParseError("An event has no offset.", code="BAD_OFFSET", url=self.url)
        self._began = self._progress = True
        error = None if said.error is None else _error_of(said.error, self._url_of(path))
        if said.closed or error is not None:
            self.ended.add(path)
        yield Give(Followed(path, said.data, said.offset or None, said.closed, error))

    def _move(self, path: str, offset: str) -> None:
        before = self.offsets[path]
        if not h.is_position(offset) or (before not in _RESERVED and offset.rstrip("x") < before.rstrip("x")):
            raise StreamParseError(
                f"After offset {before} of {path} the server named {offset!r:.80}.",
                code="BAD_OFFSET",
                url=self.url,
            )
        self.offsets[path] = offset

    def _url_of(self, path: str) -> str:
        return self.url.removesuffix("__ds/follow") + self._below + path


def _error_of(said: PartError, url: str) -> DurableStreamError:
    context: dict[str, Any] = {"url": url, "code": said.code, "status": said.status or None}
    message = f"{url}: {said.message}."
    if said.status == 404:
        return StreamNotFoundError(message, **context)
    if said.status == 410:
        return RetentionGoneError(message, earliest=said.earliest, **context)
    return DurableStreamError(message, **context)
