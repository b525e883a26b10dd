"""What a seed stands for: a stream, a network that fails, what is written, and what its readers must have seen."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import count
from typing import Any

from durable_streams import DurableStream, RetryPolicy, stream
from durable_streams.protocol.offsets import parse_offset
from durable_streams.testing import ChaosProxy, InMemoryStreamServer

__all__ = ["NETWORK", "Follower", "Scenario", "Store"]

LONGEST = 0.25  # seconds of a stall or a delay
NETWORK: dict[str, Any] = {
    "timeout": 0.15,  # seconds of silence that a client bears: less than the longest stall
    "retry": RetryPolicy(max_retries=-1, initial_delay=0.001, max_delay=0.02),
}
ENDS_WITHIN = 60.0  # seconds for what takes one or two
LETTERS = 'abcdefghijklmnop é€𝄞\u2028\u0085\n\\"'  # no CR: an event stream of text cannot carry it
KINDS = {"json": "application/json", "text": "text/plain", "bytes": "application/octet-stream"}

_numbers = count()


class Scenario:
    """One seed. ``url`` is the stream through the chaos, ``truth`` the same without it."""

    def __init__(self, seed: int, server: InMemoryStreamServer) -> None:
        self.random = random.Random(f"scenario {seed}")
        self.kind = self.random.choice(["json", "json", "text", "bytes"])
        self.content_type = KINDS[self.kind]
        self.duplicates = self.random.random() < 0.6
        self.proxy = ChaosProxy(
            server.base_url,
            seed=seed,
            rate=self.random.uniform(0.1, 0.5),
            longest=LONGEST,
            duplicates=self.duplicates,
        )
        path = f"/chaos/{seed}-{next(_numbers)}"
        self.truth, self.url = server.url(path), self.proxy.url(server.url(path))
        self.start = DurableStream(self.truth).create_stream(content_type=self.content_type).offset
        self._seed = seed
        self._marks: dict[str, int] = {}
        self._lock = threading.Lock()

    def chance(self, role: str) -> random.Random:
        """Return a role's own source of chance."""
        return random.Random(f"{self._seed} {role}")

    def records(self, role: str, many: int) -> list[Any]:
        """Return what a role writes."""
        chance = self.chance(f"records of {role}")
        texts = ["".join(chance.choices(LETTERS, k=chance.randrange(1, 60))) for _ in range(many)]
        if self.kind == "json":
            return [{"by": role, "n": number, "text": text} for number, text in enumerate(texts)]
        if self.kind == "bytes":
            return [chance.randbytes(len(text)) for text in texts]
        whole, pieces = "".join(texts).encode(), []
        while whole:  # torn anywhere, inside characters too
            size = chance.randrange(1, 80)
            pieces.append(whole[:size])
            whole = whole[size:]
        return pieces

    @property
    def nothing(self) -> Any:
        """An empty sequence of what the stream consists of: messages, or bytes."""
        return [] if self.kind == "json" else bytearray()

    def content(self, offset: str = "-1") -> Any:
        """Return what the server has from an offset on."""
        with closing(stream(self.truth, offset=offset, live=False)) as reading:
            return reading.read_json() if self.kind == "json" else bytearray(reading.read_bytes())

    def before(self, offset: str, handed: int) -> int:
        """Return how many messages or bytes come before an offset that a reader reached with ``handed`` of them.

        All readers that saw the offset must agree.
        """
        before = handed
        if offset == self.start:
            before = 0  # it is reached without any, so that the first message may have come since
        elif self.kind == "text":
            # The text of a batch that ends inside a character is handed over, its position is not.
            position = parse_offset(offset)
            assert position is not None
            before = position
            assert before <= handed, f"{offset} skips what comes after {handed} bytes"
        self._mark(offset, before)
        return before

    def _mark(self, offset: str, before: int) -> None:
        with self._lock:
            known = self._marks.setdefault(offset, before)
        assert known == before, f"{offset} comes after {known} for one reader, after {before} for another"

    def check_marks(self, whole: Any) -> None:
        """Every checkpoint that anybody saw leads to exactly the rest."""
        assert self._marks
        for offset, before in self._marks.items():
            assert self.content(offset) == whole[before:], f"{offset} does not come after {before}"

    def run(self, roles: Mapping[str, Callable[[], None]]) -> None:
        """Run the roles at the same time; raise what any of them raises."""
        errors: list[tuple[str, BaseException]] = []

        def play(name: str, role: Callable[[], None]) -> None:
            try:
                role()
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append((name, error))

        threads = [
            threading.Thread(target=play, args=(name, role), name=name, daemon=True)
            for name, role in roles.items()
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + ENDS_WITHIN
        while not errors and any(thread.is_alive() for thread in threads):
            late = [thread.name for thread in threads if thread.is_alive()]
            assert time.monotonic() < end, f"{', '.join(late)} did not end within {ENDS_WITHIN:g} seconds"
            time.sleep(0.002)
        for name, error in errors:
            raise AssertionError(f"{name} failed: {error!r}") from error


class Follower:
    """A consumer: what it has, and how much of that each checkpoint covers."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self.offset = "-1"
        self.have = scenario.nothing
        self._covered = {"-1": 0, scenario.start: 0}

    def take(self, piece: Any, offset: str) -> None:
        """Take what was handed over while the response's offset was this."""
        self.have += piece
        if offset != self.offset:
            self.offset = offset
            self._covered[offset] = self._scenario.before(offset, len(self.have))

    def restart(self, offset: str) -> None:
        """Forget what the checkpoint does not cover, as a process does that starts again."""
        self.offset = offset
        del self.have[self._covered[offset] :]


class Store:
    """A CheckpointStore in memory."""

    def __init__(self) -> None:
        self._saved: str | None = None

    def load(self) -> str | None:
        return self._saved

    def save(self, offset: str) -> None:
        self._saved = offset
