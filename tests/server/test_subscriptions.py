"""Subscriptions over HTTP (protocol section 8), against a real server; what the public suite does not test."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from itertools import count

import pytest
from subscribing import ACCEPTED, DONE, Api, Claim, Delivery, Reply, Subscribed, eventually, parsed, receiving

from durable_streams.server import ServerConfig
from durable_streams.testing import InMemoryStreamServer

START = "-1"
_folders = count()


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    config = ServerConfig(webhook_allow_http_localhost=True)
    with InMemoryStreamServer(config=config) as server:
        port = int(server.base_url.rpartition(":")[2])
        yield Api(lambda: port)


@pytest.fixture
def events() -> str:
    """Give a folder of the test's own."""
    return f"events-{next(_folders)}"


def error(of) -> str:
    code = of.json["error"]["code"]
    assert isinstance(code, str)
    return code


# -- addresses


def test_what_is_not_there(api) -> None:
    missing = "__ds/subscriptions/missing"
    for method, path in [
        ("GET", missing),
        ("HEAD", missing),
        ("POST", f"{missing}/streams"),
        ("DELETE", f"{missing}/streams/a"),
        ("POST", f"{missing}/claim"),
        ("POST", f"{missing}/ack"),
        ("POST", f"{missing}/release"),
        ("POST", f"{missing}/callback"),
        ("POST", f"{missing}/other"),
        ("GET", "__ds/other"),
        ("GET", "__ds"),
        ("GET", "__ds/jwks.json/more"),
    ]:
        body = {"worker": "w", "streams": ["a"]} if method == "POST" else None
        assert api.call(method, path, body).status == 404, (method, path)
    assert error(api.call("GET", missing)) == "SUBSCRIPTION_NOT_FOUND"
    assert api.call("DELETE", missing).status == 204


def test_methods_that_are_not_there(api) -> None:
    for method, path, allowed in [
        ("POST", "__ds/subscriptions/x", "PUT"),
        ("GET", "__ds/subscriptions/x/claim", "POST"),
        ("PUT", "__ds/subscriptions/x/streams/a", "DELETE"),
        ("POST", "__ds/jwks.json", "GET"),
        ("PUT", "__ds/subscriptions", "GET"),
    ]:
        refused = api.call(method, path, {})
        assert refused.status == 405, (method, path)
        assert allowed in refused.headers["allow"]


def test_bodies_that_make_no_sense(api, events) -> None:
    one = api.pull(f"{events}/*")
    for action, body in [
        ("", b"{"),
        ("", b"[1]"),
        ("", {"type": "pull-wake", "pattern": "a", "wake_stream": one.wake_stream, "lease_ttl_ms": True}),
        ("", {"type": "pull-wake", "pattern": "a", "wake_stream": f"{events}/not-there"}),
        ("/claim", {}),
        ("/claim", {"worker": ""}),
        ("/claim", {"worker": 5}),
        ("/streams", {"streams": "a"}),
        ("/streams", {"streams": ["/"]}),
        ("/streams", b"[" * 100_000),
    ]:
        refused = api.call("POST" if action else "PUT", one.path + action, body)
        assert (refused.status, error(refused)) == (400, "INVALID_REQUEST"), (action, body)


def test_a_subscription_is_confirmed_and_not_replaced(api, events) -> None:
    one = api.pull(f"{events}/*", description="first")
    again = api.call("PUT", one.path, {**one.asked, "description": "first"})
    assert (again.status, again.json) == (200, one.made.json)
    other = api.call("PUT", one.path, {**one.asked, "description": "second"})
    assert (other.status, error(other)) == (409, "SUBSCRIPTION_ALREADY_EXISTS")
    assert {"id": one.name} in api.call("GET", "__ds/subscriptions").json["subscriptions"]
    head = api.call("HEAD", one.path)
    assert (head.status, head.body) == (200, b"")
    one.delete()
    assert api.call("PUT", one.path, {**one.asked, "description": "second"}).status == 201


# -- links


