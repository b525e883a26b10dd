"""What a client asks about subscriptions, and what it makes of each answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asking import ask, json, refusal

from durable_streams.errors import DurableStreamError, StreamExistsError, StreamNotFoundError
from durable_streams.protocol.request import Op, Response
from durable_streams.protocol.subscription_operations import (
    LinkedSubscription,
    create_subscription,
    delete_subscription,
    list_following,
    list_subscriptions,
    read_subscription,
)

ROOT = "http://host/v1/stream"
ONE = f"{ROOT}/__ds/subscriptions/a%2Fb"
ASKED = {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wakes"}


@pytest.mark.parametrize(("status", "new"), [(201, True), (200, False)])
def test_create_says_whether_the_subscription_is_new(status: int, new: bool) -> None:
    request, answer = ask(create_subscription(ROOT, "a/b", ASKED), json({"id": "a/b", **ASKED}, status))
    assert answer == ({"id": "a/b", **ASKED}, new)
    assert (request.method, request.url) == ("PUT", ONE)
    assert request.headers == {"content-type": "application/json"}
    assert request.body == b'{"type":"pull-wake","pattern":"events/*","wake_stream":"wakes"}'
    assert request.idempotent  # the equal one is confirmed


def test_create_refuses_another_configuration() -> None:
    with pytest.raises(StreamExistsError, match="answered 409: it has another pattern"):
        ask(create_subscription(ROOT, "a/b", ASKED), refusal(409, "EXISTS", "it has another pattern"))


def test_read_returns_what_the_server_says() -> None:
    request, answer = ask(read_subscription(ROOT, "a/b"), json({"id": "a/b", "status": "active"}))
    assert answer == {"id": "a/b", "status": "active"}
    assert (request.method, request.url, request.body) == ("GET", ONE, None)


@pytest.mark.parametrize("root", [ROOT, f"{ROOT}/"])
def test_list_returns_the_ids(root: str) -> None:
    answer = json({"subscriptions": [{"id": "a/b", "status": "active"}, {"id": "c"}]})
    request, names = ask(list_subscriptions(root), answer)
    assert names == ["a/b", "c"]
    assert (request.method, request.url) == ("GET", f"{ROOT}/__ds/subscriptions")


def test_delete_asks_once() -> None:
    request, _ = ask(delete_subscription(ROOT, "a/b"), Response(204, {}))
    assert (request.method, request.url, request.idempotent) == ("DELETE", ONE, True)


OPERATIONS: dict[str, Callable[[], Op[Any]]] = {
    "create": lambda: create_subscription(ROOT, "a/b", ASKED),
    "read": lambda: read_subscription(ROOT, "a/b"),
    "list": lambda: list_subscriptions(ROOT),
    "delete": lambda: delete_subscription(ROOT, "a/b"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("status", [202, 301, 403, 503])
def test_an_answer_that_is_no_success_is_raised(operation: str, status: int) -> None:
    with pytest.raises(
        DurableStreamError, match=rf"/__ds/subscriptions\S* answered {status}: not this way\.$"
    ):
        ask(OPERATIONS[operation](), refusal(status, "NO", "not this way"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_server_without_subscriptions(operation: str) -> None:
    with pytest.raises(StreamNotFoundError, match="answered 404"):
        ask(OPERATIONS[operation](), Response(404, {}))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"subscriptions":'])
@pytest.mark.parametrize("operation", ["create", "read", "list"])
def test_a_success_that_is_no_json_of_the_protocol(operation: str, body: bytes) -> None:
    said = rf"^(PUT|GET) {ROOT}/__ds/subscriptions\S* answered something that is no JSON of its own\.$"
    with pytest.raises(DurableStreamError, match=said):
        ask(OPERATIONS[operation](), Response(200, {}, body))


@pytest.mark.parametrize(
    "body", [{}, {"subscriptions": {}}, {"subscriptions": [{}]}, {"subscriptions": ["a"]}]
)
def test_a_list_of_something_else(body: object) -> None:
    with pytest.raises(DurableStreamError, match="no JSON of its own"):
        ask(list_subscriptions(ROOT), json(body))


def test_read_asks_for_the_lag() -> None:
    request, answer = ask(read_subscription(ROOT, "a/b", lag=True), json({"id": "a/b", "lag_bytes": 7}))
    assert request.url == f"{ONE}?lag=true"
    assert answer["lag_bytes"] == 7


def test_followers_of_a_stream() -> None:
    said = {"subscriptions": [{"id": "a", "acked_offset": "-1", "lag_bytes": 7}, {"id": "of another server"}]}
    request, answer = ask(list_following(f"{ROOT}/", "x/ä b"), json(said))
    assert request.url == f"{ROOT}/__ds/subscriptions?stream=x%2F%C3%A4+b"
    assert answer == [LinkedSubscription("a", "-1", 7)]
    with pytest.raises(DurableStreamError, match="no JSON of its own"):
        ask(list_following(ROOT, "x"), Response(200, {}, b"<html>"))
    with pytest.raises(StreamNotFoundError):
        ask(list_following(ROOT, "x"), refusal(404, "NOT_FOUND"))
