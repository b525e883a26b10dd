"""What the server takes for a JSON message, and what it does with those that older versions took."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from durable_streams.protocol.commands import Append, Create
from durable_streams.stores.sqlite import SqliteStore

JSON = "application/json"
STRANGE = {
    "lone surrogate": rb'{"id":2,"t":"a\ud83d"}',
    "deepest": b"[" * 511 + b"{}" + b"]" * 511,
    "long integer": b"-" + b"9" * 4300,
    "beyond a double": b"-1e400",
    "fraction": b"1." + b"1" * 6000,
    "exponent": b"1e" + b"1" * 6000,
    "key twice": b'{"a":1,"a":2}',
    "brackets in text": b'"' + b"[" * 2000 + b'"',
}
REFUSED = {
    "too deep": (b"[" * 512 + b"{}" + b"]" * 512, "more than 512 levels"),
    "much too deep": (b"[" * 100_000, "more than 512 levels"),
    "too deep beside text": (b'["' + b"]" * 600 + b'",' + b"[" * 512 + b"]" * 513, "more than 512 levels"),
    "integer": (b"9" * 4301, "more than 4,300 digits"),
    "negative integer": (b"-" + b"9" * 4301, "more than 4,300 digits"),
    "integer behind text": (b'["' + b"9" * 5000 + rb'\"",' + b"9" * 4301 + b"]", "more than 4,300 digits"),
    "byte order mark": (b"\xef\xbb\xbf1", ""),
    "not a number": (b"NaN", "invalid"),
    "infinity": (b"-Infinity", "invalid"),
    "half an escape": (rb'"\ud83"', "invalid"),
    "control character": (b'"\x01"', "invalid"),
    "not UTF-8": (b'"\xff"', "invalid UTF-8"),
    "a surrogate in UTF-8": (b'"\xed\xa0\x80"', "invalid UTF-8"),
    "form feed": (b"\x0c1", "invalid"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a7_what_is_strange_but_json_is_stored_as_it_came(either_server, stream: str, name: str) -> None:
    message = STRANGE[name]
    assert either_server.create(stream, JSON).status == 201
    assert either_server.append(stream, b"[ " + message + b" ]", JSON).status == 204
    assert either_server.append(stream, b"[1,\n" + message + b" ,2]", JSON).status == 204
    if not message.startswith(b"["):
        assert either_server.append(stream, message, JSON).status == 204
    body = either_server.read_all(stream)
    assert body.count(message) == (2 if message.startswith(b"[") else 3)
    created = either_server.request("PUT", f"{stream}-2", b"[" + message + b"]", **{"content-type": JSON})
    assert created.status == 201
    assert either_server.read_all(f"{stream}-2") == b"[" + message + b"]"


@pytest.mark.parametrize("name", REFUSED)
def test_a7_what_the_rule_refuses_is_a_400_in_one_sentence(either_server, stream: str, name: str) -> None:
    message, reason = REFUSED[name]
    either_server.create(stream, JSON)
    bodies = [b"[" + message + b"]", b"[1," + message + b',"x"]']
    for body in bodies if message.startswith(b"[") else [*bodies, message]:
        answer = either_server.append(stream, body, JSON)
        assert answer.status == 400
        text = answer.json["error"]["message"]
        assert text.startswith("the body is not valid JSON: ")
        assert reason in text
        assert len(text) < 200
        assert "\n" not in text
        assert either_server.request("PUT", f"{stream}-2", body, **{"content-type": JSON}).status == 400
    assert either_server.read_all(stream) == b"[]"
    assert either_server.request("HEAD", f"{stream}-2").status == 404


def test_a7_a_byte_order_mark_is_named(either_server, stream: str) -> None:
    either_server.create(stream, JSON)
    answer = either_server.append(stream, b"\xef\xbb\xbf[1]", JSON)
    assert (answer.status, "byte order mark" in answer.json["error"]["message"]) == (400, True)


def test_a7_the_array_of_a_batch_is_no_level_of_its_messages(either_server, stream: str) -> None:
    either_server.create(stream, JSON)
    deepest = b"[" * 512 + b"]" * 512
    assert either_server.append(stream, b"[" + deepest + b"," + deepest + b"]", JSON).status == 204
    assert either_server.append(stream, b"[[" + deepest + b"]]", JSON).status == 400
    assert either_server.append(stream, b'{"":' * 512 + b"1" + b"}" * 512, JSON).status == 204
    assert either_server.append(stream, b'{"":' * 513 + b"1" + b"}" * 513, JSON).status == 400


def test_a8_poison_of_an_older_version_is_served_and_can_be_forked_around(
    start_server, tmp_path: Path
) -> None:
    poison = [b"9" * 5000, b"[" * 940 + b"]" * 940, rb'"\ud800"']

    async def fill() -> None:
        store = SqliteStore(tmp_path)
        await store.open()
        await store.create(Create("s", JSON, b""))
        await store.append("s", Append(JSON, b"".join(message + b"," for message in [b"1", *poison, b"2"])))
        await store.close()

    asyncio.run(fill())
    server = start_server(tmp_path)
    assert server.read_all("s") == b"[" + b",".join([b"1", *poison, b"2"]) + b"]"
    for count in range(6):
        headers = {
            "stream-forked-from": "/v1/stream/s",
            "stream-fork-offset": "-1",
            "stream-fork-sub-offset": str(count),
        }
        assert server.request("PUT", f"fork-{count}", **headers).status == 201
        expected = [b"1", *poison, b"2"][:count]
        assert server.read_all(f"fork-{count}") == b"[" + b",".join(expected) + b"]"
    assert json.loads(server.read_all("fork-1")) == [1]
