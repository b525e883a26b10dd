"""Messages of the State Protocol: what is written, and what is refused."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

from durable_streams.protocol.changes import (
    ABSENT,
    RowChange,
    StateMessage,
    change_message,
    control_message,
    encode_message,
    why_invalid,
)


def test_a_change_has_the_members_of_the_protocol_and_no_others() -> None:
    assert change_message("insert", "user", "1", {"id": "1"}) == {
        "type": "user",
        "key": "1",
        "value": {"id": "1"},
        "headers": {"operation": "insert"},
    }
    assert change_message("delete", "user", "1") == {
        "type": "user",
        "key": "1",
        "headers": {"operation": "delete"},
    }
    assert change_message("update", "user", "1", None, old_value={"id": "1"})["value"] is None


def test_headers_of_the_caller_join_and_do_not_replace() -> None:
    made = change_message("upsert", "user", "1", 1, txid="t", headers={"operation": "delete", "from": "me"})
    assert made["headers"] == {"operation": "upsert", "from": "me", "txid": "t"}


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (datetime(2026, 1, 31, 12, tzinfo=timezone.utc), "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T12:00:00+02:00"),
    ],
)
def test_a_timestamp_is_written_as_rfc_3339(time: datetime | str, text: str) -> None:
    assert change_message("delete", "user", "1", timestamp=time)["headers"]["timestamp"] == text


@pytest.mark.parametrize(
    "time",
    ["yesterday", "2026-01-31T12:00:00", datetime(2026, 1, 31, tzinfo=timezone.utc).replace(tzinfo=None), ""],
)
def test_a_timestamp_without_a_zone_is_refused(time: datetime | str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        change_message("delete", "user", "1", timestamp=time)


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("insert", "", "1", 1), {}, "type is missing"),
        (("insert", "user", "", 1), {}, "key is missing"),
        (("insert", "user", "\ud800", 1), {}, "half of a surrogate pair"),
        (("insert", "user", "1"), {}, "no value"),
        (("replace", "user", "1", 1), {}, "'replace', not insert"),
        (("delete", "user", "1", 1), {}, "its old_value"),
        (("delete", "user", "1"), {"txid": ""}, "txid must be text"),
        (("delete", "user", "1"), {"txid": 7}, "txid must be text"),
    ],
)
def test_what_is_no_change_is_refused(arguments: tuple[Any, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        change_message(*arguments, **options)


def test_control_messages() -> None:
    assert control_message("reset") == {"headers": {"control": "reset"}}


def test_what_is_read_may_have_more() -> None:
    text = b'{"type":"u","key":"k","value":null,"more":1,"headers":{"operation":"upsert","from":"x","offset":"9"}}'
    message = msgspec.json.decode(text, type=StateMessage)
    assert why_invalid(message) is None
    assert message.value is None
    assert message.headers["from"] == "x"


def test_why_a_message_is_no_change() -> None:
    assert why_invalid(StateMessage({})) == "its headers have neither operation nor control"
    assert "is ['insert']" in (why_invalid(StateMessage({"operation": ["insert"]}, "u", "k", 1)) or "")
    assert why_invalid(StateMessage({"operation": "delete"}, "ü", "日本")) is None


def test_a_message_as_json() -> None:
    assert encode_message(StateMessage({"control": "x"})) == b'{"headers":{"control":"x"}}'
    assert msgspec.json.decode(encode_message(StateMessage({}, "u", "k", None, ABSENT))) == {
        "headers": {},
        "type": "u",
        "key": "k",
        "value": None,
    }


def test_the_transaction_of_a_change() -> None:
    assert RowChange("u", "k", "delete", 1, None, {"txid": "t"}).txid == "t"
    assert RowChange("u", "k", "delete", 1, None, {}).txid is None
