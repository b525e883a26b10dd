"""Errors as programs and test doubles make them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import durable_streams
from durable_streams import errors

MADE = [
    (errors.StreamNotFoundError(url="http://h/s"), {"status": 404, "code": "NOT_FOUND", "url": "http://h/s"}),
    (errors.StreamExistsError(), {"status": 409, "code": "CONFLICT_EXISTS", "url": None}),
    (errors.StreamClosedError(final_offset="7"), {"status": 409, "final_offset": "7"}),
    (errors.SeqConflictError("m", {"a": 1}), {"status": 409, "details": {"a": 1}, "expected": None}),
    (errors.OffsetConflictError("1", "2"), {"status": 412, "expected_offset": "1", "current_offset": "2"}),
    (errors.RetentionGoneError(), {"status": 410, "code": "RETENTION_GONE", "earliest": None}),
    (errors.RetentionGoneError("m", earliest="4"), {"status": 410, "earliest": "4"}),
    (errors.SequenceGapError(1, 2), {"expected_seq": 1, "received_seq": 2, "status": 409}),
    (errors.StaleEpochError(3), {"current_epoch": 3, "status": 403}),
    (errors.SSENotSupportedError(content_type="a/b"), {"content_type": "a/b"}),
    (errors.SSEReadAllError("read_text"), {"method": "read_text"}),
    (errors.StreamConsumedError("m", "iter_text", "read_json"), {"consumed_by": "read_json"}),
    (errors.FetchError("m", 502, "u", {"a": "b"}, b"body"), {"body": b"body", "headers": {"a": "b"}}),
    (errors.FetchError("m", may_have_been_sent=False), {"may_have_been_sent": False, "status": None}),
    (errors.DurableStreamError("m", 418, "TEAPOT", [1]), {"status": 418, "code": "TEAPOT", "details": [1]}),
]


@pytest.mark.parametrize(("error", "attributes"), MADE, ids=lambda value: type(value).__name__)
def test_c2_errors_are_made_as_in_the_official_client(
    error: errors.DurableStreamError, attributes: dict[str, Any]
) -> None:
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert str(error) == error.message
    assert " " in error.message or error.message == "m"


def test_c2_default_messages_name_what_was_given() -> None:
    assert "http://h/s" in str(errors.StreamNotFoundError(url="http://h/s"))
    assert str(errors.StreamNotFoundError("mine", "http://h/s")) == "mine"
    assert "3" in str(errors.StaleEpochError(3))
    assert "iter_text" in str(
        errors.StreamConsumedError(attempted_method="iter_text", consumed_by="read_json")
    )


@pytest.mark.parametrize("error", [error for error, _ in MADE], ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: errors.DurableStreamError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_c1_the_version_and_the_names_of_the_official_client() -> None:
    from importlib.metadata import version

    assert durable_streams.__version__ == version("durable-streams")
    assert durable_streams.StreamEvent([1], "3", True).cursor is None
    assert durable_streams.StreamEvent[int].__origin__ is durable_streams.StreamEvent  # type: ignore[attr-defined]
    assert durable_streams.HeadResult(True).offset is None
