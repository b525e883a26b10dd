"""A feed of real records that fails in many ways, at random from a seed, and knows what it sent whole."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).parents[2] / "data"
KINDS = ("429", "503", "end", "cut", "cut", "cut", "stall", "bytes", "reported")


def records(count: int) -> Iterator[bytes]:
    """Yield ``count`` lines of the earthquakes and flights, repeated, with ids that count from 0."""
    lines = [line for name in ("us-flights-2001", "usgs-earthquakes") for line in _lines(name)]
    for number in range(count):
        yield b'{"data":{"id":%d,"record":%b}}\r\n' % (number, lines[number % len(lines)])


def _lines(name: str) -> list[bytes]:
    return (DATA / f"{name}.ndjson").read_bytes().splitlines()


class ChaosFeed:
    """Serves one record after the other, once each; a connection begins where the whole records of the last ended.

    A record counts as sent with its newline. ``counts`` says how often each kind of failure happened.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._most = count // 12  # records of one connection
        self._random = random.Random(seed)
        self._records = list(records(count))
        self._next = 0
        self._lock = threading.Lock()
        self._deck: list[str] = []
        self.partial = 0
        self.heartbeats = 0
        self.counts: dict[str, int] = {}
        self.stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return self._next == len(self._records)

    def stop(self) -> None:
        self.stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)

    def _accept(self) -> None:
        # One connection at a time, so that the order of what was sent is one order.
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with connection, contextlib.suppress(OSError):
                    self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.recv(65536)
        if self.done:
            connection.sendall(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n")
            return
        if not self._deck:
            self._deck = self._random.sample(KINDS, len(KINDS))
        kind = self._deck.pop()
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind in {"429", "503"}:
            connection.sendall(
                b"HTTP/1.1 %b No\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n" % kind.encode()
            )
            return
        self._stream(connection, kind)

    def _stream(self, connection: socket.socket, kind: str) -> None:
        packed = self._random.random() < 0.4
        coder = zlib.compressobj(1, wbits=31) if packed else None
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"
        connection.sendall(head + (b"content-encoding: gzip\r\n" if packed else b"") + b"\r\n")
        body = self._body(kind)
        step = 1 if kind == "bytes" else self._random.choice([7, 1000, 20_000, 150_000])
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            if coder is not None:
                piece = coder.compress(piece) + coder.flush(zlib.Z_SYNC_FLUSH)
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        if kind in {"end", "reported"}:
            tail = coder.flush() if coder is not None else b""
            connection.sendall((b"%x\r\n%b\r\n" % (len(tail), tail) if tail else b"") + b"0\r\n\r\n")
        elif kind == "stall":
            connection.settimeout(20)
            connection.recv(1)  # until the reader gives up

    def _body(self, kind: str) -> bytes:
        """Take the next records for a connection, and end where its kind does: at an end, or inside a record."""
        count = self._random.randint(1, 20 if kind == "bytes" else self._most)
        taken = self._records[self._next : self._next + count]
        self._next += len(taken)
        pieces = []
        for record in taken:
            if self._random.random() < 0.01:
                pieces.append(b"\r\n" if self._random.random() < 0.7 else b"not json\r\n")
            pieces.append(record)
        self.heartbeats += pieces.count(b"\r\n")
        self.counts["invalid"] = self.counts.get("invalid", 0) + pieces.count(b"not json\r\n")
        if kind == "reported":
            pieces.append(b'{"errors":[{"title":"operational-disconnect"}]}\r\n')
        elif kind != "end" and not self.done:
            # A part of the next record, even all of it but its newline: it comes whole with the next connection.
            cut = self._records[self._next][: self._random.randrange(len(self._records[self._next]))]
            self.partial += bool(cut)
            pieces.append(cut)
        return b"".join(pieces)


def expected(count: int) -> Iterator[dict[str, object]]:
    return (json.loads(line) for line in records(count))
