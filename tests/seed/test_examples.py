"""The examples that users were promised, run as they stand in ``examples/``: only the URLs' origin is a local server's.

What an example takes for granted (``db``, ``fetch_current_token``, an import) is given to it; what it prints is kept.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import typing
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import durable_streams
from durable_streams import DurableStream, DurableStreamError, StreamClosedError

EXAMPLES = Path(__file__).parent / "examples"
_numbers = itertools.count()


class Example:
    """One example against one server. ``printed`` grows as it runs; ``on_print`` hears of every line first."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.printed: list[str] = []
        self.on_print: Callable[[str], object] = lambda _: None

    def url(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def source(self, name: str) -> str:
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        # "https://..." stands for a whole URL there, "https://.../stream1" for one with that path.
        return re.sub(r"https://(streams\.example\.com|\.\.\.)", self.root, text)

    def run(self, name: str, start: str = "", end: str = "", **given: Any) -> dict[str, Any]:
        """Run an example, or the part from the line ``start`` to the line ``end``; return its names."""
        source = self.source(name)
        source = source[source.index(start) : source.index(end) if end else None]
        names = {"print": self._print, **given}
        exec(compile(source, name, "exec"), names)
        return names

    def _print(self, value: object) -> None:
        self.on_print(str(value))
        self.printed.append(str(value))


@pytest.fixture
def example(shared_server: Any) -> Example:
    return Example(f"{shared_server.root}/seed-{next(_numbers)}")


def create(
    example: Example, name: str = "", *items: Any, closed: bool = False, **options: Any
) -> DurableStream:
    handle = DurableStream.create(example.url(name), **{"content_type": "application/json", **options})
    for item in items:
        handle.append(item)
    if closed:
        handle.close_stream()
    return handle


@pytest.mark.parametrize("name", ["quick_start_sync.py", "quick_start_async.py"])
def test_quick_start(example: Example, name: str) -> None:
    """The read ends because the stream is closed; the handle then creates it anew, where it was deleted meanwhile."""
    old = create(example, "my-stream", {"n": 1}, {"n": 2}, closed=True)

    def on_print(line: str) -> None:
        if line == "{'n': 2}":
            old.delete()  # the last message: no request follows it

    example.on_print = on_print
    example.run(name)
    assert example.printed == ["{'n': 1}", "{'n': 2}"]
    assert DurableStream(example.url("my-stream")).stream(live=False).read_json() == [{"message": "hello"}]


def test_stream_and_checkpoint(example: Example) -> None:
    handle = create(example, "events", "1", "2")
    saved: list[str] = []

    def save_offset(offset: str) -> None:
        saved.append(offset)
        if len(saved) == 2:
            handle.append("3")
            handle.close_stream()

    example.run("stream_checkpoint.py", db=SimpleNamespace(save_offset=save_offset))
    assert example.printed[::2] == ["Event: 1", "Event: 2", "Event: 3"]
    assert example.printed[1::2] == [f"Offset: {offset}" for offset in saved]
    assert saved[-1] == handle.head().offset
    # Whenever it stops, what follows the saved offset is all that is missing.
    for seen, offset in enumerate(saved, 1):
        rest = handle.stream(live=False, offset=offset).read_json()
        assert rest == [1, 2, 3][3 - len(rest) :]
        assert len(rest) >= 3 - seen


def test_append(example: Example) -> None:
    handle = create(example, "events")
    names = example.run("handle_append.py", end="# Byte stream", DurableStream=DurableStream)
    assert handle.stream(live=False).read_json() == [{"message": "hello"}] * 2
    assert names["result"].next_offset == handle.head().offset
    assert re.fullmatch(r"Next offset: \S+", example.printed[0])
    handle.delete()
    create(example, "events", content_type="application/octet-stream")
    names = example.run(
        "handle_append.py", start="# Byte stream", handle=DurableStream(example.url("events"))
    )
    assert DurableStream(example.url("events")).stream(live=False).read_bytes() == b"raw bytes"


def test_async_handle(example: Example) -> None:
    example.on_print = lambda _: DurableStream(example.url("events")).close_stream()
    example.run("async_handle.py")
    assert example.printed == ["{'message': 'hello'}"]


def test_idempotent_producer(example: Example) -> None:
    handle = create(example, "orders")
    names = example.run("idempotent_producer.py")
    asyncio.run(names["main"]())
    asyncio.run(names["main"]())  # the epoch was used: auto_claim takes the next
    expected = [{"orderId": "123"}, {"orderId": "456"}] * 2
    assert handle.stream(live=False).read_json() == expected


def test_types(example: Example) -> None:
    names = example.run("types.py", Literal=typing.Literal, Callable=Callable)
    assert durable_streams.Offset is names["Offset"]
    # Wider: what is taken may be any mapping, a dict among them, and more values than these.
    assert set(typing.get_args(durable_streams.LiveMode)) > set(typing.get_args(names["LiveMode"]))
    for name in ("HeadersLike", "ParamsLike"):
        ours, promised = getattr(durable_streams, name), names[name]
        assert issubclass(typing.get_origin(promised), typing.get_origin(ours))
        (key, value), (promised_key, promised_value) = typing.get_args(ours), typing.get_args(promised)
        assert key is promised_key
        text, function = typing.get_args(promised_value)
        *values, functions = typing.get_args(value)
        assert text in values
        assert typing.get_args(functions)[0] == typing.get_args(function)[0]
        assert typing.get_args(function)[1] in typing.get_args(typing.get_args(functions)[1])


class Numbered:
    """A handle whose appends carry a sequence number that was used."""

    def __init__(self, handle: DurableStream) -> None:
        self._handle = handle

    def append(self, data: Any) -> object:
        return self._handle.append(data, seq="1")


def test_error_handling(example: Example) -> None:
    closed = create(example, "closed", closed=True)
    numbered = create(example, "numbered")
    numbered.append("1", seq="1")
    missing = DurableStream(example.url("missing"))
    for handle in (closed, Numbered(numbered), missing, numbered):
        example.run("error_handling.py", handle=handle, data={"n": 1})
    assert example.printed[:2] == [f"Stream closed: {closed.url}", "Sequence conflict"]
    assert re.fullmatch(r"Error NOT_FOUND: .*missing.*404.*", example.printed[2])
    assert len(example.printed) == 3


def test_exception_hierarchy(example: Example) -> None:
    lines = example.source("exception_hierarchy.txt").splitlines()
    names = [line.partition(" - ")[0] for line in lines]
    assert len(names) == 7
    for name in names:
        assert issubclass(getattr(durable_streams, name), DurableStreamError)
    handle = create(example, "closed", closed=True)
    with pytest.raises(StreamClosedError) as caught:
        handle.append("1")
    assert caught.value.status == 409


def test_connection_pooling(example: Example) -> None:
    for name in ("stream1", "stream2"):
        create(example, name)
    # The block of the example is empty but for its handles: what follows is inside it.
    source = example.source("connection_pooling.py") + "    use(client, stream1, stream2)\n"
    used: list[httpx.Client] = []

    def use(client: httpx.Client, *handles: DurableStream) -> None:
        for handle in handles:
            handle.append({"n": 1})
            assert handle.stream(live=False).read_json() == [{"n": 1}]
        assert not client.is_closed
        used.append(client)

    exec(compile(source, "connection_pooling.py", "exec"), {"use": use})
    assert used[0].is_closed


def test_dynamic_headers(example: Example, small_server: Any) -> None:
    """Called for each request, of which small answers make several."""
    example.root = f"{small_server.root}/seed-{next(_numbers)}"
    create(example, "", *[{"n": number, "pad": "x" * 300} for number in range(20)], closed=True)
    tokens: list[str] = []
    identifiers: list[str] = []

    def fetch_current_token() -> str:
        tokens.append(f"token-{len(tokens)}")
        return tokens[-1]

    def uuid4() -> uuid.UUID:
        identifiers.append(str(uuid.uuid4()))
        return uuid.UUID(identifiers[-1])

    example.run(
        "dynamic_headers.py", fetch_current_token=fetch_current_token, uuid=SimpleNamespace(uuid4=uuid4)
    )
    assert len(example.printed) == 20
    assert len(tokens) == len(identifiers) > 3


def test_type_annotations(example: Example) -> None:
    create(
        example, "", {"id": "a", "type": "t", "data": {}}, {"id": "b", "type": "t", "data": {}}, closed=True
    )
    example.run("type_annotations.py")
    assert example.printed == ["a", "b"]


def test_testing_module(example: Example) -> None:
    names = example.run("testing_module.py", DurableStream=DurableStream)
    try:
        assert names["handle"].stream(live=False).read_json() == [{"test": "data"}]
    finally:
        names["server"].stop()


def test_the_origin_is_all_that_is_replaced(example: Example) -> None:
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        replaced = example.source(path.name).replace(example.root, "")
        assert replaced == text.replace("https://streams.example.com", "").replace("https://...", "")
