"""What a feed is made of, one part at a time: errors, models, parameters, settings."""

from __future__ import annotations

import math
from typing import Any

import pydantic
import pytest

from durable_streams.errors import FetchError
from durable_streams.firehose import Attempt, FeedEvent, StreamConfig, StreamError, StreamErrorType, backfill
from durable_streams.firehose.errors import from_failure, from_payload, from_refusal
from durable_streams.firehose.models import decoder_for
from durable_streams.firehose.records import EventData, Invalid, RecordDecoder
from durable_streams.protocol.request import Response

URL = "http://feed.test/"


def items(model: Any, *records: bytes) -> list[Any]:
    return list(RecordDecoder(decoder_for(model)).items(list(records)))


# -- parameters


@pytest.mark.parametrize(("down_for", "minutes"), [(0.0, None), (0.1, 1), (60.0, 1), (60.1, 2), (3600.0, 5)])
def test_a_backfill_covers_the_outage_up_to_its_most(down_for: float, minutes: int | None) -> None:
    params = backfill({"expansions": "author_id"})(Attempt(down_for=down_for))
    assert params.pop("expansions") == "author_id"
    assert params == ({} if minutes is None else {"backfill_minutes": minutes})


def test_a_backfill_has_the_name_the_limit_and_the_values_that_it_is_given() -> None:
    tokens = iter("ab")
    for_attempt = backfill({"token": lambda: next(tokens)}, name="since", most=2)
    assert for_attempt(Attempt()) == {"token": "a"}
    assert for_attempt(Attempt(down_for=1000.0)) == {"token": "b", "since": 2}
    assert backfill()(Attempt()) == {}


# -- errors


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (StreamErrorType.TIMEOUT, StreamErrorType.TIMEOUT),
        ("timeout", StreamErrorType.TIMEOUT),
        ("TIMEOUT", StreamErrorType.TIMEOUT),
        ("no such kind", StreamErrorType.FATAL_ERROR),
    ],
)
def test_a_kind_may_be_given_by_its_name(given: Any, kind: StreamErrorType) -> None:
    error = StreamError("it failed", given)
    assert (error.error_type, error.code) == (kind, kind.name)
    assert error.is_retryable == (kind is StreamErrorType.TIMEOUT)


def test_a_proxy_is_found_behind_the_error_of_a_library() -> None:
    class ProxyError(Exception):
        pass

    outer = OSError("connect failed")
    for inner, kind in [
        (ProxyError(), StreamErrorType.FATAL_ERROR),
        (OSError(), StreamErrorType.CONNECTION_ERROR),
    ]:
        outer.__cause__ = inner
        failure = FetchError("no connection", original=outer, code="CONNECT", may_have_been_sent=False)
        assert from_failure(failure, connected=False).error_type is kind


def test_a_feed_that_moved_names_its_place() -> None:
    moved = from_refusal(Response(308, {"location": "http://other.test/"}, b""), URL, 0.0)
    assert str(moved) == "The feed answered 308: the feed is at http://other.test/; use that URL."
    assert "use the URL that it names" in str(from_refusal(Response(308, {}, b""), URL, 0.0))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"title":"Not now","detail":"come\\nback"}', "Not now: come back"),
        (b'{"title":"","errors":[{"message":"no rule"}]}', "no rule"),
        (b'{"title":7,"errors":["x"]}', "it refused the request"),
        (b"{}", "it refused the request"),
        (b"[]", "it refused the request"),
        (b"<html>", "it refused the request"),
    ],
)
def test_a_refusal_has_the_servers_sentence_where_there_is_one(body: bytes, sentence: str) -> None:
    refused = from_refusal(Response(422, {}, body), URL, 0.0)
    assert str(refused) == f"The feed answered 422: {sentence}."


def test_an_error_inside_the_stream_may_come_without_a_reason() -> None:
    error = from_payload({"disconnect_type": 3}, b'{"disconnect_type":3}', URL)
    assert str(error) == "The feed reported an error: without a reason."
    assert error.is_retryable


# -- models


def test_events_come_with_their_ids_and_types_whether_they_are_json_or_not() -> None:
    data = EventData(b"plain text\r")
    data.id, data.event = "7", "change"
    assert items(FeedEvent, data) == [[FeedEvent(b"plain text", "7", "change")]]
    # A line is not an event: it has neither, and is JSON.
    [lines, invalid] = items(FeedEvent, b'{"a":1}', b"plain text")
    assert lines == [FeedEvent(b'{"a":1}', "", "")]
    assert isinstance(invalid, Invalid)


def test_records_may_stay_bytes_and_are_json_all_the_same() -> None:
    [values, invalid, more] = items(bytes, b'{"a":1}\r', b"{", b"2")
    assert (values, more) == ([b'{"a":1}'], [b"2"])
    assert isinstance(invalid, Invalid)


def test_a_model_with_a_validation_of_its_own_is_given_values() -> None:
    class Model:
        @classmethod
        def model_validate(cls, value: Any) -> Any:
            return "validated", value

    assert items(Model, b'{"a":1}') == [[("validated", {"a": 1})]]

    class Own(pydantic.BaseModel):
        a: int

        @classmethod
        def model_validate(cls, obj: Any, **_: Any) -> Own:
            return super().model_validate({"a": obj["a"] + 1})

    assert items(Own, b'{"a":1}') == [[Own(a=2)]]


def test_a_model_may_be_any_callable_and_nothing_else() -> None:
    assert items(lambda value: value["a"], b'{"a":1}') == [[1]]
    assert decoder_for(None) is None
    with pytest.raises(TypeError, match="must be a type or a callable, not 7"):
        decoder_for(7)


# -- settings


@pytest.mark.parametrize(
    ("timeout", "stall", "silence"),
    [(None, None, math.inf), (30.0, None, 30.0), (None, 20.0, 20.0), (30.0, 20.0, 20.0)],
)
def test_the_shorter_time_limit_ends_a_silent_connection(
    timeout: float | None, stall: float | None, silence: float
) -> None:
    assert StreamConfig(timeout=timeout, stall_timeout=stall).silence == silence
