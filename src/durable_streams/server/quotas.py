"""How much each caller may do (``--limits limits.toml``): requests and bytes a second, live reads at a time.

Invariants: what is refused was not begun; callers are counted by the subject of their grant; what is remembered of
callers is bounded, and those that have nothing to be remembered are forgotten first.

    [default]                # a caller that has no table of its own
    requests = 100           # a second
    bytes = 1048576          # of bodies, a second
    live_reads = 50          # at a time
    burst = 2                # how many seconds' worth may come at once

    [caller.worker]          # the key, or keys, of that name; what it does not say is as in [default]
    requests = 1000

    [all]
    live_reads = 10000       # of all callers

What is stored below a prefix of paths is limited in the same file (`space`).
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable

import msgspec

from durable_streams.protocol.buckets import TokenBucket
from durable_streams.protocol.commands import Rejection
from durable_streams.server.http import AnswerBody, ServerResponse
from durable_streams.server.toml import Watched, toml_as

__all__ = ["Allowance", "LiveRead", "QuotaFile", "Quotas", "Room", "parse_quotas"]

_MAX_CALLERS = 10_000
_MAX_PREFIXES = 1000
_BURST = 1.0  # seconds


class Allowance(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What one caller may do; None is no limit.

    Args:
        requests: Requests a second.
        bytes: Bytes of bodies a second.
        live_reads: Live reads at a time.
        burst: How many seconds' worth may come at once.
    """

    requests: float | None = None
    bytes: float | None = None
    live_reads: int | None = None
    burst: float | None = None

    def over(self, other: Allowance) -> Allowance:
        """Return this one, with what it does not say from another one."""
        given = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        return msgspec.structs.replace(other, **given)

    def check(self, where: str) -> None:
        """Raise ValueError if a limit makes no sense."""
        for name, value in msgspec.structs.asdict(self).items():
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} of {where} is a number above 0, not {value}")


