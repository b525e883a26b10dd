"""Many SSE readers of one stream, in a process of their own: plain sockets and epoll, to cost little.

    python readers.py PORT PATH COUNT [STREAMS]

Connects COUNT readers at the stream's tail, with STREAMS at those of PATH1 to PATHn by turns, and prints
``ready`` when every one has its first control event.
Counts the messages that reach each reader (``{"t":<nanoseconds>`` opens one) and notes when each chunk
came. A reader whose response ends reconnects from its last control event. A line ``expect N`` on standard
input tells how many messages each reader will get; when all have them, or 30 seconds later, it prints one
line of JSON and ends.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import sys
import time

MARK = b'{"t":'
STAMP = re.compile(rb'\{"t":\s*(\d+)')
OFFSET = re.compile(rb'"streamNextOffset":\s*"([^"]+)"')
END_OF_RESPONSE = b"\r\n0\r\n\r\n"
KEPT_CHUNKS = (
    400_000  # beyond this many chunks latencies are no longer noted: a run at full speed does not need them
)
PATIENCE = 30.0
AT_ONCE = 100


class Reader:
    """One connection: how many messages it got, and enough of its last bytes to find its place."""

    __slots__ = ("before", "count", "last", "path", "ready", "socket")

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0
        self.ready = False
        self.before = self.last = b""
        self.socket: socket.socket | None = None


class Crowd:
    """All readers and the loop over their sockets."""

    def __init__(self, port: int, path: str, count: int, streams: int = 0) -> None:
        self.port = port
        self.selector = selectors.EpollSelector()
        self.buffer = memoryview(bytearray(262144))  # recv() would allocate as much for every call
        self.readers = [
            Reader(f"{path}{number % streams + 1}" if streams else path) for number in range(count)
        ]
        self.waiting = 0
        self.total = 0
        self.reconnects = 0
        self.chunks: list[tuple[int, bytes]] = []
        self.last_at = 0

    def connect(self, reader: Reader, offset: str) -> None:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        sock.sendall(
            f"GET {reader.path}?live=sse&offset={offset} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            "Accept: text/event-stream\r\n\r\n".encode()
        )
        sock.setblocking(False)
        reader.socket = sock
        self.selector.register(sock, selectors.EVENT_READ, reader)

    def connect_all(self) -> None:
        for start in range(0, len(self.readers), AT_ONCE):
            group = self.readers[start : start + AT_ONCE]
            for reader in group:
                self.connect(reader, "now")
            self.waiting += len(group)
            deadline = time.monotonic() + PATIENCE
            while self.waiting:
                self.turn(1.0)
                if time.monotonic() > deadline:
                    raise SystemExit(f"{start + len(group) - self.waiting} readers connected, then no more")

    def turn(self, timeout: float | None) -> None:
        """Take what has come; returns after one round over the sockets that are ready."""
        now = time.monotonic_ns
        for key, _ in self.selector.select(timeout):
            reader = key.data
            if reader is None:
                continue
            try:
                chunk = bytes(self.buffer[: key.fileobj.recv_into(self.buffer)])
            except (BlockingIOError, ConnectionResetError):
                chunk = b""
            at = now()
            if len(self.chunks) < KEPT_CHUNKS:
                self.chunks.append((at, chunk))
            joined = reader.last[1 - len(MARK) :] + chunk
            came = joined.count(MARK)
            if came:
                reader.count += came
                self.total += came
                self.last_at = at
            reader.before, reader.last = reader.last, chunk
            if not reader.ready and OFFSET.search(reader.before + chunk):
                reader.ready = True
                self.waiting -= 1
            if not chunk or chunk.endswith(END_OF_RESPONSE):
                self.reconnect(reader)

    def reconnect(self, reader: Reader) -> None:
        places = OFFSET.findall(reader.before + reader.last)
        if not places or reader.socket is None:
            raise SystemExit("a reader's response ended before it had a control event")
        self.selector.unregister(reader.socket)
        reader.socket.close()
        self.reconnects += 1
        reader.before = reader.last = b""
        self.connect(reader, places[-1].decode())

    def collect(self) -> int:
        """Read until the number of messages is known and reached; return it."""
        self.selector.register(sys.stdin, selectors.EVENT_READ, None)
        os.set_blocking(sys.stdin.fileno(), False)
        while not (line := sys.stdin.readline()):
            self.turn(None)
        self.selector.unregister(sys.stdin)
        expected = int(line.split()[1])
        deadline = time.monotonic() + PATIENCE
        while self.total < expected * len(self.readers) and time.monotonic() < deadline:
            self.turn(1.0)
        self.turn(0.2)  # nothing more may come
        return expected

    def report(self, expected: int) -> dict[str, object]:
        latencies = sorted(
            (at - int(stamp)) / 1e6 for at, chunk in self.chunks for stamp in STAMP.findall(chunk)
        )
        return {
            "delivered": self.total,
            "complete": sum(reader.count == expected for reader in self.readers),
            "most": max(reader.count for reader in self.readers),
            "last_at": self.last_at,
            "reconnects": self.reconnects,
            "p50_ms": latencies[len(latencies) // 2] if latencies else None,
            "p99_ms": latencies[len(latencies) * 99 // 100] if latencies else None,
        }


def main() -> None:
    port, path, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    crowd = Crowd(port, path, count, int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    crowd.connect_all()
    crowd.chunks.clear()
    print("ready", flush=True)
    print(json.dumps(crowd.report(crowd.collect())), flush=True)


if __name__ == "__main__":
    main()
