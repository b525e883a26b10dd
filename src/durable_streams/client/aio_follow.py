"""Many streams over one connection, async: `afollow`. I/O only; the decisions are in `protocol.follower`.

Invariants: a connection is open only while events are asked for, and is released on every way out; what breaks a wait
off from outside moves nothing: the next call goes on from `offsets`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.aio_performer import AsyncPerformer, next_effect, open_exchange, settled
from durable_streams.client.base import AsyncOnError, CallOptions, FollowingBase, make_options, random
from durable_streams.client.sides import ASYNC
from durable_streams.client.transports import AsyncExchange, async_transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.errors import DurableStreamError
from durable_streams.protocol import headers as h
from durable_streams.protocol.effects import Call, Effect, Give
from durable_streams.protocol.follower import Follower
from durable_streams.protocol.request import Request, check_url
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import AsyncHeadersLike, AsyncParamsLike, Followed, Offset

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AsyncFollowing", "afollow"]


def afollow(
    root: str,
    streams: Sequence[str],
    *,
    offsets: Offset | Mapping[str, Offset] = h.OFFSET_START,
    headers: AsyncHeadersLike | None = None,
    params: AsyncParamsLike | None = None,
    on_error: AsyncOnError | None = None,
    client: Any = None,
    timeout: TimeoutLike | None = None,
    trickle_timeout: float | None = None,
    retry: RetryPolicy | None = None,
) -> AsyncFollowing:
    """Follow many streams of a server over one connection (an extension: ``__ds/follow``).

    The first request is made when the first event is asked for, and its errors are raised there. A stream that ends,
    or cannot be read, ends alone: its last event says why.

    Args:
        root: The URL of the server's streams, such as ``http://127.0.0.1:4437/v1/stream``; with a path behind it, all
            streams are below that path.
        streams: The paths of 1 to 100 streams, each once.
        offsets: Where each stream begins: an offset, ``"-1"`` or ``"now"`` for all, or one for each by its path, as
            `offsets` of an earlier call said; those that are not named begin at the start.
        headers: Headers of each request; values may be callables, async ones too, called for every attempt.
        params: Query parameters of each request, in the same form.
        on_error: A callable (it may be async) that is given an error that would end all. None lets it; a mapping,
            perhaps with fresh ``headers`` or ``params``, goes on from the same positions.
        client: A client of httpx, httpx2 or aiohttp; None for one that all calls of an event loop share.
        timeout: Seconds of silence before a connection counts as stalled; None for 90. Or a pair of seconds, for
            connecting and reading, or an ``httpx.Timeout``.
        trickle_timeout: Seconds that a refusal may trickle beyond that; None for 30.
        retry: How failures are retried; None for five retries until the first event, and forever afterwards.

    Returns:
        What to iterate over, for the events of all streams.

    Raises:
        ValueError: The URL is not absolute, or another argument makes no sense.
    """
    options = make_options(
        client and async_transport_for(client),
        headers,
        params,
        timeout,
        retry,
        trickle_timeout=trickle_timeout,
    )
    follower = Follower(
        check_url(root),
        streams,
        random=random,
        clock=time.monotonic,
        offsets=offsets,
        policy=options.retry,
        trickle=options.trickle,
    )
    return AsyncFollowing(follower, options, on_error)


class AsyncFollowing(FollowingBase, AsyncPerformer):
    """The events of many streams, until all of them have ended. Made by `afollow`.

    Use it in an ``async with`` block, or call `aclose`. An iteration that something from outside broke off can be gone
    on with.

    Args:
        follower: The machine.
        options: How requests are made.
        on_error: As for `afollow`.
    """

    def __init__(self, follower: Follower, options: CallOptions, on_error: AsyncOnError | None) -> None:
        FollowingBase.__init__(self, follower, options, on_error)
        AsyncPerformer.__init__(self)

    def __aiter__(self) -> AsyncIterator[Followed]:
        """Iterate over the events as they arrive."""
        return self

    async def __anext__(self) -> Followed:
        """Return the next event.

        Raises:
            DurableStreamError: A refusal of the whole request, or a failure that no retry can fix.
        """
        try:
            effect: Effect | None = next_effect(self._machine)
            while effect is not None and not isinstance(effect, Give):
                effect = await self._perform(self._machine, effect)
        except DurableStreamError:
            await self.aclose()
            raise
        except BaseException:
            self._machine = self._follower.run()
            await self._release()
            raise
        if effect is None:
            await self.aclose()
            raise StopAsyncIteration
        event: Followed = effect.value
        return event

    async def aclose(self) -> None:
        """End, and release the connection. From another task it ends the wait for an event, too."""
        await self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Dropped with an open connection, which must not wait for the garbage collector.
        if self._exchange is not None:
            if ASYNC:
                self._interrupt.later(self._exchange.close)
            else:
                self._release()

    async def _open(self, request: Request) -> AsyncExchange:
        return await open_exchange(request, self._options, self._interrupt)

    async def _called(self, call: Call) -> bool:
        if self._on_error is None:
            return False
        answer = self._on_error(call.arguments[0])
        if ASYNC:
            answer = await settled(answer)
        return self._goes_on(answer)
