"""Who takes part: readers that stop and start again, exactly-once producers, plain appends."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from typing import Any, Literal

from chaos_apis import APIS
from chaos_scenario import NETWORK, Follower, Scenario, Store

from durable_streams import DurableStreamError, FetchError

__all__ = ["Appender", "Producer", "Reader"]

MODES: tuple[Literal["long-poll", "sse"] | bool, ...] = (False, "long-poll", "sse", True)
AS_BYTES = ["iter", "iter_events bytes", "read_bytes"]
AS_TEXT = ["iter_text", "iter_events text", "read_text"]
AS_JSON = ["iter", "iter_json", "iter_json_batches", "iter_events json", "read_json", "read_json_batches"]
# One reader keeps to one way to see the data: bytes may end inside a character, where text cannot begin.
WAYS = {"json": [AS_JSON], "text": [AS_BYTES, AS_TEXT], "bytes": [AS_BYTES]}


class _BusyElsewhereError(Exception):
    """What a consumer raises in the middle of a read."""


class Reader:
    """Follows the stream to its end, over several reads of several kinds."""

    def __init__(self, scenario: Scenario, role: str) -> None:
        self.follower = Follower(scenario)
        self._scenario = scenario
        self._chance: random.Random = scenario.chance(role)
        self._api = self._chance.choice(APIS)()
        self._live = self._chance.choice(MODES)
        self._ways = self._chance.choice(WAYS[scenario.kind])
        self._restless = self._chance.choice([0.0, 0.3, 0.9])
        self._store = Store() if self._chance.random() < 0.3 else None
        self._options = {**NETWORK, "params": {"reader": role}, "live": self._live}

    def __call__(self) -> None:
        """Read until the stream is closed and all of it was seen."""
        follower, closed = self.follower, False
        with self._api:
            while not closed:
                with contextlib.suppress(_BusyElsewhereError), self._next_read() as response:
                    follower.restart(response.start_offset)
                    self._consume(response)
                follower.take(self._scenario.nothing, response.offset)
                closed = response.stream_closed

    def _next_read(self) -> Any:
        """Go on where the position was kept: by the consumer itself, or by the library in a store."""
        place = {"offset": self.follower.offset} if self._store is None else {"checkpoint": self._store}
        return self._api.reading(self._scenario.url, **place, **self._options)

    def _consume(self, response: Any) -> None:
        """Consume a response in some way, to its end or not."""
        method, _, argument = self._chance.choice(self._ways).partition(" ")
        if method.startswith("read"):
            whole = self._api.wait(getattr(response, method)())
            self.follower.take(self._units(whole, method), response.offset)
            return
        stop = self._chance.choice([1, 2, 3, 10]) if self._chance.random() < self._restless else None
        how = self._chance.choice([self._break, self._close, self._fail, self._close_elsewhere])
        arguments = [argument] if argument else []
        pieces = self._api.pieces(response, None if method == "iter" else method, *arguments)
        late = stop is not None and how == self._close_elsewhere
        with self._api.closing_later(response, 0.02 * (stop or 0)) if late else contextlib.nullcontext():
            for number, piece in enumerate(pieces, start=1):
                self.follower.take(self._units(piece, method), response.offset)
                self._api.sleep(self._chance.choice([0.0, 0.0, 0.0, 0.002]))
                if number == stop and how(response):
                    break

    def _break(self, _: Any) -> bool:
        return True

    def _close(self, response: Any) -> bool:
        self._api.close(response)
        return False

    def _fail(self, _: Any) -> bool:
        raise _BusyElsewhereError

    def _close_elsewhere(self, _: Any) -> bool:
        return False

    def _units(self, piece: Any, method: str) -> Any:
        """Return a piece that was handed over as the messages or the bytes that it consists of."""
        if method == "iter_events":
            piece = piece.data
        if isinstance(piece, str):
            return piece.encode()
        if self._scenario.kind == "json" and isinstance(piece, bytes):
            return json.loads(piece)
        if method == "read_json_batches":
            return [item for batch in piece for item in batch]
        return [piece] if method == "iter_json" else piece


class Producer:
    """Writes its records exactly once and in order."""

    def __init__(self, scenario: Scenario, role: str, *, closes: bool) -> None:
        self.records = scenario.records(role, scenario.chance(role).randrange(30, 200))
        self._scenario = scenario
        self._role = role
        self._closes = closes
        self._chance: random.Random = scenario.chance(f"choices of {role}")
        self._api = self._chance.choice(APIS)()

    def __call__(self) -> None:
        """Write everything."""
        submitted: list[Any] = []
        with self._api, self._api.producer(self._scenario.url, self._role, **self._settings()) as producer:
            for record in self.records:
                self._write(producer, record, submitted)
                if self._chance.random() < 0.03:
                    producer.flush()
                if self._chance.random() < 0.4:
                    self._api.sleep(self._chance.choice([0.001, 0.004]))
            if self._closes:
                producer.close_stream()
            producer.flush()
            assert producer.pending_count == 0
            for future in submitted:
                assert future.done()
                assert future.exception() is None

    def _write(self, producer: Any, record: Any, submitted: list[Any]) -> None:
        way = self._chance.choice(["put", "append_nowait", "submit"])
        try:
            result = getattr(producer, way)(record)
        except DurableStreamError as error:
            if error.code != "QUEUE_FULL":
                raise
            producer.put(record)
        else:
            submitted += [result] if way == "submit" else []

    def _settings(self) -> dict[str, Any]:
        chance = self._chance
        return {
            "max_batch_bytes": chance.choice([300, 1000, 5000]),
            "linger_ms": chance.choice([0, 1, 5]),
            "max_in_flight": chance.choice([1, 2, 5, 8]),
            "content_type": chance.choice([None, self._scenario.content_type]),
            "max_pending_bytes": chance.choice([2000, 1 << 20]),
            "epoch": chance.choice([0, 3]),
            "auto_claim": chance.random() < 0.5,
            **NETWORK,
        }


class Appender:
    """Appends its records one by one, and knows of each whether it was written, was not, or may have been."""

    def __init__(self, scenario: Scenario, role: str) -> None:
        self._scenario = scenario
        self._role = role
        self._outcomes: dict[int, bool | None] = {}
        self._offsets: dict[int, str] = {}
        self._api = scenario.chance(f"choices of {role}").choice(APIS)()

    def __call__(self) -> None:
        """Append everything, once."""
        scenario, api = self._scenario, self._api
        with api:
            handle = api.handle(scenario.url, content_type=scenario.content_type, **NETWORK)
            for number, record in enumerate(scenario.records(self._role, 12)):
                try:
                    self._offsets[number] = api.wait(handle.append(record)).next_offset
                    self._outcomes[number] = True
                except DurableStreamError as error:
                    unsent = isinstance(error, FetchError) and not error.may_have_been_sent
                    refused = error.status is not None and error.status < 500
                    self._outcomes[number] = False if unsent or refused else None

    def check(self, content: Callable[[str], list[Any]], *, doubled: bool) -> None:
        """What was acknowledged is there, once and in order; what certainly was not written is not."""
        there = self._mine(content("-1"))
        for number, outcome in self._outcomes.items():
            times = there.count(number)
            assert times <= (2 if doubled else 1), f"append {number} is there {times} times"
            assert outcome in (None, times > 0), f"append {number}: {outcome}, but there {times} times"
        if not doubled:
            assert self._acknowledged(there) == list(self._offsets)
            for number, offset in self._offsets.items():
                rest = self._acknowledged(self._mine(content(offset)))
                assert rest == [later for later in self._offsets if later > number]

    def _mine(self, items: list[Any]) -> list[int]:
        return [item["n"] for item in items if item["by"] == self._role]

    def _acknowledged(self, numbers: list[int]) -> list[int]:
        """Leave out those whose outcome is unknown: the network may have delivered them late."""
        return [number for number in numbers if self._outcomes[number]]
