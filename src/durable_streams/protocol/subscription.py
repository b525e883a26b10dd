"""A subscription (protocol section 8): durable cursors on streams, and at most one wake in flight.

Pure: times (seconds since 1970), tails (bytes) and random names are arguments; a method returns the next state, or
raises a Rejection and changes nothing.

The attributes distinguish the states. IDLE has no ``wake_id``; WAKE has one. A wake of a webhook is *due* while
``next_attempt_at`` is set (a delivery is to be made, or under way) and *accepted* once ``lease_until`` is set; one of
pull-wake is *open* until a worker claims it, and *held* while ``lease_until`` is set.

```text
from       event                           to
IDLE       wake: something is pending      WAKE, generation + 1; due (webhook) or open (pull-wake)
IDLE       claim, something is pending     WAKE, generation + 1, held
IDLE       claim, nothing is pending       409 NO_PENDING_WORK
open       claim                           held
held       claim                           409 ALREADY_CLAIMED
due        attempted: a new attempt        due, with the tails of now as its snapshot
due        delivered, done                 cursors := snapshot; IDLE
due        delivered, not done             accepted, the lease begins
due        failed                          due again after a back-off; retry_count + 1
due, accepted, held   ack                  cursors move, the lease begins again: accepted or held
due, accepted, held   ack, done            cursors move; IDLE
open, held release (pull-wake)             IDLE
accepted, held        the lease expires    IDLE, nothing acknowledged
any        ack of another wake or generation, or without a wake: 409 FENCED
any        a record of a stream that is not linked, one before the cursor or beyond the tail: 409 INVALID_OFFSET
```

Invariants: a generation is never used twice; a cursor never moves back; a lease and a retry are never due together;
IDLE with something pending is left by ``wake`` in the same commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from durable_streams.protocol import headers
from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.globs import Glob
from durable_streams.protocol.offsets import format_offset, parse_offset
from durable_streams.protocol.state import StreamState

__all__ = [
    "DEFAULT_LEASE_MS",
    "Ack",
    "Link",
    "Refusal",
    "Subscription",
    "SubscriptionConfig",
    "begins",
    "configure",
    "fenced",
    "new_subscription",
]

DEFAULT_LEASE_MS = 30_000
_LEASE_MS = (1000, 600_000)
_FIRST_RETRY, _LAST_RETRY, _JITTER = 1.0, 60.0, 0.2  # seconds, seconds, share
_RETRIES_COUNTED = 7  # after which the pause is the longest one
_LONGEST_TEXT = 1024  # characters of an id, a pattern, a path
_LONGEST_DESCRIPTION = 4096
_LONGEST_URL = 2048
_MAX_STREAMS = 1000  # explicit ones, of one request


class Refusal(Rejection):
    """A Rejection whose JSON error has more members.

    Attributes:
        details: The members.
    """

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, object]) -> None:
        super().__init__(status, code, message)
        self.details = details


class SubscriptionConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a subscription was created with, in its normal form.

    Attributes:
        type: How its workers are woken.
        pattern: The glob of its streams, None without one.
        streams: Paths of streams, sorted.
        url: Where a webhook is delivered.
        wake_stream: The path of the stream that brings the wakes of pull-wake.
        lease_ttl_ms: How long a lease lasts, in milliseconds.
        description: A text for people.
    """

    type: Literal["webhook", "pull-wake"]
    pattern: str | None = None
    streams: tuple[str, ...] = ()
    url: str | None = None
    wake_stream: str | None = None
    lease_ttl_ms: int = DEFAULT_LEASE_MS
    description: str | None = None

    @property
    def hash(self) -> str:
        """Tells whether two configurations are the same one (section 8)."""
        return sha256(_canonical(msgspec.structs.asdict(self))).hexdigest()

    @property
    def lease(self) -> float:
        """How long a lease lasts, in seconds."""
        return self.lease_ttl_ms / 1000


