"""One generation: a task that moves a source's items into a run's stream, until the source or somebody ends it.

Invariants: the task belongs to no request; it ends when its run was ended elsewhere, and then writes nothing more;
every end of it closes the source, and closes the stream unless another process did, or the store cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any

from durable_streams.ai.chats import Chats, Run
from durable_streams.ai.formats import Format, State
from durable_streams.ai.places import JSON
from durable_streams.ai.sources import items_of
from durable_streams.client.aio_producer import IdempotentProducer
from durable_streams.errors import DurableStreamError, StreamClosedError, StreamNotFoundError
from durable_streams.protocol.jsonvalues import encode

__all__ = ["Job", "JobLimits"]

_BEATS = 3  # in a lease
_LOOK = 1.0  # seconds between two looks at whether the run was ended elsewhere
_log = logging.getLogger("durable_streams.ai")


class JobLimits:
    """What one generation may take.

    Args:
        seconds: How long it may last.
        size: How many bytes of messages it may store.
    """

    def __init__(self, seconds: float, size: int) -> None:
        self.seconds = seconds
        self.size = size


class _TooMuchError(Exception):
    """The answer is larger than its limit."""


class Job:
    """The generation of one run, from its construction on.

    Args:
        chats: Where the run is.
        run: The run.
        form: How its items are stored.
        source: What gives them, as `items_of` takes it.
        limits: What it may take.
        explain: Returns the sentence that a reader of the answer gets for an error of the source.
    """

    def __init__(
        self,
        chats: Chats,
        run: Run,
        form: Format,
        source: Any,
        limits: JobLimits,
        *,
        explain: Callable[[Exception], str],
    ) -> None:
        self.run = run
        self._chats = chats
        self._form = form
        self._limits = limits
        self._explain = explain
        self._writer = form.writer()
        self._size = 0
        self._state: State = "completed"
        self._reason: str | None = None
        self._is_fenced = False
        self._is_ending = False
        self._producer = IdempotentProducer(
            chats.place.url(run.stream),
            "run",
            linger_ms=0,
            content_type=JSON,
            client=chats.place.client,
            on_error=self._lost,
        )
        self.task = asyncio.create_task(self._work(source), name=f"run {run.stream}")
        self._generating: asyncio.Task[None] | None = None

    def end(self, state: State, reason: str | None = None) -> None:
        """End the generation in this state, soon; nothing if it is about to end already.

        Args:
            state: How it ends.
            reason: The sentence that its readers get, None where nothing went wrong.
        """
        if self._state == "completed" and not self._is_ending:
            self._state, self._reason = state, reason
            if self._generating is not None:
                self._generating.cancel()

    def _lost(self, error: Exception) -> None:
        """Note that the stream takes nothing more."""
        if self._is_ending:
            return
        if isinstance(error, (StreamClosedError, StreamNotFoundError)):
            self._is_fenced = True  # ended elsewhere
        else:
            _log.error("%s cannot be written to, and ends: %s", self.run.stream, error)
        self.end("interrupted")

    async def _work(self, source: Any) -> None:
        beating = asyncio.create_task(self._beat())
        too_long = asyncio.get_running_loop().call_later(
            self._limits.seconds,
            self.end,
            "failed",
            f"the answer took more than {self._limits.seconds:g} seconds",
        )
        try:
            await self._generate(source)
            await self._finish()
        except DurableStreamError as error:
            _log.error("%s has no end in its stream: %s", self.run.stream, error)
        finally:
            too_long.cancel()
            beating.cancel()
            await self._producer.abandon()
            await self._chats.release(self.run)

    async def _generate(self, source: Any) -> None:
        """Move all items; whatever goes wrong becomes the state of the end."""
        self._generating = asyncio.create_task(self._move(source))
        if self._state != "completed":
            self._generating.cancel()
        try:
            await asyncio.wait({self._generating})
        except asyncio.CancelledError:  # the event loop ends
            self.end("interrupted")
            await asyncio.wait({self._generating})
        if self._generating.cancelled():
            if self._state == "completed":  # the source cancelled itself
                self._state = "interrupted"
            return
        error = self._generating.exception()
        if error is not None and not self._is_fenced and self._state == "completed":
            self._state = "failed"
            if isinstance(error, _TooMuchError):
                self._reason = str(error)
            else:
                _log.error("the generation of %s failed", self.run.stream, exc_info=error)
                self._reason = self._explain(error) if isinstance(error, Exception) else "the answer failed"

    async def _move(self, source: Any) -> None:
        async with aclosing(items_of(source)) as items:
            async for item in items:
                await self._put(self._writer.messages(item))

    async def _put(self, messages: Iterable[Any]) -> None:
        for message in messages:
            data = encode(message)
            self._size += len(data)
            if self._size > self._limits.size:
                raise _TooMuchError(f"the answer is larger than {self._limits.size} bytes")
            await self._producer.put(data)

    async def _finish(self) -> None:
        """Store the end, unless the run was ended elsewhere."""
        self._is_ending = True
        if self._is_fenced:
            return
        self._size = 0  # the end has room in any case
        try:
            await self._put(self._writer.last(self._state))
            await self._producer.close_stream(_raw(self._form.ending(self._state, self._reason)))
        except StreamClosedError:
            pass  # ended elsewhere meanwhile
        else:
            await self._producer.close()

    async def _beat(self) -> None:
        """Keep the run's lease, and notice its end elsewhere while the source is silent."""
        renewal = self._chats.lease / _BEATS
        kept = time.monotonic()
        while True:
            await asyncio.sleep(min(renewal, _LOOK))
            try:
                if not await self._chats.is_open(self.run):
                    self._is_fenced = True
                    self.end("interrupted")
                    return
                if time.monotonic() - kept >= renewal - _LOOK / 2:
                    kept = time.monotonic()
                    await self._chats.keep_alive(self.run)
            except DurableStreamError as error:
                _log.warning("the lease of %s could not be kept: %s", self.run.stream, error)


def _raw(message: Any) -> bytes | None:
    return None if message is None else encode(message)
