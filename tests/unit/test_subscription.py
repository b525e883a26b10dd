"""Each row of the table in protocol.subscription, without a clock or a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.state import StreamState
from durable_streams.protocol.subscription import (
    Ack,
    Link,
    Refusal,
    Subscription,
    begins,
    configure,
    new_subscription,
)

PULL = {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wakes", "lease_ttl_ms": 1000}
HOOK = {
    "type": "webhook",
    "streams": ["a"],
    "webhook": {"url": "https://example.com/hook"},
    "lease_ttl_ms": 1000,
}


def subscription(asked: dict[str, Any], **links: int) -> Subscription:
    made = new_subscription("one", configure(asked), 0.0, "incarnation")
    return made.linked({path: Link(1, acked, explicit=True) for path, acked in links.items()})


def ack(path: str, position: int) -> Ack:
    return Ack(format_offset(position), path)


def refused(status: int, code: str, act: Callable[[], object]) -> Rejection:
    with pytest.raises(Rejection) as refusal:
        act()
    assert (refusal.value.status, refusal.value.code) == (status, code)
    return refusal.value


def acked(of: Subscription) -> dict[str, int]:
    return {path: link.acked for path, link in of.links.items()}


# -- wakes


def test_something_pending_wakes_an_idle_one_once() -> None:
    idle = subscription(PULL, a=0, b=7)
    woken = idle.woken({"a": 5, "b": 7}, "w_1", 10.0)
    assert (woken.wake_id, woken.generation, woken.stream, woken.due) == ("w_1", 1, "a", None)
    assert woken.woken({"a": 9, "b": 9}, "w_2", 11.0) is woken


@pytest.mark.parametrize("tails", [{"a": 0}, {"a": -1}, {}, {"other": 9}])
def test_nothing_pending_wakes_nothing(tails: dict[str, int]) -> None:
    idle = subscription(PULL, a=-1)  # at the start of an empty stream
    assert idle.woken(tails, "w_1", 0.0) is idle


def test_the_stream_that_woke_is_named() -> None:
    tails = {"a": 5, "b": 5}
    assert subscription(PULL, a=0, b=0).woken(tails, "w", 0.0, "b").stream == "b"
    assert subscription(PULL, a=0, b=5).woken(tails, "w", 0.0, "b").stream == "a"


def test_the_first_claim_holds_the_lease() -> None:
    held = subscription(PULL, a=0).woken({"a": 5}, "w_1", 10.0).claimed("worker", 11.0)
    assert (held.holder, held.lease_until, held.due) == ("worker", 12.0, 12.0)
    refusal = refused(409, "ALREADY_CLAIMED", lambda: held.claimed("worker", 11.5))
    assert isinstance(refusal, Refusal)
    assert refusal.details == {"current_holder": "worker", "generation": 1}


def test_an_idle_one_cannot_be_claimed() -> None:
    refused(409, "NO_PENDING_WORK", lambda: subscription(PULL, a=5).claimed("worker", 0.0))


def test_an_event_of_the_wake_stream_names_the_wake_and_what_woke() -> None:
    event = subscription(PULL, a=0).woken({"a": 5}, "w_1", 10.0).announcement(1234.5678)
    assert msgspec.json.decode(event) == {
        "type": "wake",
        "subscription_id": "one",
        "stream": "a",
        "generation": 1,
        "ts": 1_234_567,
    }
    assert b"w_1" not in event  # who reads it must claim first


# -- acknowledgements


def held(**links: int) -> Subscription:
    return subscription(PULL, **links).woken(dict.fromkeys(links, 9), "w_1", 10.0).claimed("worker", 10.0)


def test_an_ack_moves_cursors_and_extends_the_lease() -> None:
    moved = held(a=0, b=0).acknowledged([ack("a", 5)], {"a": 9, "b": 9}, 10.5, done=False)
    assert acked(moved) == {"a": 5, "b": 0}
    assert (moved.wake_id, moved.lease_until) == ("w_1", 11.5)


def test_a_heartbeat_is_an_ack_of_nothing() -> None:
    assert held(a=0).acknowledged([], {"a": 9}, 10.9, done=False).lease_until == 11.9


def test_done_ends_the_wake() -> None:
    ended = held(a=0).acknowledged([ack("/a/", 9)], {"a": 9}, 10.5, done=True)
    assert (ended.idle, ended.holder, ended.due, acked(ended)) == (True, None, None, {"a": 9})
    assert ended.woken({"a": 12}, "w_2", 11.0).generation == 2


@pytest.mark.parametrize(
    "bad",
    [
        Ack("-1", "a"),
        Ack("now", "a"),
        Ack("", "a"),
        Ack(format_offset(10), "a"),  # beyond the tail
        Ack(format_offset(2), "a"),  # backwards
        Ack(format_offset(9), "c"),
        Ack(format_offset(9)),
    ],
)
def test_one_bad_ack_refuses_all(bad: Ack) -> None:
    before = held(a=3, b=0)
    refused(
        409,
        "INVALID_OFFSET",
        lambda: before.acknowledged([ack("b", 9), bad], {"a": 9, "b": 9}, 11, done=True),
    )


def test_an_equal_cursor_is_fine() -> None:
    assert acked(
        held(a=3).acknowledged([ack("a", 3), Ack(format_offset(3), path="a")], {"a": 9}, 11, done=True)
    ) == {"a": 3}


def test_only_the_present_wake_is_acknowledged() -> None:
    present = held(a=0)
    present.check_fence("w_1", 1, 1)
    for wake_id, generation, token in [
        ("w_0", 1, 1),
        ("w_1", 0, 1),
        ("w_1", 1, 0),
        (None, 1, 1),
        ("w_1", None, 1),
    ]:
        refused(409, "FENCED", lambda w=wake_id, g=generation, t=token: present.check_fence(w, g, t))
    refused(409, "FENCED", lambda: present.released().check_fence("w_1", 1, 1))
    refused(409, "FENCED", lambda: present.released().check_fence(None, 1, 1))


def test_a_lease_expires_and_the_next_wake_has_another_generation() -> None:
    lease = held(a=0)
    assert lease.expired(10.9) is lease
    over = lease.expired(11.0)
    assert (over.idle, acked(over)) == (True, {"a": 0})
    again = over.woken({"a": 9}, "w_2", 11.0)
    refused(409, "FENCED", lambda: again.check_fence("w_1", 1, 1))


def test_a_release_acknowledges_nothing() -> None:
    assert acked(held(a=0).released()) == {"a": 0}


# -- webhooks


def hook() -> Subscription:
    return subscription(HOOK, a=0).woken({"a": 5}, "w_1", 10.0)


def test_done_acknowledges_what_was_sent() -> None:
    done = hook().delivered("w_1", done=True, now=11.0)
    assert (done.idle, acked(done)) == (True, {"a": 5})
    assert done.pending({"a": 8}) == ["a"]


def test_a_delivery_without_done_begins_the_lease() -> None:
    assert (hook().due, hook().lease_until) == (10.0, None)
    accepted = hook().delivered("w_1", done=False, now=10.5)
    assert (accepted.next_attempt_at, accepted.lease_until) == (None, 11.5)
    assert accepted.expired(12.0).idle


def test_a_delivery_moves_only_the_cursors_that_it_was_sent_with() -> None:
    sent = subscription(HOOK, a=0, b=0, c=0).woken({"a": 5, "b": 5, "c": 5}, "w_1", 10.0)
    made_again = stream("c", number=2, tail=12, forked_from="d", fork_position=9)
    changed = sent.unlinked("b").met("c", made_again, glob=True)
    done = changed.delivered("w_1", done=True, now=11.0)
    assert (done.idle, acked(done)) == (True, {"a": 5, "c": 9})


def test_failures_back_off_and_no_lease_expires_meanwhile() -> None:
    failing, pauses = hook(), []
    for _ in range(9):
        failing = failing.failed("w_1", 100.0, 0.0)
        assert failing.due is not None
        pauses.append(failing.due - 100.0)
        assert (failing.wake_id, failing.generation, failing.status) == ("w_1", 1, "failed")
        assert failing.expired(10**9) is failing
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert hook().failed("w_1", 0.0, -1.0).due == pytest.approx(0.8)
    assert failing.delivered("w_1", done=False, now=200.0).status == "active"
    assert failing.delivered("w_1", done=True, now=200.0).retry_count == 0


def test_a_new_attempt_sends_the_present_tails() -> None:
    again = hook().failed("w_1", 11.0, 0.0).attempted({"a": 8})
    assert acked(again.delivered("w_1", done=True, now=13.0)) == {"a": 8}


def test_the_answer_to_an_earlier_wake_changes_nothing() -> None:
    ended = hook().acknowledged([ack("a", 5)], {"a": 5}, 10.5, done=True)
    assert ended.delivered("w_1", done=True, now=11.0) is ended
    assert ended.failed("w_1", 11.0, 0.0) is ended


def test_a_callback_during_a_back_off_takes_the_wake() -> None:
    taken = hook().failed("w_1", 11.0, 0.0).acknowledged([], {"a": 5}, 11.5, done=False)
    assert (taken.next_attempt_at, taken.lease_until, taken.status) == (None, 12.5, "active")


# -- links


def test_an_explicit_link_outranks_a_glob_link_and_leaves_it() -> None:
    both = subscription(PULL).linked({"a": Link(1, 5, glob=True)}).linked({"a": Link(1, 9, explicit=True)})
    assert (both.links["a"].type, both.links["a"].acked) == ("explicit", 5)
    assert both.unlinked("a").links["a"].type == "glob"
    assert subscription(PULL, a=5).unlinked("a").links == {}
    assert both.unlinked("other") is both


def test_a_link_that_is_there_already_changes_nothing() -> None:
    one = subscription(PULL, a=5)
    assert one.linked({"a": Link(2, 9, explicit=True)}) is one
    assert one.linked({}) is one
    more = one.linked({"a": Link(1, -1, explicit=True), "b": Link(3, 2, explicit=True)})
    assert acked(more) == {"a": 5, "b": 2}


def test_its_own_wake_stream_is_never_linked() -> None:
    everything = subscription({**PULL, "pattern": "**"})
    assert everything.met("wakes", StreamState(1, "wakes", "application/json", tail=9), glob=True).links == {}
    assert everything.linked({"__ds/x": Link(1, 0, explicit=True)}).links == {}


def stream(path: str = "a", number: int = 1, **values: Any) -> StreamState:
    return StreamState(number, path, "text/plain", **values)


def test_the_first_append_links_a_stream_from_its_start() -> None:
    met = subscription(PULL).met("a", stream(tail=4), glob=True)
    assert (met.links["a"].offset, met.pending({"a": 4})) == ("-1", ["a"])
    assert subscription(PULL).met("a", stream(), glob=True).links == {}
    assert subscription(PULL).met("a", stream(tail=4), glob=False).links == {}


def test_inherited_history_is_no_news() -> None:
    fork = stream(tail=9, forked_from="b", fork_position=7)
    assert (begins(fork), begins(stream(tail=9))) == (7, -1)
    assert subscription(PULL).met("a", fork, glob=True).links["a"].acked == 7


def test_a_stream_that_comes_later_is_met_at_its_start() -> None:
    waiting = subscription(PULL).linked({"a": Link(0, -1, explicit=True)})
    met = waiting.met("a", stream(tail=4), glob=False)
    assert met.links["a"] == Link(1, -1, explicit=True)


def test_a_link_stays_with_its_stream() -> None:
    linked = subscription(PULL, a=5)
    assert linked.met("a", stream(tail=9), glob=True) is linked


@pytest.mark.parametrize("now", [None, stream(deleted=True)])
def test_what_is_not_there_changes_no_link_that_waits_for_it(now: StreamState | None) -> None:
    waiting = subscription(PULL).linked({"a": Link(0, -1, explicit=True)})
    assert waiting.met("a", now, glob=True) is waiting


@pytest.mark.parametrize("now", [None, stream(number=2), stream(deleted=True)])
def test_a_link_goes_with_its_stream(now: StreamState | None) -> None:
    assert subscription(PULL, a=5).met("a", now, glob=False).links == {}


def test_a_stream_that_was_made_again_matches_as_a_new_one() -> None:
    assert subscription(PULL, a=5).met("a", stream(number=2, tail=3), glob=True).links["a"] == Link(
        2, -1, glob=True
    )


# -- configurations


def test_equal_configurations_have_one_hash() -> None:
    spelled = {**PULL, "streams": ["/b/", "a", "b"], "description": None}
    assert configure(spelled).hash == configure({**PULL, "streams": ["a", "b"]}).hash
    assert configure({**PULL, "pattern": "", "streams": ["a"]}).pattern is None
    without = {name: value for name, value in PULL.items() if name != "lease_ttl_ms"}
    assert configure(without).hash == configure({**without, "lease_ttl_ms": 30_000}).hash
    different: list[dict[str, Any]] = [
        {"lease_ttl_ms": 1001},
        {"pattern": "x"},
        {"streams": ["a"]},
        {"wake_stream": "w"},
        {"description": "d"},
    ]
    assert len({configure({**PULL, **change}).hash for change in different} | {configure(PULL).hash}) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"type": "push"},
        {"type": None},
        {"pattern": None},
        {"pattern": 5},
        {"pattern": "/"},
        {"streams": [1]},
        {"streams": "a"},
        {"streams": ["/"]},
        {"streams": ["__ds/x"]},
        {"wake_stream": ""},
        {"wake_stream": None},
        {"lease_ttl_ms": True},
        {"lease_ttl_ms": 1500.5},
        {"lease_ttl_ms": 2000.0},
        {"lease_ttl_ms": "1000"},
        {"lease_ttl_ms": 999},
        {"lease_ttl_ms": 600_001},
        {"type": "webhook"},
        {"type": "webhook", "webhook": {}},
        {"type": "webhook", "webhook": {"url": ""}},
        {"description": 5},
    ],
)
def test_what_is_no_configuration(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        configure({**PULL, **change})


@pytest.mark.parametrize(
    ("change", "name", "most"),
    [
        ({"pattern": "x" * 1025}, "pattern", 1024),
        ({"description": "x" * 4097}, "description", 4096),
        ({"wake_stream": "x" * 1025}, "wake_stream", 1024),
        ({"type": "webhook", "webhook": {"url": "https://h/".ljust(2049, "x")}}, "webhook.url", 2048),
    ],
)
def test_no_text_is_longer_than_its_limit(change: dict[str, Any], name: str, most: int) -> None:
    said = rf"^{name} has at most {most} characters, this one has {most + 1}$"
    with pytest.raises(ValueError, match=said):
        configure({**PULL, **change})


def test_a_text_may_be_as_long_as_its_limit() -> None:
    url = "https://h/".ljust(2048, "x")
    longest = {"pattern": "x" * 1024, "description": "x" * 4096, "wake_stream": "x" * 1024}
    configured = configure({**PULL, **longest})
    assert {name: getattr(configured, name) for name in longest} == longest
    assert configure({**HOOK, "webhook": {"url": url}}).url == url


def test_so_many_streams_can_be_named_at_once() -> None:
    names = [f"s{number}" for number in range(1000)]
    assert configure({**PULL, "streams": [*names, "/s0/"]}).streams == tuple(sorted(names))
    with pytest.raises(ValueError, match=r"^at most 1000 streams can be named at once, these are 1001$"):
        configure({**PULL, "streams": [*names, "one more"]})


@pytest.mark.parametrize("body", [None, [], "text", 5])
def test_a_body_that_is_no_object(body: object) -> None:
    with pytest.raises(ValueError, match="this is no subscription"):
        configure(body)