class Link(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A cursor on a stream.

    Attributes:
        stream: The id of the stream; 0 if there was none yet.
        acked: Up to which byte it is processed; -1 before everything.
        explicit: Whether the path was named.
        glob: Whether the pattern matched it.
    """

    stream: int
    acked: int
    explicit: bool = False
    glob: bool = False

    @property
    def type(self) -> str:
        """What is shown of it."""
        return "explicit" if self.explicit else "glob"

    @property
    def offset(self) -> str:
        """The cursor as an offset."""
        return format_offset(self.acked) if self.acked >= 0 else headers.OFFSET_START

    def pending(self, tail: int) -> bool:
        """Whether the stream has more, up to a tail in bytes."""
        return tail > max(self.acked, 0)


class Ack(msgspec.Struct):
    """One acknowledgement in a request; ``path`` is another name for ``stream``."""

    offset: str
    stream: str | None = None
    path: str | None = None


class Subscription(msgspec.Struct, frozen=True, omit_defaults=True):
    """A subscription; the module's text has its states.

    Attributes:
        id: Chosen by the client.
        incarnation: Random; another one if the id is used again after a deletion.
        config: What it was created with.
        created_at: When, in seconds since 1970.
        links: The cursors by path.
        generation: How many wakes there were.
        wake_id: The wake in flight, None when idle.
        woken_at: When that began, in seconds since 1970.
        stream: The path that woke.
        snapshot: The tails that were sent with the last delivery of a webhook.
        holder: The worker that holds the lease of pull-wake.
        lease_until: When the lease expires, in seconds since 1970.
        retry_count: How many deliveries have failed in a row.
        next_attempt_at: When the next delivery is due, in seconds since 1970.
        announced: Whether the wake was appended to the wake stream.
    """

    id: str
    incarnation: str
    config: SubscriptionConfig
    created_at: float
    links: dict[str, Link] = {}
    generation: int = 0
    wake_id: str | None = None
    woken_at: float = 0.0
    stream: str | None = None
    snapshot: dict[str, int] = {}
    holder: str | None = None
    lease_until: float | None = None
    retry_count: int = 0
    next_attempt_at: float | None = None
    announced: bool = False

    # -- what it says

    @property
    def idle(self) -> bool:
        """Whether no wake is in flight."""
        return self.wake_id is None

    @property
    def is_webhook(self) -> bool:
        """Whether workers are woken by requests to them."""
        return self.config.type == "webhook"

    @property
    def status(self) -> str:
        """``failed`` while a delivery is retried."""
        return "failed" if self.retry_count else "active"

    @property
    def due(self) -> float | None:
        """When something happens by itself, in seconds since 1970: a delivery, or the end of a lease."""
        return self.next_attempt_at if self.next_attempt_at is not None else self.lease_until

    def wants(self, path: str) -> bool:
        """Whether a stream may be linked: not the wake stream of the subscription itself, nor what is reserved."""
        return path != self.config.wake_stream and path.partition("/")[0] != headers.RESERVED

    def pending(self, tails: Mapping[str, int]) -> list[str]:
        """Return the linked paths that have data past their cursor.

        Args:
            tails: The tails of streams by path, in bytes.
        """
        links = self.links
        return [path for path, tail in tails.items() if path in links and links[path].pending(tail)]

    # -- links

    def linked(self, links: Mapping[str, Link]) -> Subscription:
        """Add links; a path that is linked keeps its cursor, and has both types."""
        merged = dict(self.links)
        for path, link in links.items():
            before = merged.get(path)
            if not self.wants(path):
                continue
            if before is not None:
                explicit, glob = before.explicit or link.explicit, before.glob or link.glob
                link = replace(before, explicit=explicit, glob=glob)  # noqa: PLW2901 - the merged one
                if link == before:
                    continue
            merged[path] = link
        return self if merged == self.links else replace(self, links=merged)

    def unlinked(self, path: str) -> Subscription:
        """Remove the explicit link of a path; one that the pattern made stays."""
        link = self.links.get(path)
        if link is None or not link.explicit:
            return self
        return self._with_link(path, replace(link, explicit=False) if link.glob else None)

    def met(self, path: str, state: StreamState | None, *, glob: bool) -> Subscription:
        """Adapt the link of a path to the stream that is there now.

        Args:
            path: The path.
            state: The stream, None if there is none.
            glob: Whether the pattern matches the path.
        """
        link = self.links.get(path)
        gone = state is None or state.deleted
        if link is not None and link.stream and (gone or state is None or state.id != link.stream):
            self, link = self._with_link(path, None), None  # noqa: PLW0642 - without the link of another stream
        if state is None or gone:
            return self
        if link is None:
            if not glob or not state.tail or not self.wants(path):
                return self  # an empty stream is linked by its first append
            return self._with_link(path, Link(state.id, begins(state), glob=True))
        if not link.stream:
            return self._with_link(path, replace(link, stream=state.id, acked=begins(state)))
        return self

    def _with_link(self, path: str, link: Link | None) -> Subscription:
        links = dict(self.links)
        if link is None:
            links.pop(path, None)
        else:
            links[path] = link
        return replace(self, links=links)

    # -- wakes

    def woken(
        self, tails: Mapping[str, int], wake_id: str, now: float, cause: str | None = None
    ) -> Subscription:
        """Begin a wake if nothing is in flight and something is pending.

        Args:
            tails: The tails by path, in bytes.
            wake_id: A new random name.
            now: The time.
            cause: The path that woke, if it is known.
        """
        pending = self.pending(tails) if self.idle else []
        if not pending:
            return self
        webhook = self.is_webhook
        return replace(
            self,
            generation=self.generation + 1,
            wake_id=wake_id,
            woken_at=now,
            stream=cause if cause in pending else pending[0],
            snapshot={path: tails[path] for path in pending} if webhook else {},
            next_attempt_at=now if webhook else None,
            announced=False,
        )

    def claimed(self, worker: str, now: float) -> Subscription:
        """Give the lease of an open wake to a worker.

        Args:
            worker: The name of the worker.
            now: The time.

        Raises:
            Refusal: Another one holds it.
            Rejection: There is no wake.
        """
        if self.holder is not None:
            raise Refusal(
                409,
                "ALREADY_CLAIMED",
                "a worker holds the lease: wait for the next wake, or until the lease expires",
                {"current_holder": self.holder, "generation": self.generation},
            )
        if self.idle:
            raise Rejection(
                409, "NO_PENDING_WORK", "no stream has anything past its cursor: wait for the next wake"
            )
        return replace(self, holder=worker, lease_until=now + self.config.lease)

    def attempted(self, tails: Mapping[str, int]) -> Subscription:
        """Take the present tails as those that a new attempt of a delivery sends."""
        snapshot = {path: tails[path] for path in self.pending(tails)}
        return self if snapshot == self.snapshot else replace(self, snapshot=snapshot)

    def delivered(self, wake_id: str, *, done: bool, now: float) -> Subscription:
        """Take a 2xx for a delivery; ``done`` acknowledges what was sent. A wake that is over changes nothing."""
        if self.wake_id != wake_id or self.next_attempt_at is None:
            return self
        if done:
            links = dict(self.links)
            for path, tail in self.snapshot.items():
                link = links.get(path)
                if link is not None and tail > link.acked:
                    links[path] = replace(link, acked=tail)
            return _ended(replace(self, links=links))
        return replace(self, lease_until=now + self.config.lease, next_attempt_at=None, retry_count=0)

    def failed(self, wake_id: str, now: float, jitter: float) -> Subscription:
        """Take a failed delivery: the same wake is delivered again after a back-off.

        Args:
            wake_id: The wake that was delivered.
            now: The time.
            jitter: A random number from -1 to 1.
        """
        if self.wake_id != wake_id or self.next_attempt_at is None:
            return self
        count = self.retry_count + 1
        pause = min(_FIRST_RETRY * 2 ** (min(count, _RETRIES_COUNTED) - 1), _LAST_RETRY)
        return replace(self, retry_count=count, next_attempt_at=now + pause * (1 + _JITTER * jitter))

    def acknowledged(
        self, acks: Iterable[Ack], tails: Mapping[str, int], now: float, *, done: bool
    ) -> Subscription:
        """Move cursors, all or none, and extend the lease, or end the wake.

        Args:
            acks: What was processed.
            tails: The tails by path, in bytes.
            now: The time.
            done: Whether the wake is over.

        Raises:
            Rejection: 409, a record that cannot be acknowledged.
        """
        links = dict(self.links)
        for ack in acks:
            path = (ack.stream if ack.stream is not None else ack.path or "").strip("/")
            link, position = links.get(path), parse_offset(ack.offset)
            if link is None:
                raise _bad_offset(f"{path[:80]!r} is no stream of this subscription")
            if position is None or not max(link.acked, 0) <= position <= tails.get(path, 0):
                raise _bad_offset(
                    f"{ack.offset[:80]!r} of {path[:80]!r} is none of its offsets from {link.offset} to its tail"
                )
            if position > link.acked:
                links[path] = replace(link, acked=position)
        moved = self if links == self.links else replace(self, links=links)
        if done:
            return _ended(moved)
        return replace(moved, lease_until=now + self.config.lease, next_attempt_at=None, retry_count=0)

    def check_fence(self, wake_id: str | None, generation: int | None, token_generation: int) -> None:
        """Raise the 409 of a request that is not about the wake in flight."""
        if self.wake_id is None or (wake_id, generation, token_generation) != (
            self.wake_id,
            self.generation,
            self.generation,
        ):
            raise fenced()

    def released(self) -> Subscription:
        """End the wake, nothing acknowledged."""
        return _ended(self)

    def expired(self, now: float) -> Subscription:
        """End the wake if its lease is over."""
        if self.next_attempt_at is not None or self.lease_until is None or now < self.lease_until:
            return self
        return _ended(self)

    def announcement(self, now: float) -> bytes:
        """Return the message of the wake for the wake stream; ``now`` is the time in seconds since 1970."""
        event = {
            "type": "wake",
            "subscription_id": self.id,
            "stream": self.stream,
            "generation": self.generation,
            "ts": int(now * 1000),
        }
        return msgspec.json.encode(event)


def begins(state: StreamState) -> int:
    """Return the cursor of a stream whose first append is news: inherited history is none (section 6)."""
    return state.fork_position if state.forked_from is not None else -1


def _ended(subscription: Subscription) -> Subscription:
    return replace(
        subscription,
        wake_id=None,
        woken_at=0.0,
        stream=None,
        snapshot={},
        holder=None,
        lease_until=None,
        retry_count=0,
        next_attempt_at=None,
        announced=False,
    )


def new_subscription(name: str, config: SubscriptionConfig, now: float, incarnation: str) -> Subscription:
    """Return a subscription without links.

    Args:
        name: The id.
        config: The configuration.
        now: The time, in seconds since 1970.
        incarnation: A random name.
    """
    return Subscription(name, incarnation, config, now)


def fenced() -> Rejection:
    """Return the 409 of a worker whose wake is over."""
    return Rejection(
        409, "FENCED", "this wake is over, nothing was acknowledged: stop, and wait for the next wake"
    )


def _bad_offset(message: str) -> Rejection:
    return Rejection(409, "INVALID_OFFSET", f"{message}; nothing was acknowledged")


# -- configurations


class _Webhook(msgspec.Struct):
    url: str


class _Asked(msgspec.Struct):
    type: Literal["webhook", "pull-wake"]
    pattern: str | None = None
    streams: list[str] | None = None
    webhook: _Webhook | None = None
    wake_stream: str | None = None
    lease_ttl_ms: int | None = None
    description: str | None = None


def configure(body: Any) -> SubscriptionConfig:
    """Return the configuration that a decoded JSON body asks for (section 8).

    Args:
        body: The decoded body.

    Raises:
        ValueError: What it asks for makes no sense; one sentence.
    """
    lease = body.get("lease_ttl_ms") if isinstance(body, dict) else None
    if lease is not None and type(lease) is not int:
        raise ValueError(f"lease_ttl_ms is a whole number of milliseconds, not {lease!r:.80}")
    try:
        asked = msgspec.convert(body, _Asked)
    except msgspec.ValidationError as error:
        raise ValueError(f"this is no subscription: {error}") from None
    low, high = _LEASE_MS
    ttl = DEFAULT_LEASE_MS if asked.lease_ttl_ms is None else asked.lease_ttl_ms
    if not low <= ttl <= high:
        raise ValueError(f"lease_ttl_ms is from {low} to {high}, not {ttl}")
    pattern, streams = asked.pattern or None, paths(asked.streams or ())
    if pattern is None and not streams:
        raise ValueError("a subscription needs a pattern, streams, or both")
    if pattern is not None:
        _check_length("pattern", pattern, _LONGEST_TEXT)
        Glob(pattern)
    _check_length("description", asked.description or "", _LONGEST_DESCRIPTION)
    webhook = asked.type == "webhook"
    url = asked.webhook.url if webhook and asked.webhook is not None else None
    wake_stream = None if webhook else (asked.wake_stream or "").strip("/")
    if webhook and not url:
        raise ValueError("a webhook subscription needs webhook.url, where its wakes are sent")
    if not webhook and not wake_stream:
        raise ValueError("a pull-wake subscription needs wake_stream, the path of a stream of JSON")
    _check_length("webhook.url", url or "", _LONGEST_URL)
    _check_length("wake_stream", wake_stream or "", _LONGEST_TEXT)
    return SubscriptionConfig(asked.type, pattern, streams, url, wake_stream, ttl, asked.description)


def paths(given: Iterable[str]) -> tuple[str, ...]:
    """Return paths of streams in their normal form, sorted, each once.

    Args:
        given: The paths, with or without slashes around them.

    Raises:
        ValueError: One of them is none, or there are too many.
    """
    found = sorted({path.strip("/") for path in given})
    if len(found) > _MAX_STREAMS:
        raise ValueError(f"at most {_MAX_STREAMS} streams can be named at once, these are {len(found)}")
    for path in found:
        if not path or len(path) > _LONGEST_TEXT or path.partition("/")[0] == headers.RESERVED:
            raise ValueError(f"{path[:80]!r} is no path of a stream")
    return tuple(found)


def _check_length(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(f"{name} has at most {most} characters, this one has {len(text)}")


def _canonical(value: dict[str, Any]) -> bytes:
    return msgspec.json.Encoder(order="sorted").encode(value)