def test_what_exists_is_linked_at_its_tail_and_wakes_nobody(api, events) -> None:
    api.append(f"{events}/old", 1)
    api.append(f"{events}/other/old", 1)
    one = api.pull(f"{events}/*", streams=[f"{events}/other/old", f"{events}/later"])
    assert one.links() == {
        f"{events}/old": api.tail(f"{events}/old"),
        f"{events}/other/old": api.tail(f"{events}/other/old"),
        f"{events}/later": START,
    }
    assert error(one.refused_claim()) == "NO_PENDING_WORK"
    api.append(f"{events}/later", 1)
    assert one.claim().streams[f"{events}/later"]["acked_offset"] == START


def test_an_empty_stream_is_linked_by_its_first_append(api, events) -> None:
    one = api.pull(f"{events}/**")
    api.call("PUT", f"{events}/a", None, content_type="text/plain")
    assert one.links() == {}
    api.call("POST", f"{events}/a", b"data", content_type="text/plain")
    assert eventually(one.links, bool) == {f"{events}/a": START}
    assert one.wakes()[0] | {"ts": 0} == {
        "type": "wake",
        "subscription_id": one.name,
        "stream": f"{events}/a",
        "generation": 1,
        "ts": 0,
    }


def test_links_that_are_added_and_removed(api, events) -> None:
    one = api.pull(f"{events}/*")
    api.append(f"{events}/a", 1)
    one.claim().ack_all()
    api.append(f"{events}-more", 1)
    added = api.call("POST", f"{one.path}/streams", {"streams": [f"/{events}/a/", f"{events}-more"]})
    assert added.status == 204
    assert error(one.refused_claim()) == "NO_PENDING_WORK"
    types = {link["path"]: link["link_type"] for link in one.shown()["streams"]}
    assert types == {f"{events}/a": "explicit", f"{events}-more": "explicit"}
    for path in (f"{events}%2Fa", f"{events}-more", "not-linked"):
        assert api.call("DELETE", f"{one.path}/streams/{path}").status == 204
    types = {link["path"]: link["link_type"] for link in one.shown()["streams"]}
    assert types == {f"{events}/a": "glob"}
    assert api.call("PUT", one.path, one.asked).status == 200, "links are no part of the configuration"


def test_a_pattern_of_everything_does_not_wake_itself(api, events) -> None:
    everything = api.pull("**", wake_stream=f"{events}/wakes")
    api.append(f"{events}/a", 1)
    assert len(everything.wakes()) == 1
    everything.claim().ack_all()
    assert f"{events}/wakes" not in everything.links()
    assert len(api.messages(f"{events}/wakes")) == 1
    everything.delete()


def test_inherited_history_is_no_news(api, events) -> None:
    api.append(f"{events}-source", 1, 2)
    one = api.pull(f"{events}/*")
    fork = {"stream_forked_from": f"/v1/stream/{events}-source"}
    assert api.call("PUT", f"{events}/plain", None, content_type="application/json", **fork).status == 201
    assert api.call("PUT", f"{events}/more", [3], **fork).status == 201
    streams = one.claim().streams
    assert streams[f"{events}/more"]["acked_offset"] == api.tail(f"{events}-source")
    assert streams[f"{events}/more"]["has_pending"]
    assert not streams[f"{events}/plain"]["has_pending"]


def test_links_go_with_their_streams(api, events) -> None:
    one = api.pull(f"{events}/*", streams=[f"{events}/a"])
    api.append(f"{events}/a", 1)
    api.append(f"{events}/b", 1)
    held = one.claim()
    for name in ("a", "b"):
        assert api.call("DELETE", f"{events}/{name}").status == 204
    assert eventually(one.links, lambda links: not links) == {}
    assert error(held.ack_all()) == "INVALID_OFFSET"
    assert held.send("ack", done=True).json == {"ok": True, "next_wake": False}
    api.append(f"{events}/b", 2)
    assert one.claim().streams[f"{events}/b"]["acked_offset"] == START


# -- leases


def claimed(api: Api, events: str, **settings: object) -> Claim:
    one = api.pull(f"{events}/*", **settings)
    api.append(f"{events}/a", 1)
    api.append(f"{events}/b", 1)
    return one.claim("first")


def test_one_worker_holds_the_lease(api, events) -> None:
    held = claimed(api, events)
    refusal = held.of.refused_claim()
    assert error(refusal) == "ALREADY_CLAIMED"
    said = parsed(refusal)["error"]
    assert (said["current_holder"], said["generation"]) == ("first", held.generation)
    assert held.release().status == 204
    assert held.of.claim("second").generation == held.generation + 1
    for answer in (held.release(), held.ack_all(), held.ack()):
        assert (answer.status, error(answer)) == (409, "FENCED")


