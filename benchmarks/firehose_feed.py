"""The feed of benchmarks/firehose.py, a process of its own: python firehose_feed.py. Prints its port when it serves.

    /fast?records=N&coding=C     records of 400 bytes as fast as they are taken
    /paced?records=N&rate=R      R of them a second, each in a packet of its own
    /slow?coding=C               after 0.2 s one record that tells when it was sent, then silence
    /huge?size=N                 one line of N bytes

``coding``: chunked, plain (neither chunked nor compressed: the connection ends the body) or gzip.
"""

from __future__ import annotations

import contextlib
import socketserver
import time
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

RECORD_BYTES = 400
_IN_A_BLOCK = 1000
_HEADS = {
    "chunked": "transfer-encoding: chunked",
    "plain": "connection: close",
    "gzip": "transfer-encoding: chunked\r\ncontent-encoding: gzip",
}


def record(number: int) -> bytes:
    """Return one record of exactly 400 bytes, of the shape of X's."""
    head = (
        b'{"data":{"id":"%019d","author_id":"2244994945","created_at":"2026-01-01T00:00:00.000Z","lang":"en",'
        b'"public_metrics":{"retweet_count":3,"reply_count":1,"like_count":17,"quote_count":0},"text":"'
        % number
    )
    tail = b'"},"matching_rules":[{"id":"1166916266197536768","tag":"sample"}]}\r\n'
    return head + b"x" * (RECORD_BYTES - len(head) - len(tail)) + tail


def fast(records: str) -> Iterator[bytes]:
    block = b"".join(record(number) for number in range(_IN_A_BLOCK))
    for _ in range(int(records) // _IN_A_BLOCK):
        yield block


def paced(records: str, rate: str) -> Iterator[bytes]:
    begin = time.perf_counter()
    for number in range(int(records)):
        time.sleep(max(0.0, begin + number / float(rate) - time.perf_counter()))
        yield record(number)


def slow() -> Iterator[bytes]:
    time.sleep(0.2)
    yield b'{"sent":%r}\r\n' % time.perf_counter()
    time.sleep(60)


def huge(size: str) -> Iterator[bytes]:
    yield b'{"text":"'
    piece = b"x" * (1 << 20)
    for _ in range(int(size) // len(piece)):
        yield piece
    yield b'"}\r\n'


_FEEDS: dict[str, Callable[..., Iterator[bytes]]] = {"fast": fast, "paced": paced, "slow": slow, "huge": huge}


class _Feed(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        target = urlsplit(self.rfile.readline().split()[1].decode())
        while self.rfile.readline().strip():
            pass
        arguments = {name: values[0] for name, values in parse_qs(target.query).items()}
        coding = arguments.pop("coding", "chunked")
        with contextlib.suppress(OSError):  # the reader has enough
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{_HEADS[coding]}\r\n\r\n"
            self.wfile.write(head.encode())
            self._write(_FEEDS[target.path.strip("/")](**arguments), coding)

    def _write(self, feed: Iterator[bytes], coding: str) -> None:
        coder = zlib.compressobj(wbits=31)
        for item in feed:
            data = coder.compress(item) + coder.flush(zlib.Z_SYNC_FLUSH) if coding == "gzip" else item
            self.wfile.write(data if coding == "plain" else b"%x\r\n%s\r\n" % (len(data), data))


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


if __name__ == "__main__":
    with _Server(("127.0.0.1", 0), _Feed) as server:
        print(server.server_address[1], flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
