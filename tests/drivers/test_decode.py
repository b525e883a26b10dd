"""Messages as types, in whole reads: before an invalid one the others are handed over, and the place is stated."""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import RetryPolicy, StreamParseError
from durable_streams.protocol.sse import encode_control, encode_data

QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)


class Struct(msgspec.Struct):
    id: int


@dataclasses.dataclass
class DataClass:
    id: int


class Typed(TypedDict):
    id: int


class Model(pydantic.BaseModel):
    id: int


def number_of(item: Any) -> int:
    return int(item["id"] if isinstance(item, dict) else item.id)


KINDS = [Struct, DataClass, Typed, Model]
MODES = [False, True, "long-poll", "sse"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("live", MODES)
def test_messages_of_a_type(facade: Facade, url: str, kind: type, live: Any) -> None:
    facade.DurableStream.create(url, content_type="application/json")
    handle = facade.DurableStream(url)
    for number in range(3):
        handle.append({"id": number, "more": "x"} if kind is not Typed else {"id": number})
    handle.close_stream()
    with facade.stream(url, live=live) as response:
        items = list(response.iter_json(decode=kind))
    assert [number_of(item) for item in items] == [0, 1, 2]
    assert all(isinstance(item, dict if kind is Typed else kind) for item in items)
    assert facade.stream(url, live=live).read_json(decode=kind) == items
    batches = facade.stream(url, live=live).iter_json_batches(decode=kind)
    assert [item for batch in batches for item in batch] == items


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("live", [False, "sse"])
@pytest.mark.every_store
def test_an_invalid_message_in_the_middle(facade: Facade, url: str, kind: type, live: Any) -> None:
    """Pitfall 4: the good ones before it are handed over, and the offset is the last safe position."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    for item in ({"id": 1}, {"id": 2}):
        handle.append(item)
    safe = handle.head().offset
    first = facade.stream(url, live=live)
    seen = []
    if live == "sse":
        items = first.iter_json(decode=kind)
        seen += [number_of(next(items)), number_of(next(items))]
        assert first.offset == safe
    for item in ({"id": 3}, {"id": "four"}, {"id": 5}):
        handle.append(item)
    handle.close_stream()
    seen.clear()
    reading = facade.stream(url, live=live, offset=safe)
    items = reading.iter_json(decode=kind)
    with pytest.raises(StreamParseError) as caught:
        seen.extend(map(number_of, items))
    assert seen == [3]
    assert caught.value.offset == reading.offset
    assert caught.value.offset in {safe, *(_offsets(facade, url, safe))}
    assert reading.closed
    # From that position the good ones come again, never fewer.
    again = facade.stream(url, live=False, offset=caught.value.offset).read_json()
    assert {"id": "four"} in again
    first.close()


def _offsets(facade: Facade, url: str, offset: str) -> list[str]:
    return [event.next_offset for event in facade.stream(url, live=False, offset=offset).iter_events()]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_before_an_invalid_one_are_committed(
    facade: Facade, scripted: ScriptedServer, kind: type
) -> None:
    """Pitfall 4: a poisonous message costs nothing of what came before it, however the network cut it."""
    batches = [b'[{"id":1},{"id":2}]', b'[{"id":3},{"id":null},{"id":5}]']
    wire = b"".join(
        encode_data(batch, text=True) + encode_control(str(number)) for number, batch in enumerate(batches, 1)
    )
    scripted.replies = [scripted.send(scripted.events(wire), close=True)]
    reading = facade.stream(scripted.root + "/s", live="sse", retry=QUICK)
    seen: list[int] = []
    with pytest.raises(StreamParseError) as caught:
        seen.extend(map(number_of, reading.iter_json(decode=kind)))
    assert seen == [1, 2, 3]
    assert caught.value.offset == reading.offset == "1"
    assert scripted.gone.acquire(timeout=10)


def test_a_callable_is_called_for_each_message(facade: Facade, url: str) -> None:
    handle = facade.DurableStream.create(url, content_type="application/json")
    handle.append(7)
    assert list(handle.stream(live=False).iter_json(decode=str)) == ["7"]
    assert handle.stream(live=False).read_json(decode=lambda item: item + 1) == [8]


def test_a_callable_that_fails_does_not_move_the_offset(facade: Facade, url: str) -> None:
    """Pitfall 4: what it raises is the caller's own, and the message comes again."""
    handle = facade.DurableStream.create(url, content_type="application/json")
    for number in range(3):
        handle.append(number)
    response = handle.stream(live=False)
    seen = []

    def decode(item: Any) -> Any:
        if item == 2:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError):
        seen.extend(response.iter_json(decode=decode))
    assert seen == [0, 1]
    assert response.offset == "-1"
    assert response.closed


def test_what_no_json_can_be_read_into(facade: Facade, url: str) -> None:
    facade.DurableStream.create(url, content_type="application/json", body=1)
    with facade.stream(url, live=False) as response, pytest.raises(TypeError, match="decode"):
        next(iter(response.iter_json(decode=5)))
