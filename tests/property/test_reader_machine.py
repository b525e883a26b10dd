"""The reader, driven without a socket: whatever a network does, bytes arrive once, in order, and none is skipped."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable_streams.errors import FetchError, SSENotSupportedError
from durable_streams.protocol import bodies
from durable_streams.protocol.effects import READ, Give, Pause, Send
from durable_streams.protocol.reader import Portion, Reader
from durable_streams.protocol.request import Request
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.protocol.sse import encode_control, encode_data

Content = bytes | list[bytes]
URL = "http://host/stream?tenant=a&tenant=b"
POLICY = RetryPolicy(max_retries=-1)


class ModelServer:
    """A stream of bytes or messages whose offsets are their numbers, served in chunks of its own choice."""

    def __init__(self, content: Content, draw: Draw, *, text: bool, closes: bool) -> None:
        self.content, self.draw, self.text, self.closes = content, draw, text, closes
        if isinstance(content, list):
            self.content_type = "application/json"
        else:
            self.content_type = "text/plain" if text else "application/octet-stream"

    def body(self, start: int, end: int) -> bytes:
        part = self.content[start:end]
        return b"[" + b",".join(part) + b"]" if isinstance(part, list) else part

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes, bool]:
        """Return status, headers, body, and whether the body ends where it should."""
        query = parse_qs(urlsplit(request.url).query)
        assert query["tenant"] == ["a", "b"]
        keys = [pair.partition("=")[0] for pair in urlsplit(request.url).query.split("&")]
        assert keys == sorted(keys)
        offset = query["offset"][0]
        start = 0 if offset == "-1" else int(offset)
        live = query.get("live", [None])[0]
        fault = self.draw(8)
        if fault == 0:
            return 503, {"retry-after": "1"}, b'{"error":{"code":"BUSY","message":"later"}}', True
        if fault == 1:
            return 429, {}, b"", True
        if live == "sse":
            return self.events(start)
        some = start + 1 + self.draw(20)
        end = min(len(self.content), some) if self.draw(3) else len(self.content)
        headers = {
            "stream-next-offset": f"{end:06}",
            "content-type": self.content_type,
            "stream-cursor": str(self.draw(99)),
        }
        if end == len(self.content):
            headers["stream-up-to-date"] = "true"
            if self.closes:
                headers["stream-closed"] = "true"
        body = self.body(start, end)
        if live == "long-poll" and start >= end:
            return 204, headers, b"", True
        if self.draw(4):
            headers["content-length"] = str(len(body))
        return (
            (200, headers, body, True)
            if self.draw(3)
            else (200, headers, body[: self.draw(len(body) + 1)], False)
        )

    def events(self, start: int) -> tuple[int, dict[str, str], bytes, bool]:
        if self.draw(6) == 0:
            return 200, {"content-type": "text/html"}, b"<html>", True
        wire = b""
        for _ in range(self.draw(4)):
            end = min(len(self.content), start + self.draw(20))
            if end > start:
                wire += encode_data(self.body(start, end), text=self.text)
            tail = end == len(self.content)
            wire += encode_control(f"{end:06}", cursor="7", up_to_date=tail, closed=tail and self.closes)
            start = end
        headers = {"content-type": "text/event-stream; charset=utf-8"}
        if not self.text:
            headers["stream-sse-data-encoding"] = "base64"
        cut = self.draw(3) == 0
        return 200, headers, wire[: self.draw(len(wire) + 1)] if cut else wire, not cut


class Draw:
    """A source of small numbers that ends: then every answer is the plain one, so that each run ends too."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __call__(self, below: int) -> int:
        return self.numbers.pop() % below if self.numbers and below else max(0, below - 1)


