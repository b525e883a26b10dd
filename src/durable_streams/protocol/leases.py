"""What a worker of pull-wake asks the server (protocol section 8): claim, acknowledge, release.

Each is a generator whose only effect is a request. Invariant: an answer that says that the lease is another's, or over,
is LeaseLostError, whatever the request was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from durable_streams.errors import DurableStreamError
from durable_streams.protocol.headers import RESERVED
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.request import Op, Request, Response, error_from

__all__ = ["Lease", "LeaseLostError", "Pending", "acknowledge", "address", "claim", "describe", "release"]

_LOST = {401, 404, 409}
_NOTHING = {"NO_PENDING_WORK", "ALREADY_CLAIMED"}


class LeaseLostError(DurableStreamError):
    """The lease ended before the worker was done: another one may have the same data. Nothing more is acknowledged."""

    default_code = "FENCED"


class Pending(msgspec.Struct, frozen=True):
    """A stream of a lease.

    Attributes:
        path: The path of the stream, below the root.
        acked_offset: Up to where it is processed.
        tail_offset: Its tail at the time of the claim.
        has_pending: Whether there is anything between the two.
    """

    path: str
    acked_offset: str
    tail_offset: str
    has_pending: bool


class Lease(msgspec.Struct, frozen=True):
    """What a claim gives.

    Attributes:
        wake_id: The id of the wake.
        generation: Its number.
        token: What proves that the lease is the worker's. It is a secret.
        lease_ttl_ms: How long the lease lasts without a heartbeat, in milliseconds.
        streams: The streams of the subscription.
    """

    wake_id: str
    generation: int
    token: str
    lease_ttl_ms: int
    streams: list[Pending]

    @property
    def seconds(self) -> float:
        """How long the lease lasts without a heartbeat, in seconds."""
        return self.lease_ttl_ms / 1000


class _Ok(msgspec.Struct):
    next_wake: bool = False


class _Error(msgspec.Struct):
    code: str = ""


class _Refused(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


class _Description(msgspec.Struct):
    wake_stream: str


def address(root: str, subscription: str, action: str = "") -> str:
    """Return the URL of a subscription, or of an action on it.

    Args:
        root: The URL of the root of the streams.
        subscription: The id of the subscription.
        action: The action, ``""`` for the subscription itself.
    """
    below = f"/{action}" if action else ""
    return f"{root.rstrip('/')}/{RESERVED}/subscriptions/{quote(subscription, safe='')}{below}"


def describe(root: str, subscription: str) -> Op[str]:
    """Return the path of the wake stream of a subscription.

    Args:
        root: The URL of the root of the streams.
        subscription: The id of the subscription.

    Raises:
        DurableStreamError: There is no such subscription of pull-wake.
    """
    request = Request("GET", address(root, subscription))
    response = yield request
    if response.status != 200:
        raise error_from(response, request)
    try:
        return msgspec.json.decode(response.body, type=_Description).wake_stream
    except MALFORMED:
        raise DurableStreamError(
            f"The subscription {subscription!r} is not of pull-wake: a worker cannot claim it."
        ) from None


def claim(root: str, subscription: str, worker: str) -> Op[Lease | None]:
    """Take the lease; return None if there is nothing to do, or another worker has it.

    Args:
        root: The URL of the root of the streams.
        subscription: The id of the subscription.
        worker: The name of the worker.
    """
    request = _post(root, subscription, "claim", {"worker": worker})
    response = yield request
    if response.status == 409 and _code(response) in _NOTHING:
        return None
    if response.status != 200:
        raise error_from(response, request)
    try:
        return msgspec.json.decode(response.body, type=Lease)
    except MALFORMED:
        raise DurableStreamError(f"The answer to the claim of {subscription!r} is no lease.") from None


def acknowledge(
    root: str,
    subscription: str,
    lease: Lease,
    offsets: Mapping[str, str],
    *,
    done: bool,
    action: str = "ack",
) -> Op[bool]:
    """Move cursors and extend the lease, or end it; return whether there is more to do.

    Args:
        root: The URL of the root of the streams.
        subscription: The id of the subscription.
        lease: The lease.
        offsets: Up to where each stream is processed, by its path.
        done: Whether the lease ends.
        action: ``"ack"``, or ``"callback"`` for the wake of a webhook.

    Raises:
        LeaseLostError: The lease is over; nothing was acknowledged.
    """
    acks = [{"stream": path, "offset": offset} for path, offset in offsets.items()]
    request = _post(root, subscription, action, {"acks": acks, "done": done}, lease)
    response = yield request
    if done and response.after_doubt and _code(response) == "FENCED":
        return False  # an earlier attempt, whose answer was lost, may have ended it: what it did not, comes again
    _check(response, request)
    try:
        return msgspec.json.decode(response.body, type=_Ok).next_wake
    except MALFORMED:
        raise DurableStreamError("The answer to an acknowledgement is none of the protocol.") from None


def release(root: str, subscription: str, lease: Lease) -> Op[None]:
    """Give the lease back, with nothing acknowledged; one that is over is left alone.

    Args:
        root: The URL of the root of the streams.
        subscription: The id of the subscription.
        lease: The lease.
    """
    request = _post(root, subscription, "release", {}, lease)
    response = yield request
    if response.status not in {204, *_LOST}:
        raise error_from(response, request)


def _check(response: Response, request: Request) -> None:
    if response.status == 200:
        return
    error = error_from(response, request)
    if response.status in _LOST and _code(response) != "INVALID_OFFSET":
        raise LeaseLostError(
            str(error), status=error.status, details=error.details, url=error.url, headers=error.headers
        )
    raise error


def _post(
    root: str, subscription: str, action: str, body: dict[str, Any], lease: Lease | None = None
) -> Request:
    headers = {"content-type": "application/json"}
    if lease is not None:
        headers["authorization"] = f"Bearer {lease.token}"
        body = {"wake_id": lease.wake_id, "generation": lease.generation, **body}
    return Request("POST", address(root, subscription, action), headers, msgspec.json.encode(body))


def _code(response: Response) -> str:
    try:
        return msgspec.json.decode(response.body, type=_Refused).error.code
    except MALFORMED:
        return ""
