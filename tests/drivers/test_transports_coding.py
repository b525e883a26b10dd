"""Compressed answers over every transport: decoded as they come, and a body that is cut or corrupt is an error."""

from __future__ import annotations

import gzip
import importlib
import socket
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from facade import Loop
from scripted import ScriptedServer
from wires import ALL, Wire, wire_over

from durable_streams import FetchError

AT_ONCE = 10.0
RECORDS = [b'{"number":%d,"pad":"%s"}\n' % (number, b"x" * 50) for number in range(50)]


@pytest.fixture(scope="module", params=ALL)
def wire(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Wire]:
    with wire_over(request.param, loop) as wire:
        yield wire


class _Brotli:
    def __init__(self) -> None:
        self._inner = importlib.import_module("brotli").Compressor()

    def compress(self, data: bytes) -> bytes:
        return bytes(self._inner.process(data) + self._inner.flush())

    def finish(self) -> bytes:
        return bytes(self._inner.finish())


class _Zstandard:
    def __init__(self) -> None:
        name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
        self._inner = importlib.import_module(name).ZstdCompressor()

    def compress(self, data: bytes) -> bytes:
        return bytes(self._inner.compress(data, self._inner.FLUSH_BLOCK))

    def finish(self) -> bytes:
        return bytes(self._inner.flush())


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._inner = zlib.compressobj(wbits=wbits)

    def compress(self, data: bytes) -> bytes:
        return self._inner.compress(data) + self._inner.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._inner.flush()


CODINGS: dict[str, tuple[str, Any]] = {
    "gzip": ("gzip", lambda: _Zlib(31)),
    "deflate": ("deflate", lambda: _Zlib(15)),
    "raw deflate": ("deflate", lambda: _Zlib(-15)),
    "br": ("br", _Brotli),
    "zstd": ("zstd", _Zstandard),
}
coding = pytest.mark.parametrize("coding", CODINGS)


def compressed(coding: str) -> tuple[str, list[bytes]]:
    """Return the coding's name and the records, each in a piece of its own, then the coding's end."""
    name, make = CODINGS[coding]
    compressor = make()
    return name, [*(compressor.compress(record) for record in RECORDS), compressor.finish()]