class _All(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    live_reads: int | None = None


class Room(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How much there may be below a prefix of paths; None is no limit.

    Args:
        streams: Streams.
        bytes: Their bytes that can be read.
    """

    streams: int | None = None
    bytes: int | None = None


class QuotaFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a file of limits says."""

    default: Allowance = Allowance()
    caller: dict[str, Allowance] = {}
    all: _All = _All()
    prefix: dict[str, Room] = {}


def parse_quotas(text: str) -> QuotaFile:
    """Return the limits of a file's text; raises ValueError with one sentence."""
    file = toml_as(text, QuotaFile)
    file.default.check("[default]")
    for name, allowance in file.caller.items():
        allowance.check(f"[caller.{name}]")
    if file.all.live_reads is not None and file.all.live_reads < 1:
        raise ValueError(f"live_reads of [all] is a number above 0, not {file.all.live_reads}")
    if len(file.prefix) > _MAX_PREFIXES:
        raise ValueError(f"it has more than {_MAX_PREFIXES} prefixes")
    for prefix, room in file.prefix.items():
        if not prefix or prefix[0] == "/":
            raise ValueError(f"[prefix.{prefix!r}] is no beginning of a stream's path, such as tenants/a/")
        for name, value in msgspec.structs.asdict(room).items():
            if value is not None and value < 0:
                raise ValueError(f"{name} of [prefix.{prefix!r}] is a number from 0, not {value}")
    return file


class _Caller:
    """What a caller has done of late."""

    __slots__ = ("bytes", "live_reads", "most_live_reads", "requests")

    def __init__(self, allowance: Allowance, now: float) -> None:
        burst = allowance.burst or _BURST
        self.requests = _bucket(allowance.requests, burst, now)
        self.bytes = _bucket(allowance.bytes, burst, now)
        self.live_reads = 0
        self.most_live_reads = allowance.live_reads

    def is_idle(self, now: float) -> bool:
        return not self.live_reads and all(
            bucket is None or bucket.is_full(now) for bucket in (self.requests, self.bytes)
        )


def _bucket(rate: float | None, burst: float, now: float) -> TokenBucket | None:
    # At least one request, or byte, fits into a bucket: a rate below one a second means pauses, not never.
    return None if rate is None else TokenBucket(rate, max(1.0, rate * burst), now)


class Quotas:
    """Counts what callers do, against the limits of a file."""

    def __init__(self, file: Watched[QuotaFile], now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._now = now
        self._limits = file.value()
        self._callers: dict[str, _Caller] = {}
        self._live_reads = 0

    def admit(self, subject: str) -> None:
        """Count a request; raises the 429 of one that is too much."""
        now = self._now()
        caller = self._caller(subject, now)
        if caller.requests is not None:
            if wait := caller.requests.wait(1, now):
                raise _too_much("requests a second", wait)
            caller.requests.take(1)
        if caller.bytes is not None and (wait := caller.bytes.wait(1, now)):
            raise _too_much("bytes a second", wait)

    def count(self, subject: str, size: int) -> None:
        """Count the body of a request that was admitted."""
        caller = self._callers.get(subject)
        if caller is not None and caller.bytes is not None:
            caller.bytes.take(size)

    def begin_live_read(self, subject: str) -> LiveRead:
        """Count a live read until it is released; raises the 429 of one that is too much."""
        caller = self._caller(subject, self._now())
        if caller.most_live_reads is not None and caller.live_reads >= caller.most_live_reads:
            raise _too_much("live reads at a time", 1)
        most = self._limits.all.live_reads
        if most is not None and self._live_reads >= most:
            raise _too_much("live reads of all callers", 1)
        caller.live_reads += 1
        self._live_reads += 1

        def release() -> None:
            caller.live_reads -= 1
            self._live_reads -= 1

        return LiveRead(release)

    def _caller(self, subject: str, now: float) -> _Caller:
        limits = self._file.value()
        if limits is not self._limits:
            self._change(limits, now)
        caller = self._callers.get(subject)
        if caller is None:
            if len(self._callers) >= _MAX_CALLERS:
                self._forget(now)
            caller = self._callers[subject] = _Caller(self._allowance(subject), now)
        return caller

    def _allowance(self, subject: str) -> Allowance:
        own = self._limits.caller.get(subject)
        return self._limits.default if own is None else own.over(self._limits.default)

    def _change(self, limits: QuotaFile, now: float) -> None:
        self._limits = limits
        known, self._callers = self._callers, {}
        for subject, before in known.items():
            if before.live_reads:
                # The reads go on, and are counted where they began.
                after = _Caller(self._allowance(subject), now)
                before.requests, before.bytes = after.requests, after.bytes
                before.most_live_reads = after.most_live_reads
                self._callers[subject] = before

    def _forget(self, now: float) -> None:
        self._callers = {name: caller for name, caller in self._callers.items() if not caller.is_idle(now)}
        if len(self._callers) >= _MAX_CALLERS:  # those without a read begin with a full bucket again
            self._callers = {name: caller for name, caller in self._callers.items() if caller.live_reads}
        while len(self._callers) >= _MAX_CALLERS:
            del self._callers[next(iter(self._callers))]


class LiveRead:
    """A live read that counts until it is released, once."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Count it no more."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def carried_by(self, response: ServerResponse) -> ServerResponse:
        """Let it end with an answer."""
        if isinstance(response.body, bytes):
            self.release()
        else:
            response.body = _CountedBody(response.body, self)
        return response

    def __del__(self) -> None:
        self.release()  # an answer that was never begun is not closed either


class _CountedBody:
    """The body of a live read."""

    def __init__(self, body: AnswerBody, read: LiveRead) -> None:
        self._body = body
        self._read = read

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._body)

    async def aclose(self) -> None:
        """Release what the parts are made from. See AnswerBody."""
        try:
            await self._body.aclose()
        finally:
            self._read.release()


def _too_much(what: str, wait: float) -> Rejection:
    seconds = str(max(1, math.ceil(wait)))
    return Rejection(
        429,
        "RATE_LIMITED",
        f"this caller has used up its {what}: try again in {seconds} s",
        {"retry-after": seconds},
    )
