"""A feed that fails: lines of JSON over HTTP, cut in the middle of a record, refused, and resumed with a backfill.

Invariants: a connection begins at most ``replay`` records before the furthest one ever sent, and continues from
there in order; no record beyond the allowed ones is sent.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["FlakyFeed"]

_AT_ONCE = 50  # records in one piece
_HEARTBEAT = 0.5  # seconds of silence before an empty line
_PATIENCE = 5.0  # seconds that a write may wait for a reader


class FlakyFeed:
    """Serves records in a thread, from the constructor to `stop`; ``cuts`` and ``refusals`` count.

    ``cut_every``: about how many records a connection lives; every fourth attempt after a cut is refused with 503.
    """

    def __init__(self, records: Sequence[bytes], seed: int, *, replay: int, cut_every: int) -> None:
        self._records = records
        self._random = random.Random(seed)  # noqa: S311 - not for secrets
        self._replay, self._cut_every = replay, cut_every
        self._allowed = self._furthest = 0
        self._changed = threading.Condition()
        self._stopped = False
        self.attempts = self.cuts = self.refusals = self.replayed = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/feed"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="feed", daemon=True
        )
        self._thread.start()

    @property
    def furthest(self) -> int:
        """How many records were sent, without repetitions."""
        return self._furthest

    def allow(self, count: int) -> None:
        """Let the feed send more records.

        Args:
            count: How many records it may have sent, from the first one on.
        """
        with self._changed:
            self._allowed = max(self._allowed, min(count, len(self._records)))
            self._changed.notify_all()

    def stop(self) -> None:
        """End it."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve(self, answer: BaseHTTPRequestHandler) -> None:
        """Answer one connection.

        Args:
            answer: The handler of its request.
        """
        self.attempts += 1
        answer.close_connection = True
        if self.cuts and self._random.random() < 1 / 4:
            self.refusals += 1
            answer.send_error(503)
            return
        answer.send_response(200)
        answer.send_header("Content-Type", "application/x-ndjson")
        answer.send_header("Transfer-Encoding", "chunked")
        answer.end_headers()
        answer.connection.settimeout(_PATIENCE)
        place = max(0, self._furthest - self._replay)
        self.replayed += self._furthest - place
        # A backfill is never cut: each connection gets further than the one before.
        left = self._furthest - place + self._random.randrange(1, 2 * self._cut_every)
        while left > 0 and self._more_than(place):
            piece = self._records[place : min(place + min(left, _AT_ONCE), self._allowed)]
            place, left = place + len(piece), left - len(piece)
            self._furthest = max(self._furthest, place)
            _send(answer, b"".join(record + b"\n" for record in piece) or b"\n")
        if left <= 0 and place < len(self._records):
            self.cuts += 1
            torn = self._records[place]
            _send(answer, torn[: self._random.randrange(len(torn))] or b"\n")

    def _more_than(self, place: int) -> bool:
        """Wait until there is more, or a heartbeat is due; return whether to continue."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._allowed > place, _HEARTBEAT)
            return not self._stopped

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        feed = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # the name that the library looks for
                with contextlib.suppress(OSError):  # the reader has gone
                    feed.serve(self)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the library's name
                """Say nothing."""

        return Handler


def _send(answer: BaseHTTPRequestHandler, data: bytes) -> None:
    answer.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