def test_acks_are_applied_all_or_none(api, events) -> None:
    held = claimed(api, events)
    a, b = f"{events}/a", f"{events}/b"
    good, beyond = api.tail(a), api.tail(a)[:-2] + "99"
    for bad in (beyond, START, "now", "", "0" * 33, good[:-1]):
        refused = held.send(
            "ack", acks=[{"stream": a, "offset": good}, {"stream": b, "offset": bad}], done=True
        )
        assert (refused.status, error(refused)) == (409, "INVALID_OFFSET"), bad
    assert held.of.links() == {a: START, b: START}
    assert held.send("ack", acks=[{"path": f"/{a}", "offset": good}]).json == {"ok": True, "next_wake": False}
    backwards = held.send("ack", acks=[{"stream": a, "offset": good[:-1] + "0"}])
    assert error(backwards) == "INVALID_OFFSET"
    assert held.of.links() == {a: good, b: START}
    # What is not acknowledged is the next wake.
    assert held.send("ack", done=True).json == {"ok": True, "next_wake": True}
    after = held.of.claim()
    assert (after.generation, after.streams[a]["has_pending"], after.streams[b]["has_pending"]) == (
        2,
        False,
        True,
    )


def test_an_append_during_a_lease_is_the_next_wake(api, events) -> None:
    held = claimed(api, events)
    assert len(held.of.wakes()) == 1
    api.append(f"{events}/a", 2)
    api.append(f"{events}/new", 1)
    assert held.ack_all().json == {"ok": True, "next_wake": True}
    assert [wake["generation"] for wake in held.of.wakes(2)] == [1, 2]
    after = held.of.claim()
    assert {path for path, stream in after.streams.items() if stream["has_pending"]} == {
        f"{events}/a",
        f"{events}/new",
    }
    assert after.ack_all().json == {"ok": True, "next_wake": False}


def test_a_lease_expires_and_its_worker_is_fenced(api, events) -> None:
    held = claimed(api, events, lease_ttl_ms=1000)
    again = eventually(
        lambda: held.of.api.call("POST", f"{held.of.path}/claim", {"worker": "second"}),
        lambda a: a.status == 200,
    )
    assert again.json["generation"] == held.generation + 1
    assert error(held.ack_all()) == "FENCED"
    assert [wake["generation"] for wake in held.of.wakes(2)] == [1, 2]


