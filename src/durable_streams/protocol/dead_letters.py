"""Dead letters: batches that a worker gives up, kept in a stream of their own.

Pure. A letter is one JSON message that names where its data come from and why they were given up, and holds the data.
Invariant: a letter is stored once, however often it is sent: each has a producer of its own, named by what is in it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from durable_streams.protocol import headers as h
from durable_streams.protocol.request import Op, Request, error_from

__all__ = ["DEFAULT_FAILURES", "Failures", "Letter", "send"]

DEFAULT_FAILURES = 5
_LONGEST_PAUSE = 60.0  # seconds
_REMEMBERED = 1000  # batches that have failed
_LONGEST_ERROR = 1000  # characters
_JSON = "application/json"


class Failures:
    """How often batches have failed, of those that were not processed since.

    Args:
        most: How many failures of a batch make a dead letter of it.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[tuple[str, str], int] = {}

    def failed(self, path: str, since: str) -> tuple[int, bool]:
        """Count a failure; return how many there were, and whether it was the last one.

        Args:
            path: The path of the stream.
            since: The offset before the batch.
        """
        count = self._counts.pop((path, since), 0) + 1
        if count < self._most:
            if len(self._counts) >= _REMEMBERED:
                self._counts.pop(next(iter(self._counts)))
            self._counts[path, since] = count
        return count, count >= self._most

    def processed(self, path: str, since: str) -> None:
        """Forget the failures of a batch.

        Args:
            path: The path of the stream.
            since: The offset before the batch.
        """
        self._counts.pop((path, since), None)

    @staticmethod
    def pause(count: int) -> float:
        """Return the seconds until a batch is tried again.

        Args:
            count: How many times in a row it has failed.
        """
        return min(2.0 ** min(count - 1, 10), _LONGEST_PAUSE)


class Letter(msgspec.Struct, frozen=True, omit_defaults=True):
    """A batch that was given up. In JSON, ``from`` is ``since``.

    Attributes:
        subscription: The id of the subscription.
        path: The path of the stream.
        since: The offset before the batch.
        offset: The offset behind it.
        worker: The name of the worker.
        failures: How often it has failed.
        error: What the last failure was.
        items: The messages of a stream of JSON, as they were stored.
        data: The bytes of another one, in base64.
        is_too_large: Whether the data are left out, because the server takes no message of that size.
    """

    subscription: str
    path: str
    since: str = msgspec.field(name="from")
    offset: str
    worker: str
    failures: int
    error: str
    items: list[msgspec.Raw] | None = None
    data: str | None = None
    is_too_large: bool = False

    @classmethod
    def of(
        cls, items: Sequence[msgspec.Raw], data: bytes, *, error: BaseException, failures: int, **origin: Any
    ) -> Letter:
        """Return the letter of a batch.

        Args:
            items: Its messages.
            data: Its bytes, if it is not of JSON.
            error: What the last failure was.
            failures: How often it has failed.
            **origin: The other attributes.
        """
        said = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]
        rest: dict[str, Any] = {"items": list(items)} if items else {"data": base64.b64encode(data).decode()}
        return cls(error=said, failures=failures, **origin, **rest)

    @property
    def without_data(self) -> Letter:
        """The same letter, for a server that takes no message of its size."""
        return msgspec.structs.replace(self, items=None, data=None, is_too_large=True)

    @property
    def name(self) -> str:
        """Names the origin and the data, so that the same letter is known when it comes again."""
        same = (self.subscription, self.path, self.since, self.offset, self.items, self.data)
        return f"dead-letter-{sha256(msgspec.json.encode(same)).hexdigest()}"


def send(url: str, letter: Letter) -> Op[None]:
    """Store a letter once; the stream is created if it is not there.

    Args:
        url: The URL of the stream of dead letters.
        letter: The letter.

    Raises:
        DurableStreamError: The server refuses it.
    """
    stamp = {h.PRODUCER_ID: letter.name, h.PRODUCER_EPOCH: "0", h.PRODUCER_SEQ: "0"}
    request = _append(url, letter, stamp)
    response = yield request
    if response.status == 404:
        created = yield (creation := Request("PUT", url, {"content-type": _JSON}))
        if created.status not in {200, 201}:
            raise error_from(created, creation)
        response = yield request
    if response.status == 413:
        request = _append(url, letter.without_data, stamp)
        response = yield request
    if response.status not in {200, 204}:
        raise error_from(response, request)


def _append(url: str, letter: Letter, stamp: dict[str, str]) -> Request:
    return Request("POST", url, {"content-type": _JSON, **stamp}, msgspec.json.encode([letter]))
