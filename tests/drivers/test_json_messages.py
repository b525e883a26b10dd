"""What clients take for a JSON message: what the server takes, and back in full; and what becomes of anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pydantic
import pytest
from facade import Facade
from scripted import ScriptedServer

from durable_streams import RetryPolicy, StreamParseError
from durable_streams.protocol.sse import encode_control, encode_data

JSON = "application/json"
QUICK = RetryPolicy(max_retries=5, initial_delay=0.001, max_delay=0.01)
POISON = [b"9" * 4301, b"[" * 513 + b"]" * 513, b"[" * 3000 + b"]" * 3000, b"NaN", b'"\xff"', b"{bad}", b""]


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = [value]
    return value


class Struct(msgspec.Struct):
    id: int


class Model(pydantic.BaseModel):
    id: int


STRANGE: dict[str, tuple[str, Any]] = {
    "surrogate": (r'{"id":2,"t":"a\ud83d"}', {"id": 2, "t": "a\ud83d"}),
    "depth": ('{"id":2,"t":' + "[" * 510 + "{}" + "]" * 510 + "}", {"id": 2, "t": nested(511)}),
    "double": ('{"id":2,"t":-1e400}', {"id": 2, "t": float("-inf")}),
    "integer": ('{"id":2,"t":' + "9" * 4300 + "}", {"id": 2, "t": 10**4300 - 1}),
    "key": (r'{"id":1,"id":2,"\udc00":[]}', {"id": 2, "\udc00": []}),
}


def numbers(response: Any, **options: Any) -> list[int]:
    return [item.id for item in response.iter_json(**options)]


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.every_store
def test_a7_strange_messages_go_in_and_come_out(facade: Facade, url: str, name: str) -> None:
    text, value = STRANGE[name]
    handle = facade.DurableStream.create(url, content_type=JSON, body=text)
    handle.append(text)
    handle.append(text.encode())
    producer = facade.Producer(url, "p")
    producer.append(text)
    producer.append(text.encode())
    values = 0
    if name != "double":  # which has no value to append
        handle.append(value)
        producer.append(value)
        values = 2
    producer.close()
    handle.close_stream(text)
    count = 6 + values
    for live in (False, "sse", "long-poll"):
        assert list(handle.stream(live=live).iter_json()) == [value] * count
        for kind in (Struct, Model, pydantic.TypeAdapter(Model)):
            assert numbers(handle.stream(live=live), decode=kind) == [2] * count
    assert handle.stream(live=False).read_json() == [value] * count
    assert [item for event in handle.stream(live=False).iter_events() for item in event.data] == [
        value
    ] * count


REFUSED: list[Any] = [
    "9" * 4301,
    "[" * 513 + "]" * 513,
    "NaN",
    "\ufeff1",
    '"\ud800"',
    nested(513),
    10**4300,
    [float("nan")],
    float("inf"),
]


@pytest.mark.parametrize("bad", REFUSED, ids=range(len(REFUSED)))
def test_a7_what_the_rule_refuses_is_refused_before_it_is_sent(facade: Facade, url: str, bad: Any) -> None:
    handle = facade.DurableStream.create(url, content_type=JSON)
    producer = facade.Producer(url, "p", content_type=JSON)
    sends: list[Callable[[Any], object]] = [
        handle.append,
        producer.append,
        producer.submit,
        handle.close_stream,
    ]
    for send in sends:
        with pytest.raises(ValueError, match=r"^[^\n]{1,300}$"):
            send(bad)
    with pytest.raises(ValueError, match=r"^[^\n]{1,300}$"):
        facade.DurableStream.create(f"{url}-2", content_type=JSON, body=bad)
    producer.append(1)
    producer.close()
    assert handle.stream(live=False).read_json() == [1]


# -- on_invalid


def poisoned(scripted: ScriptedServer, bodies: list[bytes], live: Any) -> None:
    """Let a stream be read that has these batches, and is closed."""
    if live == "sse":
        wire = b"".join(
            encode_data(body, text=True) + encode_control(str(number), closed=number == len(bodies))
            for number, body in enumerate(bodies, 1)
        )
        scripted.replies = [scripted.send(scripted.events(wire), close=True)]
        return
    scripted.replies = []
    for number, body in enumerate(bodies, 1):
        headers = {"content_type": JSON, "stream_next_offset": str(number)}
        if number == len(bodies):
            headers |= {"stream_up_to_date": "true", "stream_closed": "true"}
        scripted.replies.append(scripted.send(scripted.response(200, body, **headers)))


BATCHES = [b'[{"id":1}]', b'[{"id":2},%b,{"id":3}]', b'[{"id":4}]']


@pytest.mark.parametrize("poison", POISON, ids=lambda poison: poison[:6].decode("latin-1"))
@pytest.mark.parametrize("live", [False, "sse"])
def test_a8_the_messages_before_an_invalid_one_come_first(
    facade: Facade, scripted: ScriptedServer, poison: bytes, live: Any
) -> None:
    bodies = [body % poison if b"%b" in body else body for body in BATCHES]
    for decode in (None, Struct, Model, lambda item: Struct(item["id"])):
        poisoned(scripted, bodies, live)
        scripted.requests.clear()
        response = facade.stream(scripted.root + "/s", live=live, retry=QUICK)
        seen: list[Any] = []
        with pytest.raises(
            StreamParseError, match=r"Message 2 of the batch after offset 1 is not valid JSON: [^\n]*\.$"
        ) as caught:
            seen.extend(item if decode else Struct(item["id"]) for item in response.iter_json(decode=decode))
        assert [item.id for item in seen] == [1, 2]
        assert caught.value.offset == response.offset == "1"
        assert response.closed


@pytest.mark.parametrize("poison", POISON, ids=lambda poison: poison[:6].decode("latin-1"))
@pytest.mark.parametrize("live", [False, "sse"])
def test_a8_an_invalid_message_is_skipped_on_request(
    facade: Facade, scripted: ScriptedServer, poison: bytes, live: Any
) -> None:
    bodies = [body % poison if b"%b" in body else body for body in BATCHES]
    url = scripted.root + "/s"
    kinds: list[Any] = [None, Struct, Model, pydantic.TypeAdapter(Model), lambda item: Struct(item["id"])]
    for decode in kinds:
        refused: list[tuple[bytes, StreamParseError]] = []
        for on_invalid in ("skip", lambda raw, error, refused=refused: refused.append((raw, error))):
            poisoned(scripted, bodies, live)
            scripted.requests.clear()
            response = facade.stream(url, live=live, retry=QUICK, on_invalid=on_invalid)
            items = list(response.iter_json(decode=decode))
            assert [item["id"] if isinstance(item, dict) else item.id for item in items] == [1, 2, 3, 4]
            assert (response.invalid, response.offset, response.stream_closed) == (1, "3", True)
        assert [raw for raw, _ in refused] == [poison]
        assert isinstance(refused[0][1], StreamParseError)
    for read in ("read_json", "iter_json_batches", "read_json_batches", "iter_events"):
        poisoned(scripted, bodies, live)
        scripted.requests.clear()
        response = facade.stream(url, live=live, retry=QUICK, on_invalid="skip")
        found = getattr(response, read)(**({"mode": "json"} if read == "iter_events" else {}))
        parts = [event.data for event in found] if read == "iter_events" else list(found)
        flat = parts if read == "read_json" else [item for part in parts for item in part]
        assert flat == [{"id": number} for number in (1, 2, 3, 4)]
        assert response.invalid == 1


def test_a8_batches_and_events_come_up_to_an_invalid_message(
    facade: Facade, scripted: ScriptedServer
) -> None:
    bodies = [body % b"NaN" if b"%b" in body else body for body in BATCHES]
    url = scripted.root + "/s"
    for read in ("iter_json_batches", "iter_events"):
        poisoned(scripted, bodies, False)
        scripted.requests.clear()
        response = facade.stream(url, live=False, retry=QUICK)
        seen: list[Any] = []
        with pytest.raises(StreamParseError):
            seen.extend(getattr(response, read)())
        parts = seen if read == "iter_json_batches" else [event.data for event in seen]
        assert parts == [[{"id": 1}], [{"id": 2}]]
        if read == "iter_events":  # the offset is one from which nothing is missing
            assert [event.next_offset for event in seen] == ["1", "1"]
        assert response.offset == "1"
    poisoned(scripted, bodies, False)
    scripted.requests.clear()
    response = facade.stream(url, live=False, retry=QUICK)
    with pytest.raises(StreamParseError):
        response.read_json()
    assert response.offset == "-1"


def test_a8_models_that_refuse_a_message_are_reported_likewise(facade: Facade, url: str) -> None:
    class Picky(pydantic.BaseModel):
        id: int

        @pydantic.field_validator("id")
        @classmethod
        def even(cls, value: int) -> int:
            if value % 2:
                raise RuntimeError("odd")  # not one of Pydantic's own
            return value

    handle = facade.DurableStream.create(url, content_type=JSON)
    handle.append({"id": 2})
    handle.append({"id": 3})
    handle.append({"other": 1})
    handle.append({"id": 4})
    handle.close_stream()
    for kind in (Picky, Picky.model_validate):
        refused: list[bytes] = []
        response = handle.stream(live=False, on_invalid=lambda raw, _, refused=refused: refused.append(raw))
        assert numbers(response, decode=kind) == [2, 4]
        assert refused == [b'{"id":3}', b'{"other":1}']
        with pytest.raises(RuntimeError, match="odd"):
            numbers(handle.stream(live=False), decode=kind)


def test_a8_the_end_of_a_batch_that_is_no_array_is_one_invalid_message(
    facade: Facade, scripted: ScriptedServer
) -> None:
    for damage in (
        b'[{"id":1},{"id":2}',
        b'[{"id":1},{"id":2}] x',
        b'[{"id":1},{"id":2}}',
        b'[{"id":1},{"id":2},"',
    ):
        poisoned(scripted, [damage, b'[{"id":3}]'], False)
        scripted.requests.clear()
        response = facade.stream(scripted.root + "/s", live=False, on_invalid="skip", retry=QUICK)
        assert [item["id"] for item in response.iter_json()][-1] == 3
        assert response.invalid == 1


def test_a8_a_callable_may_end_the_read_itself(facade: Facade, scripted: ScriptedServer) -> None:
    class MineError(Exception):
        pass

    def refuse(raw: bytes, error: StreamParseError) -> None:
        raise MineError(raw) from error

    poisoned(scripted, [b'[{"id":1},NaN,{"id":2}]'], False)
    response = facade.stream(scripted.root + "/s", live=False, on_invalid=refuse)
    seen: list[Any] = []
    with pytest.raises(MineError):
        seen.extend(response.iter_json())
    assert seen == [{"id": 1}]


@pytest.mark.parametrize("bad", ["ignore", None, 3])
def test_a8_on_invalid_is_one_of_three(facade: Facade, url: str, bad: Any) -> None:
    facade.DurableStream.create(url, content_type=JSON)
    with pytest.raises(ValueError, match="on_invalid must be 'skip', 'raise' or a callable"):
        facade.stream(url, live=False, on_invalid=bad)
    with pytest.raises(ValueError, match="on_invalid must be 'skip', 'raise' or a callable"):
        facade.DurableStream(url).stream(live=False, on_invalid=bad)


def test_a8_an_async_on_invalid_is_awaited_before_the_messages_behind(scripted: ScriptedServer) -> None:
    import durable_streams

    poisoned(scripted, [b'[{"id":1},NaN,{"id":2},nope]'], False)
    log: list[Any] = []

    async def refuse(raw: bytes, _: StreamParseError) -> None:
        await asyncio.sleep(0)
        log.append(raw)

    async def work() -> None:
        async with durable_streams.astream(scripted.root + "/s", live=False, on_invalid=refuse) as response:
            async for item in response.iter_json():
                log.append(item["id"])  # noqa: PERF401 - in the order of what happens

    asyncio.run(work())
    assert log.index(b"NaN") < log.index(2)
    assert sorted(map(str, log)) == sorted(map(str, [1, b"NaN", 2, b"nope"]))


def test_a8_skipping_saves_the_place_behind_what_was_skipped(
    facade: Facade, scripted: ScriptedServer, tmp_path: Any
) -> None:
    poisoned(scripted, [b'[{"id":1},NaN]', b"[NaN]"], False)
    place = tmp_path / "place"
    with facade.stream(scripted.root + "/s", live=False, on_invalid="skip", checkpoint=place) as response:
        assert list(response.iter_json()) == [{"id": 1}]
    assert response.offset == "2"
    assert '"2"' in place.read_text()