def head(name: str, framing: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-encoding: {name}\r\n{framing}\r\n\r\n".encode()


@coding
@pytest.mark.parametrize("framing", ["content-length", "chunked", "close"])
def test_a_compressed_body_is_decoded(
    wire: Wire, scripted: ScriptedServer, coding: str, framing: str
) -> None:
    name, pieces = compressed(coding)
    body = b"".join(pieces)
    if framing == "content-length":
        wire_bytes = head(name, f"content-length: {len(body)}") + body
    elif framing == "chunked":
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
        wire_bytes = head(name, "transfer-encoding: chunked") + chunks + b"0\r\n\r\n"
    else:
        wire_bytes = head(name, "connection: close") + body
    scripted.replies = [scripted.send(wire_bytes, close=framing == "close")]
    assert wire.get(scripted.root + "/x") == b"".join(RECORDS)


@coding
def test_a_slow_compressed_feed_is_handed_over_record_by_record(
    wire: Wire, scripted: ScriptedServer, coding: str
) -> None:
    """Pitfall 27: nothing waits for a buffer to fill."""
    name, pieces = compressed(coding)
    go_on = threading.Semaphore(0)

    def reply(connection: socket.socket) -> None:
        connection.sendall(head(name, "transfer-encoding: chunked"))
        for piece in pieces:
            if piece:
                connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            go_on.acquire(timeout=AT_ONCE)
        connection.sendall(b"0\r\n\r\n")

    scripted.replies = [reply]
    with wire.open(scripted.root + "/x", streaming=True) as answer:
        for record in RECORDS[:10]:
            received = b""
            while len(received) < len(record):
                received += answer.read()
            assert received == record
            go_on.release()


@coding
@pytest.mark.parametrize("framing", ["content-length", "chunked", "close"])
def test_a_compressed_body_that_is_cut_is_an_error(
    wire: Wire, scripted: ScriptedServer, coding: str, framing: str
) -> None:
    """Pitfall 5. Cut as HTTP sees it, and with ``close`` only as the coding does."""
    name, pieces = compressed(coding)
    body = b"".join(pieces)
    cut = b"".join(pieces[:25])
    if framing == "content-length":
        wire_bytes = head(name, f"content-length: {len(body)}") + cut
    elif framing == "chunked":
        wire_bytes = head(name, "transfer-encoding: chunked") + b"%x\r\n%s\r\n" % (len(cut), cut)
    else:
        wire_bytes = head(name, "connection: close") + cut
        if wire.library == "aiohttp" and name != "deflate":
            pytest.skip("aiohttp does not tell whether the compressed data came to its end")
    scripted.replies = [scripted.send(wire_bytes, close=True)]
    with pytest.raises(FetchError) as caught:
        wire.get(scripted.root + "/x")
    assert (caught.value.code, caught.value.status) == ("NETWORK", 200)


@coding
def test_a_corrupt_body_is_an_error(wire: Wire, scripted: ScriptedServer, coding: str) -> None:
    name, pieces = compressed(coding)
    body = pieces[0] + b"\xff" * 200 + b"".join(pieces[1:])
    scripted.replies = [scripted.send(head(name, f"content-length: {len(body)}") + body)]
    with pytest.raises(FetchError) as caught:
        wire.get(scripted.root + "/x")
    assert (type(caught.value), caught.value.code) == (FetchError, "NETWORK")
    assert caught.value.original is not None


def test_gzip_of_several_members_is_whole_or_an_error(wire: Wire, scripted: ScriptedServer) -> None:
    body = gzip.compress(b"one") + gzip.compress(b"two")
    scripted.replies = [scripted.send(head("gzip", f"content-length: {len(body)}") + body)]
    if wire.library.startswith("httpx"):
        with pytest.raises(FetchError):  # the library drops all but the first
            wire.get(scripted.root + "/x")
    else:
        assert wire.get(scripted.root + "/x") == b"onetwo"


@pytest.mark.parametrize("status", [200, 204, 304])
def test_no_body_needs_no_decoding(wire: Wire, scripted: ScriptedServer, status: int) -> None:
    length = b"content-length: 0\r\n" if status == 200 else b""
    scripted.replies = [
        scripted.send(b"HTTP/1.1 %d X\r\ncontent-encoding: gzip\r\n%s\r\n" % (status, length))
    ]
    assert wire.get(scripted.root + "/x") == b""
    with wire.open(scripted.root + "/x", "HEAD") as answer:
        assert answer.body() == b""


def test_a_coding_nobody_knows_is_handed_over_as_it_is(wire: Wire, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(head("x-own", "content-length: 3") + b"abc")]
    assert wire.get(scripted.root + "/x") == b"abc"


def test_a_little_that_decodes_to_much_comes_in_pieces(wire: Wire, scripted: ScriptedServer) -> None:
    body = gzip.compress(bytes(64 << 20))
    scripted.replies = [scripted.send(head("gzip", f"content-length: {len(body)}") + body)]
    received, largest = 0, 0
    with wire.open(scripted.root + "/x") as answer:
        while chunk := answer.read():
            received, largest = received + len(chunk), max(largest, len(chunk))
    assert received == 64 << 20
    if wire.library != "httpx":  # it decodes whatever came with one packet
        assert largest <= 4 << 20


def test_reads_ask_for_what_can_be_decoded_and_live_reads_for_nothing(
    wire: Wire, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.send(scripted.response(200))]
    wire.get(scripted.root + "/x")
    wire.get(scripted.root + "/x", streaming=True)
    wire.get(scripted.root + "/x", headers={"accept-encoding": "x-own"})
    wire.get(scripted.root + "/x", headers={"accept-encoding": "x-own"}, streaming=True)
    plain, live, own, own_live = (request.headers["accept-encoding"] for request in scripted.requests)
    assert {part.strip() for part in plain.split(",")} == {"gzip", "deflate", "br", "zstd"}
    assert (live, own, own_live) == ("identity", "x-own", "x-own")
