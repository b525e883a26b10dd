"""Many streams followed over connections that end anywhere: the machine, played against scripts."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from durable_streams.errors import (
    DurableStreamError,
    FetchError,
    RetentionGoneError,
    SSENotSupportedError,
    StreamNotFoundError,
    StreamParseError,
)
from durable_streams.protocol.effects import READ, RELEASE, Call, Give, Pause, Send
from durable_streams.protocol.follower import Follower
from durable_streams.protocol.following import PartError, data_event, data_head, plain_event, split
from durable_streams.protocol.offsets import format_offset
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.types import Followed

ROOT = "http://host/v1/stream"
CUT = FetchError("cut", code="NETWORK")
ONCE = RetryPolicy(max_retries=1, initial_delay=1.0, max_delay=8.0, jitter=0.0)


class Answer:
    """An answer; an error in the body is raised, a number is the seconds that pass."""

    def __init__(self, *body: Any, status: int = 200, **headers: str) -> None:
        self.body = list(body)
        self.status = status
        self.headers = {"content-type": "text/event-stream"}
        self.headers.update({name.replace("_", "-"): value for name, value in headers.items()})


class Player:
    """What a follower asked for and gave, while a script of answers and errors was played."""

    def __init__(self, *streams: str, root: str = ROOT, goes_on: bool = False, **options: Any) -> None:
        self.time = 0.0
        self.pauses: list[float] = []
        self.queries: list[tuple[list[str], str]] = []
        self.given: list[Followed] = []
        self.goes_on = goes_on
        self.open: Answer | None = None
        options = {"offsets": "-1", "policy": None, "trickle": 5.0, **options}
        self.follower = Follower(root, streams, random=lambda: 0.0, clock=lambda: self.time, **options)

    def play(self, *script: Answer | FetchError) -> Player:
        """Play until the script is over, or the machine ends."""
        machine, left = self.follower.run(), list(script)
        given: Any = None
        while True:
            try:
                effect = machine.throw(given) if isinstance(given, FetchError) else machine.send(given)
            except StopIteration:
                return self
            if isinstance(effect, Send) and not left:
                return self
            given = self._perform(effect, left)

    def _perform(self, effect: Any, left: list[Any]) -> Any:
        if isinstance(effect, Send):
            assert self.open is None  # each answer is released before the next request
            query = parse_qs(urlsplit(effect.request.url).query)
            self.queries.append((split(query["streams"][0]), query["offsets"][0]))
            answer = left.pop(0)
            self.open = answer if isinstance(answer, Answer) else None
            return answer
        if effect is READ:
            assert self.open is not None
            while self.open.body:
                piece = self.open.body.pop(0)
                if not isinstance(piece, float):
                    return piece
                self.time += piece
            return b""
        if isinstance(effect, Pause):
            self.pauses.append(effect.seconds)
        elif isinstance(effect, Give):
            self.given.append(effect.value)
        elif isinstance(effect, Call):
            return self.goes_on
        else:
            assert effect is RELEASE
            self.open = None
        return None


def data(stream: str, end: int, payload: bytes = b"1,") -> bytes:
    return data_event(data_head(stream, end, exact=False), payload, "id", "application/json")


def closed(stream: str, end: int) -> bytes:
    return plain_event("end", stream, end, "id", closed=True)


def refused(stream: str, status: int, earliest: str | None = None) -> bytes:
    return plain_event("end", stream, None, "id", error=PartError("WHY", "it is so", status, earliest))


def test_each_stream_goes_on_from_its_own_place() -> None:
    player = Player("a", "b", offsets={"b": "now"})
    player.play(
        Answer(data("a", 2), plain_event("tail", "b", 7, "id") + data("a", 4)[:-1]),
        Answer(data("a", 4), closed("a", 4), CUT),
        Answer(data("b", 9), closed("b", 9), b"never read"),
    )
    two, four, seven, nine = (format_offset(number) for number in (2, 4, 7, 9))
    assert player.queries == [(["a", "b"], "-1,now"), (["a", "b"], f"{two},{seven}"), (["b"], seven)]
    assert player.given == [
        Followed("a", b"[1]", two),
        Followed("b", b"", seven),
        Followed("a", b"[1]", four),
        Followed("a", b"", four, closed=True),
        Followed("b", b"[1]", nine),
        Followed("b", b"", nine, closed=True),
    ]
    assert player.follower.offsets == {"a": four, "b": nine}
    assert player.follower.finished
    assert player.pauses == []  # each connection brought something
    assert [one.ended for one in player.given] == [False, False, False, True, False, True]


def test_streams_below_a_path_keep_their_names() -> None:
    player = Player("a", "b/c", root=f"{ROOT}/jobs/").play(Answer(data("jobs/b/c", 2)))
    assert player.queries == [(["jobs/a", "jobs/b/c"], "-1,-1")]
    assert [one.stream for one in player.given] == ["b/c"]


def test_a_stream_that_cannot_be_read_ends_alone() -> None:
    player = Player("a", "b", "c", "d").play(
        Answer(refused("a", 404), refused("b", 410, "9"), refused("c", 403), data("d", 2))
    )
    first, second, third, fourth = player.given
    assert isinstance(first.error, StreamNotFoundError)
    assert (first.error.code, first.next_offset) == ("WHY", None)
    assert first.error.message == f"{ROOT}/a: it is so."
    assert isinstance(second.error, RetentionGoneError)
    assert second.error.earliest == "9"
    assert third.error is not None
    assert third.error.status == 403
    assert fourth.error is None
    assert player.follower.ended == {"a", "b", "c"}


def test_failures_are_retried_with_growing_pauses() -> None:
    player = Player("a", policy=RetryPolicy(max_retries=-1, initial_delay=1.0, max_delay=8.0, jitter=0.0))
    busy = Answer(b"{}", status=503, retry_after="5")
    player.play(CUT, Answer(CUT), busy, Answer(data("a", 2)), Answer(), Answer(6.0, b": beat\n\n"), CUT)
    # Progress ends the row of failures, and so does a long life.
    assert player.pauses == [1.0, 2.0, 5.0, 1.0, 1.0]


@pytest.mark.parametrize("last", [CUT, Answer(CUT), Answer(status=503)])
def test_failures_end_it_where_the_policy_says_so(last: Any) -> None:
    player = Player("a", policy=ONCE)
    with pytest.raises(DurableStreamError):
        player.play(CUT, last)


def test_before_the_first_event_failures_end_it_and_afterwards_they_do_not() -> None:
    with pytest.raises(FetchError):
        Player("a").play(*[CUT] * 6)
    assert len(Player("a").play(Answer(data("a", 2)), *[CUT] * 50).pauses) == 50


def test_a_refusal_ends_it_unless_its_cause_is_removed() -> None:
    forbidden = Answer(b'{"error":{"code":"FORBIDDEN","message":"no"}}', status=403)
    player = Player("a")
    with pytest.raises(DurableStreamError, match=r"403: no\.$"):
        player.play(forbidden)
    assert player.open is None
    player = Player("a", goes_on=True).play(Answer(b"{}", status=403), Answer(data("a", 2)))
    assert len(player.given) == 1


def test_what_is_no_event_stream() -> None:
    with pytest.raises(SSENotSupportedError):
        Player("a").play(Answer(b"<html>", content_type="text/html"))


@pytest.mark.parametrize(
    "events",
    [
        data("b", 2),  # not asked for
        closed("a", 2) + data("a", 4),  # behind its end
        plain_event("tail", "a", None, "id"),
        data("a", 4) + data("a", 2),
        data("a", 4).replace(format_offset(4).encode(), b"now"),
        b"event:data\ndata:nonsense\n\n",
    ],
)
def test_events_that_cannot_be(events: bytes) -> None:
    player = Player("a", "c")
    with pytest.raises(StreamParseError):
        player.play(Answer(events))
    assert player.open is None


def test_events_of_a_later_version_are_passed_over() -> None:
    assert Player("a").play(Answer(b"event:news\ndata:?\n\n" + data("a", 2))).given[0].data == b"[1]"


@pytest.mark.parametrize(
    ("streams", "offsets"),
    [([], "-1"), ("abc", "-1"), (list(map(str, range(101))), "-1"), (["a", "a"], "-1"), (["a"], {"b": "1"})],
)
def test_arguments_that_make_no_sense(streams: Any, offsets: Any) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        Follower(
            ROOT, streams, random=lambda: 0.0, clock=lambda: 0.0, offsets=offsets, policy=None, trickle=5.0
        )
