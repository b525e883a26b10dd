"""What each format stores for the items of a source, and what it sends for what is stored."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from durable_streams.ai.formats import State, format_of

START, FINISH = {"type": "start"}, {"type": "finish"}


def stored(name: str, items: list[Any], state: State = "completed", reason: str | None = None) -> list[Any]:
    """Return all messages of a run."""
    form = format_of(name)
    writer = form.writer()
    messages = [message for item in items for message in writer.messages(item)]
    messages += writer.last(state)
    ending = form.ending(state, reason)
    return messages if ending is None else [*messages, ending]


def sent(name: str, messages: list[Any]) -> bytes:
    form = format_of(name)
    pieces = [form.piece(msgspec.json.encode(message), f"1-a:o:{i}") for i, message in enumerate(messages, 1)]
    return b"".join(pieces) + form.done


def text_part(number: int, *deltas: str) -> list[Any]:
    name = f"text-{number}"
    middle = [{"type": "text-delta", "id": name, "delta": delta} for delta in deltas]
    return [{"type": "text-start", "id": name}, *middle, {"type": "text-end", "id": name}]


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        (["to", "gether"], [START, *text_part(1, "to", "gether"), FINISH]),
        ([], [FINISH]),
        (["", b""], [FINISH]),
        ([b"\xe6\xb5", b"\x81"], [START, *text_part(1, "流"), FINISH]),
        ([b"\xe6"], [START, *text_part(1, "\N{REPLACEMENT CHARACTER}"), FINISH]),
        ([START, {"type": "x"}, FINISH], [START, {"type": "x"}, FINISH]),
        (
            ["a", {"type": "tool"}, "b"],
            [START, *text_part(1, "a"), {"type": "tool"}, *text_part(2, "b"), FINISH],
        ),
        ([START, "a", FINISH], [START, *text_part(1, "a"), FINISH]),
    ],
)
def test_the_ai_sdk_gets_dicts_as_they_are_and_text_as_parts(items: list[Any], messages: list[Any]) -> None:
    assert stored("ai-sdk", items) == messages


@pytest.mark.parametrize(
    ("state", "reason", "last"),
    [
        ("stopped", None, [{"type": "abort"}]),
        ("stopped", "replaced", [{"type": "abort"}]),
        ("failed", "why", [{"type": "error", "errorText": "why"}]),
        ("interrupted", "why", [{"type": "error", "errorText": "why"}]),
    ],
)
def test_an_end_that_is_none_of_the_source(state: State, reason: str | None, last: list[Any]) -> None:
    assert stored("ai-sdk", ["a"], state, reason) == [START, *text_part(1, "a"), *last]
    end = {"$end": state} if reason is None else {"$end": state, "error": reason}
    assert stored("events", ["a", {"b": 1}], state, reason) == ["a", {"b": 1}, end]
    assert stored("text", ["a", b"b"], state, reason) == ["a", "b", end]


def test_ag_ui_gets_dicts_as_they_are_and_text_as_a_run() -> None:
    events = [{"type": "RUN_STARTED"}, {"type": "RUN_FINISHED"}]
    assert stored("ag-ui", events) == events
    begun, message, *words, said, over = stored("ag-ui", [b"\xe6\xb5", b"\x81", "!", b"\xe6"])
    run = begun["runId"]
    assert begun == {"type": "RUN_STARTED", "threadId": run, "runId": run}
    assert message == {"type": "TEXT_MESSAGE_START", "messageId": f"{run}-text", "role": "assistant"}
    assert [word["delta"] for word in words] == ["流", "!", "\N{REPLACEMENT CHARACTER}"]
    assert said == {"type": "TEXT_MESSAGE_END", "messageId": f"{run}-text"}
    assert over == {"type": "RUN_FINISHED", "threadId": run, "runId": run}
    assert [one["type"] for one in stored("ag-ui", [])] == ["RUN_FINISHED"]
    assert sent("ag-ui", [{"type": "x"}]) == b'id: 1-a:o:1\ndata: {"type":"x"}\n\n'


def test_ag_ui_says_how_it_ended() -> None:
    *_, error = stored("ag-ui", ["a"], "failed", "the answer failed")
    assert error == {"type": "RUN_ERROR", "code": "failed", "message": "the answer failed"}
    assert [one["type"] for one in stored("ag-ui", ["a"], "stopped")][-2:] == [
        "TEXT_MESSAGE_END",
        "RUN_ERROR",
    ]


@pytest.mark.parametrize("items", [[5], [{"type": "x"}, "text"], ["text", {"type": "x"}]])
def test_ag_ui_takes_text_or_events(items: list[Any]) -> None:
    with pytest.raises(TypeError, match="'ag-ui'"):
        stored("ag-ui", items)


def test_what_is_sent() -> None:
    assert sent("ai-sdk", [START]) == b'data: {"type":"start"}\n\ndata: [DONE]\n\n'
    assert sent("events", ["a\nb", {"$end": "failed", "error": "why"}]) == (
        b'id: 1-a:o:1\ndata: "a\\nb"\n\nevent: end\nid: 1-a:o:2\ndata: {"state":"failed","error":"why"}\n\n'
    )
    assert sent("text", ["a\n", "流", {"$end": "completed"}]) == "a\n流".encode()


def test_what_a_format_cannot_hold() -> None:
    with pytest.raises(TypeError, match="'text' takes text or bytes, not dict"):
        stored("text", [{}])
    with pytest.raises(TypeError, match="'ai-sdk' takes text, bytes, or dicts"):
        stored("ai-sdk", [1])


def test_a_format_by_its_name() -> None:
    with pytest.raises(ValueError, match="'ai-sdk', 'ag-ui', 'events', 'text'"):
        format_of("xml")
    form = format_of("text")
    assert format_of(form) is form
