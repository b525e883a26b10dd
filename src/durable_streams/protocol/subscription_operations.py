"""The one-shot operations on subscriptions (protocol section 8): create, read, list, delete.

Each is a generator whose only effect is a request; it raises the error of `error_from` for an answer that is not its
success.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from durable_streams.errors import DurableStreamError
from durable_streams.protocol.headers import RESERVED
from durable_streams.protocol.jsonparser import MALFORMED
from durable_streams.protocol.leases import address
from durable_streams.protocol.request import Op, Request, Response, error_from

__all__ = [
    "LinkedSubscription",
    "create_subscription",
    "delete_subscription",
    "list_following",
    "list_subscriptions",
    "read_subscription",
]


class _Named(msgspec.Struct):
    id: str


class LinkedSubscription(msgspec.Struct, frozen=True):
    """A subscription that is linked to a stream.

    Attributes:
        id: The id of the subscription.
        acked_offset: Its cursor.
        lag_bytes: How many bytes of the stream are past it; None of a server that does not say it.
    """

    id: str
    acked_offset: str = ""
    lag_bytes: int | None = None


class _Linked(msgspec.Struct):
    subscriptions: list[LinkedSubscription]


class _List(msgspec.Struct):
    subscriptions: list[_Named]


def create_subscription(root: str, name: str, asked: Mapping[str, Any]) -> Op[tuple[dict[str, Any], bool]]:
    """Create a subscription, or confirm the equal one; return what the server says of it, and whether it is new.

    Args:
        root: The URL of the root of the streams.
        name: The id of the subscription.
        asked: Its configuration, as the protocol spells it.
    """
    request = Request(
        "PUT", address(root, name), {"content-type": "application/json"}, msgspec.json.encode(asked)
    )
    response = yield request
    if response.status not in {200, 201}:
        raise error_from(response, request)
    return _object(response, request), response.status == 201


def read_subscription(root: str, name: str, *, lag: bool = False) -> Op[dict[str, Any]]:
    """Return what the server says of a subscription.

    Args:
        root: The URL of the root of the streams.
        name: The id of the subscription.
        lag: Whether to ask how far behind it is (``lag_bytes``), which servers other than ours may not say.
    """
    request = Request("GET", address(root, name) + ("?lag=true" if lag else ""))
    response = yield request
    if response.status != 200:
        raise error_from(response, request)
    return _object(response, request)


def list_subscriptions(root: str) -> Op[list[str]]:
    """Return the ids of all subscriptions; servers other than ours may not have this.

    Args:
        root: The URL of the root of the streams.
    """
    request = Request("GET", f"{root.rstrip('/')}/{RESERVED}/subscriptions")
    response = yield request
    if response.status != 200:
        raise error_from(response, request)
    try:
        return [one.id for one in msgspec.json.decode(response.body, type=_List).subscriptions]
    except MALFORMED:
        raise _no_json(request) from None


def list_following(root: str, path: str) -> Op[list[LinkedSubscription]]:
    """Return the subscriptions of a stream with how far behind they are; servers other than ours may not have this.

    Args:
        root: The URL of the root of the streams.
        path: The path of the stream.
    """
    request = Request("GET", f"{root.rstrip('/')}/{RESERVED}/subscriptions?{urlencode({'stream': path})}")
    response = yield request
    if response.status != 200:
        raise error_from(response, request)
    try:
        found = msgspec.json.decode(response.body, type=_Linked).subscriptions
    except MALFORMED:
        raise _no_json(request) from None
    return [one for one in found if one.lag_bytes is not None]


def delete_subscription(root: str, name: str) -> Op[None]:
    """Delete a subscription; there may be none.

    Args:
        root: The URL of the root of the streams.
        name: The id of the subscription.
    """
    request = Request("DELETE", address(root, name))
    response = yield request
    if response.status != 204:
        raise error_from(response, request)


def _object(response: Response, request: Request) -> dict[str, Any]:
    try:
        return msgspec.json.decode(response.body, type=dict[str, Any])
    except MALFORMED:
        raise _no_json(request) from None


def _no_json(request: Request) -> DurableStreamError:
    return DurableStreamError(
        f"{request.method} {request.url} answered something that is no JSON of its own."
    )