def test_who_may_acknowledge(api, events) -> None:
    held = claimed(api, events)
    for headers in (
        {},
        {"authorization": "Basic abc"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer x.y"},
    ):
        for action in ("ack", "release", "callback"):
            refused = api.call(
                "POST", f"{held.of.path}/{action}", {"wake_id": held.got["wake_id"]}, **headers
            )
            assert (refused.status, error(refused)) == (401, "TOKEN_INVALID")
            assert refused.headers["www-authenticate"] == "Bearer"
    assert error(held.send("ack", wake_id="w_other")) == "FENCED"
    assert error(held.send("ack", generation=7)) == "FENCED"
    assert error(held.send("ack", wake_id=None)) == "FENCED"
    other = claimed(api, f"{events}-other")
    assert error(other.send("ack", token=held.token)) == "TOKEN_INVALID"


def test_a_deleted_one_moves_no_cursor_also_when_it_is_made_again(api, events) -> None:
    held = claimed(api, events)
    held.of.delete()
    assert {held.ack_all().status, held.release().status} == {404}
    again = api.call("PUT", held.of.path, held.of.asked)
    assert again.status == 201
    api.append(f"{events}/a", 2)
    assert held.of.claim().generation == 1
    assert error(held.ack_all()) == "TOKEN_INVALID"


def test_a_wake_waits_for_its_stream(api, events) -> None:
    one = api.pull(f"{events}/*")
    assert api.call("DELETE", one.wake_stream).status == 204
    api.append(f"{events}/a", 1)
    eventually(one.links, bool)
    assert api.call("PUT", one.wake_stream, b"[]").status == 201
    assert one.wakes()[0]["generation"] == 1
    assert one.claim().generation == 1


# -- lag


def test_how_far_behind_a_subscription_is(api, events) -> None:
    api.append(f"{events}/old", "ten chars.")
    one = api.pull(f"{events}/*")
    other = api.pull(f"{events}/*", streams=[f"{events}/never"])

    def lag(of: Subscribed) -> tuple[int, dict[str, int]]:
        shown = parsed(api.call("GET", f"{of.path}?lag=true"))
        return shown["lag_bytes"], {link["path"]: link["lag_bytes"] for link in shown["streams"]}

    assert lag(one) == (0, {f"{events}/old": 0})
    size = int(api.tail(f"{events}/old").partition("_")[2])
    api.append(f"{events}/new", "ten chars.")
    eventually(lambda: (lag(one)[0], lag(other)[0]), lambda found: found == (size, size))  # it is linked
    api.append(f"{events}/old", "ten chars.")
    eventually(
        lambda: lag(one), lambda found: found == (2 * size, {f"{events}/old": size, f"{events}/new": size})
    )
    assert "lag_bytes" not in json.dumps(one.shown())
    held = one.claim()
    assert held.ack(**{f"{events}__old": api.tail(f"{events}/old")}).status == 200
    assert lag(one)[0] == size
    assert held.ack_all().status == 200
    assert lag(one)[0] == 0
    assert lag(other) == (2 * size, {f"{events}/old": size, f"{events}/new": size, f"{events}/never": 0})
    of_stream = api.call("GET", f"__ds/subscriptions?stream={events}/old").json
    assert of_stream == {
        "subscriptions": [
            {"id": one.name, "acked_offset": api.tail(f"{events}/old"), "lag_bytes": 0},
            {"id": other.name, "acked_offset": other.links()[f"{events}/old"], "lag_bytes": size},
        ]
    }
    assert api.call("GET", f"__ds/subscriptions?stream={events}/none").json == {"subscriptions": []}
    assert api.call("GET", "__ds/subscriptions?stream=").status == 400
    # Deleted data are not to be processed, trimmed ones neither.
    assert api.call("DELETE", f"{events}/old").status == 204
    trimmed = api.call("POST", f"__ds/streams/{events}/new/trim", {"max_bytes": 0})
    assert trimmed.status == 200, trimmed
    eventually(lambda: lag(other)[0], lambda found: found == 0)


# -- webhooks


def hooked(api: Api, receiver, events: str, **settings: object) -> Subscribed:
    return api.webhook(f"{receiver.url}/hook", f"{events}/*", **settings)


def taken(of: Subscribed, delivery: Delivery) -> Claim:
    return Claim(of, delivery.body)


def test_done_acknowledges_what_was_sent_and_more_is_sent_again(api, events) -> None:
    going_on = threading.Event()

    def answer(delivery: Delivery) -> Reply:
        going_on.wait(20)
        return DONE

    with receiving(answer) as receiver:
        one = hooked(api, receiver, events)
        api.append(f"{events}/a", 1)
        first = receiver.next()
        api.append(f"{events}/a", 2)  # during the delivery
        going_on.set()
        second = receiver.next()
        assert (first.body["generation"], second.body["generation"]) == (1, 2)
        assert second.body["streams"][0]["acked_offset"] == first.body["streams"][0]["tail_offset"]
        eventually(one.links, lambda links: links == {f"{events}/a": api.tail(f"{events}/a")})
        one.delete()


def test_a_delivery_is_signed(api, events) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    with receiving(DONE) as receiver:
        one = hooked(api, receiver, events)
        api.append(f"{events}/a", 1)
        delivery = receiver.next()
    fields = dict(part.split("=", 1) for part in delivery.headers["webhook-signature"].split(","))
    jwks = api.call("GET", "__ds/jwks.json")
    assert jwks.headers["content-type"] == "application/jwk-set+json"
    assert jwks.headers["cache-control"] == "public, max-age=300"
    key = next(key for key in jwks.json["keys"] if key["kid"] == fields["kid"])
    assert key.keys() == {"kty", "crv", "x", "kid", "use", "alg"}
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    public.verify(
        base64.urlsafe_b64decode(fields["ed25519"] + "=="), f"{fields['t']}.".encode() + delivery.raw
    )
    assert one.shown()["webhook"]["signing"]["kid"] == fields["kid"]
    assert "callback_token" not in json.dumps(one.shown())
    one.delete()


@pytest.mark.parametrize("refusal", [(500, b""), (404, b""), (307, b""), (301, b'{"done":true}')])
def test_a_failed_delivery_is_the_same_wake_again(api, events, refusal) -> None:
    replies = [refusal, DONE]
    with receiving(lambda _: replies.pop(0)) as receiver:
        one = hooked(api, receiver, events, lease_ttl_ms=1000)
        api.append(f"{events}/a", 1)
        first = receiver.next()
        assert eventually(one.shown, lambda shown: shown["status"] == "failed")
        api.append(f"{events}/a", 2)
        second = receiver.next()
        assert second.path == "/hook", "a redirect is not followed"
        assert second.at - first.at > 0.7
        same = ("wake_id", "generation", "callback_token", "callback_url")
        assert [first.body[name] for name in same] == [second.body[name] for name in same]
        # The new attempt sends, and acknowledges, what came meanwhile.
        eventually(one.links, lambda links: links == {f"{events}/a": api.tail(f"{events}/a")})
        assert one.shown()["status"] == "active"
        one.delete()


def test_an_accepted_delivery_waits_for_callbacks(api, events) -> None:
    with receiving((200, b'{"done":"true"}')) as receiver:
        one = hooked(api, receiver, events)
        api.append(f"{events}/a", 1)
        wake = taken(one, receiver.next())
        assert wake.ack().json == {"ok": True, "next_wake": False}
        assert one.links() == {f"{events}/a": START}
        api.append(f"{events}/a", 2)
        assert wake.ack_all().json == {"ok": True, "next_wake": True}
        second = taken(one, receiver.next())
        assert second.generation == 2
        assert error(wake.ack_all()) == "FENCED"
        for action in ("claim", "ack", "release"):
            refused = second.send(action, worker="w")
            assert (refused.status, error(refused)) == (400, "INVALID_REQUEST")
        one.delete()


def test_an_accepted_delivery_is_made_again_when_its_lease_is_over(api, events) -> None:
    with receiving(ACCEPTED) as receiver:
        one = hooked(api, receiver, events, lease_ttl_ms=1000)
        api.append(f"{events}/a", 1)
        first, second = receiver.next(), receiver.next()
        assert (first.body["generation"], second.body["generation"]) == (1, 2)
        assert first.body["callback_token"] != second.body["callback_token"]
        assert error(taken(one, first).ack_all()) == "FENCED"
        one.delete()


def test_a_deletion_during_a_delivery(api, events) -> None:
    deleted = threading.Event()

    def answer(delivery: Delivery) -> Reply:
        deleted.wait(20)
        return DONE

    with receiving(answer) as receiver:
        one = hooked(api, receiver, events)
        api.append(f"{events}/a", 1)
        wake = taken(one, receiver.next())
        one.delete()
        deleted.set()
        assert wake.ack_all().status == 404
        assert api.call("GET", one.path).status == 404


def test_a_large_answer_is_not_read_and_is_not_done(api, events) -> None:
    with receiving((200, b'{"done":true,"more":"' + b"x" * (1 << 20) + b'"}')) as receiver:
        one = hooked(api, receiver, events)
        api.append(f"{events}/a", 1)
        wake = taken(one, receiver.next())
        assert wake.ack().status == 200
        assert one.links() == {f"{events}/a": START}
        one.delete()


def test_of_very_many_links_those_with_something_pending_are_sent(api, events) -> None:
    with receiving(DONE) as receiver:
        one = hooked(api, receiver, events, streams=[f"{events}-{n}" for n in range(1000)])
        api.append(f"{events}/a", 1)
        assert [stream["path"] for stream in receiver.next().body["streams"]] == [f"{events}/a"]
        assert len(one.links()) == 1001
        one.delete()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "https://10.0.0.1/",
        "ftp://example.com/",
        "https://[::1]/",
        "https://a:b@example.com/",
    ],
)
def test_urls_that_are_refused(api, events, url) -> None:
    asked = {"type": "webhook", "pattern": f"{events}/*", "webhook": {"url": url}}
    refused = api.call("PUT", f"__ds/subscriptions/{events}", asked)
    assert (refused.status, error(refused)) == (400, "WEBHOOK_URL_REJECTED")