class Clock:
    """A clock that the driver of the machine sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


def run(reader: Reader, server: ModelServer, draw: Draw) -> Iterator[Portion]:
    """Drive the machine against the model, with answers cut anywhere; give its portions."""
    machine = reader.run()
    whole, pieces, requests = True, iter([b""]), 0
    given: object = None
    while True:
        try:
            effect = machine.throw(given) if isinstance(given, FetchError) else machine.send(given)
        except StopIteration:
            return
        given = None
        if isinstance(effect, Pause):
            CLOCK.now += effect.seconds
        elif isinstance(effect, Send):
            requests += 1
            assert requests < 10_000, "the reader makes no progress"
            CLOCK.now += 0.01
            if draw(9) == 0:
                given = FetchError("refused", may_have_been_sent=False)
                continue
            status, headers, body, whole = server.answer(effect.request)
            step = 1 + draw(30)
            pieces = iter([body[start : start + step] for start in range(0, len(body), step)])
            given = SimpleNamespace(status=status, headers=headers)
        elif effect is READ:
            given = next(pieces, b"" if whole else FetchError("reset"))
        elif isinstance(effect, Give):
            yield effect.value


@settings(max_examples=200)
@given(
    st.binary(max_size=120) | st.text(alphabet="ab\n :é😀\u2028", max_size=80),
    st.lists(st.integers(0, 1000), max_size=200),
    st.sampled_from([False, True, "long-poll", "sse"]),
)
def test_every_byte_once_and_never_a_checkpoint_ahead(
    content: bytes | str, numbers: list[int], live: object
) -> None:
    text = isinstance(content, str)
    data = content.encode() if isinstance(content, str) else content
    draw = Draw(list(numbers))
    server = ModelServer(data, draw, text=text, closes=True)
    if live == "sse":
        server.draw = Draw(
            [number for number in numbers if number % 6]
        )  # no refusals of SSE: they end an explicit read
    reader = Reader(URL, random=lambda: 0.5, clock=CLOCK, live=live, policy=POLICY)  # type: ignore[arg-type]
    delivered = b""
    refused = False
    try:
        for batch in run(reader, server, draw):
            delivered += batch.data
            reader.commit(batch)
            if reader.offset != "-1":
                assert data[: int(reader.offset)] == delivered[: int(reader.offset)]
    except SSENotSupportedError:
        refused = True
    if refused:
        assert live == "sse"
        assert data.startswith(delivered)
        return
    assert delivered == data
    assert reader.stream_closed
    assert reader.up_to_date
    assert reader.finished
    assert int(reader.offset) == len(data)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.lists(st.integers(0, 1000), max_size=100))
def test_an_interrupted_reader_resumes_without_loss_or_repetition(content: bytes, numbers: list[int]) -> None:
    draw = Draw(list(numbers))
    server = ModelServer(content, draw, text=False, closes=True)
    delivered, offset, cursor = b"", "-1", None
    for _ in range(1000):
        reader = Reader(URL, random=lambda: 0.5, clock=CLOCK, offset=offset, cursor=cursor, policy=POLICY)
        stop = draw(4)
        for count, batch in enumerate(run(reader, server, draw)):
            delivered += batch.data
            reader.commit(batch)
            if count == stop:
                break
        offset, cursor = reader.offset, reader.cursor
        if reader.stream_closed:
            break
    assert delivered == content


def units_of(data: bytes, content: Content) -> Content:
    if isinstance(content, list):
        return [bytes(raw) for raw in msgspec.json.decode(data, type=list[msgspec.Raw])] if data else []
    return data


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bodies be given out in pieces of a few bytes."""
    monkeypatch.setattr(bodies, "PIECE_SIZE", 20)


CONTENT = st.binary(max_size=120) | st.lists(
    st.sampled_from([b'{"id":1,"t":"},{"}', b'{"id":2}', b"17", b'"a,\\"b"', b"[[],[1,2]]", b"null"]),
    max_size=40,
)


@pytest.mark.usefixtures("tiny_pieces")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    CONTENT,
    st.lists(st.integers(0, 1000), max_size=300),
    st.sampled_from([False, True, "long-poll"]),
    st.integers(0, 40),
)
def test_e9_bodies_in_pieces_are_delivered_once(
    content: Content, numbers: list[int], live: object, whole: int
) -> None:
    """Bodies of any size, cut anywhere, then answered again in other sizes."""
    draw = Draw(list(numbers))
    server = ModelServer(content, draw, text=isinstance(content, list), closes=True)
    reader = Reader(URL, random=lambda: 0.5, clock=CLOCK, live=live, policy=POLICY)  # type: ignore[arg-type]
    reader.give_early(whole)
    delivered = content[:0]
    for batch in run(reader, server, draw):
        delivered += units_of(batch.data, content)  # type: ignore[operator]
        reader.commit(batch)
        assert delivered == content[: len(delivered)]
        assert reader.offset == "-1" or int(reader.offset) <= len(delivered)
    assert delivered == content
    assert (reader.stream_closed, int(reader.offset)) == (True, len(content))


@pytest.mark.usefixtures("tiny_pieces")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONTENT, st.lists(st.integers(0, 1000), max_size=150), st.integers(0, 40))
def test_e9_a_checkpoint_inside_a_body_skips_nothing(
    content: Content, numbers: list[int], whole: int
) -> None:
    """What is kept with the checkpoint, and what the next reader gives from there, are the stream."""
    draw = Draw(list(numbers))
    server = ModelServer(content, draw, text=isinstance(content, list), closes=True)
    kept, offset, cursor = content[:0], "-1", None
    for _ in range(1000):
        reader = Reader(URL, random=lambda: 0.5, clock=CLOCK, offset=offset, cursor=cursor, policy=POLICY)
        reader.give_early(whole)
        kept = kept[: 0 if offset == "-1" else int(offset)]  # as tail does with its file
        stop = draw(4) if draw.numbers else -1
        for count, batch in enumerate(run(reader, server, draw)):
            kept += units_of(batch.data, content)  # type: ignore[operator]
            reader.commit(batch)
            if count == stop:
                break
        offset, cursor = reader.offset, reader.cursor
        if reader.stream_closed:
            break
    assert kept == content


def test_base64_may_be_split_into_lines() -> None:
    reader = Reader("http://host/s", random=lambda: 0.5, clock=CLOCK, live="sse")
    headers = {"content-type": "text/event-stream", "stream-sse-data-encoding": "base64"}
    encoded = base64.encodebytes(bytes(range(256))).replace(b"\n", b"\r\ndata: ")
    wire = b"event: data\r\ndata: " + encoded + b"\r\n\r\n" + encode_control("5")
    machine = reader.run()
    assert isinstance(next(machine), Send)
    assert machine.send(SimpleNamespace(status=200, headers=headers)) is READ
    given = machine.send(wire)
    assert isinstance(given, Give)
    assert given.value.data == bytes(range(256))
