# Made from client/aio_follow.py by tools/make_sync.py: change that file, then run `make generate`.

"""Many streams over one connection, sync: `follow`. I/O only; the decisions are in `protocol.follower`.

Invariants: a connection is open only while events are asked for, and is released on every way out; what breaks
a wait off from outside moves nothing: the next call goes on from `offsets`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.base import CallOptions, FollowingBase, OnError, make_options, random
from durable_streams.client.sync_performer import Performer, next_effect, open_exchange
from durable_streams.client.transports import Exchange, transport_for
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.errors import DurableStreamError
from durable_streams.protocol import headers as h
from durable_streams.protocol.effects import Call, Effect, Give
from durable_streams.protocol.follower import Follower
from durable_streams.protocol.request import Request, check_url
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import Followed, HeadersLike, Offset, ParamsLike

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Following", "follow"]


def follow(
    root: str,
    streams: Sequence[str],
    *,
    offsets: Offset | Mapping[str, Offset] = h.OFFSET_START,
    headers: HeadersLike | None = None,
    params: ParamsLike | None = None,
    on_error: OnError | None = None,
    client: Any = None,
    timeout: TimeoutLike | None = None,
    trickle_timeout: float | None = None,
    retry: RetryPolicy | None = None,
) -> Following:
    """Follow many streams of a server over one connection (an extension: ``__ds/follow``).

    The first request is made when the first event is asked for, and its errors are raised there. A stream that
    ends, or cannot be read, ends alone: its last event says why.

    Args:
        root: The URL of the server's streams, such as ``http://127.0.0.1:4437/v1/stream``; with a path behind
            it, all streams are below that path.
        streams: The paths of 1 to 100 streams, each once.
        offsets: Where each stream begins: an offset, ``"-1"`` or ``"now"`` for all, or one for each by its
            path, as `offsets` of an earlier call said; those that are not named begin at the start.
        headers: Headers of each request; values may be callables, called for every attempt.
        params: Query parameters of each request, in the same form.
        on_error: A callable that is given an error that would end all. None lets it; a mapping, perhaps with
            fresh ``headers`` or ``params``, goes on from the same positions.
        client: A client of httpx, httpx2, requests or urllib3; None for one that the process shares.
        timeout: Seconds of silence before a connection counts as stalled; None for 90. Or a pair of seconds,
            for connecting and reading, or an ``httpx.Timeout``.
        trickle_timeout: Seconds that a refusal may trickle beyond that; None for 30.
        retry: How failures are retried; None for five retries until the first event, and forever afterwards.

    Returns:
        What to iterate over, for the events of all streams.

    Raises:
        ValueError: The URL is not absolute, or another argument makes no sense.
    """
    options = make_options(
        client and transport_for(client),
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
    return Following(follower, options, on_error)


class Following(FollowingBase, Performer):
    """The events of many streams, until all of them have ended. Made by `follow`.

    Use it in a ``with`` block, or call `close`. An iteration that something from outside broke off can be gone
    on with.

    Args:
        follower: The machine.
        options: How requests are made.
        on_error: As for `follow`.
    """

    def __init__(self, follower: Follower, options: CallOptions, on_error: OnError | None) -> None:
        FollowingBase.__init__(self, follower, options, on_error)
        Performer.__init__(self)

    def __iter__(self) -> Iterator[Followed]:
        """Iterate over the events as they arrive."""
        return self

    def __next__(self) -> Followed:
        """Return the next event.

        Raises:
            DurableStreamError: A refusal of the whole request, or a failure that no retry can fix.
        """
        try:
            effect: Effect | None = next_effect(self._machine)
            while effect is not None and not isinstance(effect, Give):
                effect = self._perform(self._machine, effect)
        except DurableStreamError:
            self.close()
            raise
        except BaseException:
            self._machine = self._follower.run()
            self._release()
            raise
        if effect is None:
            self.close()
            raise StopIteration
        event: Followed = effect.value
        return event

    def close(self) -> None:
        """End, and release the connection. From another task it ends the wait for an event, too."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Dropped with an open connection, which must not wait for the garbage collector.
        if self._exchange is not None:
            self._release()

    def _open(self, request: Request) -> Exchange:
        return open_exchange(request, self._options, self._interrupt)

    def _called(self, call: Call) -> bool:
        if self._on_error is None:
            return False
        answer = self._on_error(call.arguments[0])
        return self._goes_on(answer)
