"""What a worker of pull-wake asks, and what it makes of each answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from asking import ask, json, refusal

from durable_streams.errors import DurableStreamError, StreamNotFoundError
from durable_streams.protocol.leases import (
    Lease,
    LeaseLostError,
    Pending,
    acknowledge,
    address,
    claim,
    describe,
    release,
)
from durable_streams.protocol.request import Op, Response

ROOT = "http://host/v1/stream"
LEASE = Lease("w_1", 3, "secret", 1500, [Pending("a", "-1", "7", True)])
GRANTED = {
    "wake_id": "w_1",
    "generation": 3,
    "token": "secret",
    "lease_ttl_ms": 1500,
    "streams": [{"path": "a", "acked_offset": "-1", "tail_offset": "7", "has_pending": True}],
}
NO_JSON = Response(200, {}, b"<html>a proxy's page</html>")


def acks(*, done: bool) -> Op[bool]:
    return acknowledge(ROOT, "one", LEASE, {"a": "7"}, done=done)


def gives_back() -> Op[None]:
    return release(ROOT, "one", LEASE)


# -- addresses


@pytest.mark.parametrize("root", [ROOT, f"{ROOT}/"])
def test_the_address_of_a_subscription_and_of_its_actions(root: str) -> None:
    assert address(root, "one") == "http://host/v1/stream/__ds/subscriptions/one"
    assert address(root, "one", "ack") == "http://host/v1/stream/__ds/subscriptions/one/ack"


def test_the_id_of_a_subscription_is_one_segment() -> None:
    assert address(ROOT, "a/b ?é", "claim") == f"{ROOT}/__ds/subscriptions/a%2Fb%20%3F%C3%A9/claim"


# -- describe


def test_a_subscription_of_pull_wake_names_its_wake_stream() -> None:
    request, wake_stream = ask(describe(ROOT, "one"), json({"type": "pull-wake", "wake_stream": "wakes"}))
    assert wake_stream == "wakes"
    assert (request.method, request.url) == ("GET", f"{ROOT}/__ds/subscriptions/one")


@pytest.mark.parametrize("answer", [json({"type": "webhook"}), json({"wake_stream": None}), NO_JSON])
def test_a_worker_cannot_claim_another_kind_of_subscription(answer: Response) -> None:
    with pytest.raises(
        DurableStreamError, match=r"^The subscription 'one' is not of pull-wake: a worker cannot"
    ):
        ask(describe(ROOT, "one"), answer)


def test_there_is_no_such_subscription() -> None:
    with pytest.raises(StreamNotFoundError, match="answered 404: none of this name"):
        ask(describe(ROOT, "one"), refusal(404, "NOT_FOUND", "none of this name"))


# -- claim


def test_a_claim_names_the_worker_and_gives_the_lease() -> None:
    request, lease = ask(claim(ROOT, "one", "worker 1"), json(GRANTED))
    assert lease == LEASE
    assert lease.seconds == 1.5
    assert (request.method, request.url) == ("POST", f"{ROOT}/__ds/subscriptions/one/claim")
    assert request.headers == {"content-type": "application/json"}  # who has no lease has no token
    assert request.body == b'{"worker":"worker 1"}'


@pytest.mark.parametrize("code", ["NO_PENDING_WORK", "ALREADY_CLAIMED"])
def test_nothing_to_claim_is_no_error(code: str) -> None:
    assert ask(claim(ROOT, "one", "worker"), refusal(409, code))[1] is None


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (refusal(409, "BEING_DELETED"), "BEING_DELETED"),
        (Response(409, {}, b"no JSON"), "CONFLICT"),
        (json([], 409), "CONFLICT"),
        (refusal(503, "NO_PENDING_WORK"), "BUSY"),
        (refusal(401, "UNAUTHORIZED"), "UNAUTHORIZED"),
    ],
)
def test_another_refusal_of_a_claim_is_raised(answer: Response, code: str) -> None:
    with pytest.raises(
        DurableStreamError, match=f"^POST {ROOT}/__ds/subscriptions/one/claim answered"
    ) as raised:
        ask(claim(ROOT, "one", "worker"), answer)
    assert (raised.value.status, raised.value.code) == (answer.status, code)
    assert not isinstance(raised.value, LeaseLostError)  # there was none


@pytest.mark.parametrize("body", [b"", b"[", b'{"wake_id": "\xff"}', b"[" * 100_000])
def test_an_answer_that_is_no_json_is_no_lease(body: bytes) -> None:
    """A text that is cut, one that is not UTF-8, and one that is too deep: one error, and none of a parser."""
    for status, sentence in (
        (200, r"^The answer to the claim of 'one' is no lease\.$"),
        (409, "answered 409"),
    ):
        with pytest.raises(DurableStreamError, match=sentence):
            ask(claim(ROOT, "one", "worker"), Response(status, {"content-type": "application/json"}, body))


@pytest.mark.parametrize("missing", GRANTED)
def test_a_lease_without_one_of_its_members_is_none(missing: str) -> None:
    less = {name: value for name, value in GRANTED.items() if name != missing}
    with pytest.raises(DurableStreamError, match=r"^The answer to the claim of 'one' is no lease\.$"):
        ask(claim(ROOT, "one", "worker"), json(less))


# -- acknowledge


def test_an_acknowledgement_shows_the_token_and_names_the_wake() -> None:
    op = acknowledge(ROOT, "one", LEASE, {"a": "7", "b/c": "9"}, done=True)
    request, more = ask(op, json({"ok": True, "next_wake": True}))
    assert more
    assert (request.method, request.url) == ("POST", f"{ROOT}/__ds/subscriptions/one/ack")
    assert request.headers == {"content-type": "application/json", "authorization": "Bearer secret"}
    assert msgspec.json.decode(request.body or b"") == {
        "wake_id": "w_1",
        "generation": 3,
        "acks": [{"stream": "a", "offset": "7"}, {"stream": "b/c", "offset": "9"}],
        "done": True,
    }


def test_a_heartbeat_acknowledges_nothing() -> None:
    request, more = ask(acknowledge(ROOT, "one", LEASE, {}, done=False), json({"ok": True}))
    assert not more  # a server need not say that there is no more
    assert msgspec.json.decode(request.body or b"") == {
        "wake_id": "w_1",
        "generation": 3,
        "acks": [],
        "done": False,
    }


def test_the_worker_of_a_webhook_calls_back() -> None:
    request, _ = ask(acknowledge(ROOT, "one", LEASE, {}, done=True, action="callback"), json({"ok": True}))
    assert request.url == f"{ROOT}/__ds/subscriptions/one/callback"


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        refusal(409, "FENCED", "this wake is over"),
        refusal(401, "TOKEN_EXPIRED", "this wake is over"),
        refusal(404, "NOT_FOUND", "this wake is over"),
        Response(409, {"x": "y"}, b"this wake is over"),
    ],
)
def test_a_lease_that_is_anothers_or_over_is_lost(answer: Response, done: bool) -> None:
    with pytest.raises(LeaseLostError, match=r"ack answered 4..: this wake is over") as raised:
        ask(acks(done=done), answer)
    lost = raised.value
    assert (lost.code, lost.status, lost.headers) == ("FENCED", answer.status, answer.headers)
    assert lost.url == f"{ROOT}/__ds/subscriptions/one/ack"
    assert lost.details == (
        msgspec.json.decode(answer.body) if answer.body[:1] == b"{" else "this wake is over"
    )


@pytest.mark.parametrize(("status", "code"), [(409, "INVALID_OFFSET"), (403, "FORBIDDEN"), (503, "BUSY")])
def test_a_refusal_that_leaves_the_lease_is_no_loss_of_it(status: int, code: str) -> None:
    with pytest.raises(DurableStreamError, match="answered") as raised:
        ask(acks(done=False), refusal(status, code))
    assert (raised.value.status, raised.value.code) == (status, code)
    assert not isinstance(raised.value, LeaseLostError)


def test_an_end_whose_answer_was_lost_may_have_ended_the_lease() -> None:
    """What the earlier attempt did not acknowledge comes again with the next wake: nothing is lost."""
    fenced = refusal(409, "FENCED")
    doubtful = Response(fenced.status, fenced.headers, fenced.body, after_doubt=True)
    assert ask(acks(done=True), doubtful)[1] is False
    with pytest.raises(LeaseLostError):  # a heartbeat does not end a lease: somebody else did
        ask(acks(done=False), doubtful)
    gone = refusal(404, "NOT_FOUND")
    with pytest.raises(LeaseLostError):
        ask(acks(done=True), Response(gone.status, gone.headers, gone.body, after_doubt=True))


def test_an_end_that_succeeds_after_doubt_says_whether_there_is_more() -> None:
    assert ask(acks(done=True), Response(200, {}, b'{"next_wake":true}', after_doubt=True))[1] is True


@pytest.mark.parametrize("answer", [NO_JSON, json([]), json({"next_wake": "soon"})])
def test_an_answer_to_an_acknowledgement_that_is_none(answer: Response) -> None:
    with pytest.raises(
        DurableStreamError, match=r"^The answer to an acknowledgement is none of the protocol\.$"
    ):
        ask(acks(done=True), answer)


# -- release


def test_a_release_names_the_wake_and_acknowledges_nothing() -> None:
    request, _ = ask(gives_back(), Response(204, {}))
    assert (request.method, request.url) == ("POST", f"{ROOT}/__ds/subscriptions/one/release")
    assert request.headers["authorization"] == "Bearer secret"
    assert request.body == b'{"wake_id":"w_1","generation":3}'


@pytest.mark.parametrize("status", [401, 404, 409])
def test_a_lease_that_is_over_needs_no_release(status: int) -> None:
    assert ask(gives_back(), refusal(status, "FENCED"))[1] is None


def test_a_release_that_fails_is_raised() -> None:
    with pytest.raises(DurableStreamError, match="release answered 503: not now") as raised:
        ask(gives_back(), refusal(503, "BUSY", "not now"))
    assert raised.value.status == 503


@pytest.mark.parametrize("op", [lambda: acks(done=True), gives_back])
def test_no_error_shows_the_token(op: Callable[[], Op[Any]]) -> None:
    with pytest.raises(DurableStreamError, match="answered 500") as raised:
        ask(op(), refusal(500, "INTERNAL"))
    assert "secret" not in f"{raised.value} {vars(raised.value)}"
