"""Concurrent appends to one stream, sent together: while one request is in progress the next one gathers.

The driver's part, for each append: where ``add`` says so its caller leads, else it waits until its entry is done
or its waiter is woken to lead. A leader runs the operation ``send``, then wakes every entry that ``finish`` returns,
then the next leader, which ``hand_over`` returns.

Invariants: appends go out in the order in which they were added, in one request at a time; however one request
ends, the entries behind it get a leader; an entry that was taken back is in no later request.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from copy import copy
from typing import Any, Generic, TypeVar

from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol import operations
from durable_streams.protocol.request import Op
from durable_streams.types import AppendResult

__all__ = ["MAX_BATCH_BYTES", "AppendQueue", "Entry"]

MAX_BATCH_BYTES = 1024 * 1024

W = TypeVar("W")


class Entry(Generic[W]):
    """One append: its data, its outcome, and ``waiter``, by which the driver wakes its caller; None where it leads."""

    __slots__ = ("data", "error", "result", "waiter")

    def __init__(self, data: Any, waiter: W | None = None) -> None:
        self.data = data
        self.waiter = waiter
        self.result: AppendResult | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether its outcome is known."""
        return self.result is not None or self.error is not None

    def outcome(self) -> AppendResult:
        """Return the result, or raise the error."""
        if self.result is not None:
            return self.result
        raise self.error or AssertionError("not done")


class AppendQueue(Generic[W]):
    """The appends of one handle that are waiting. Not thread-safe: the driver serialises its calls."""

    def __init__(self) -> None:
        self._entries: deque[Entry[W]] = deque()
        self._taken: list[Entry[W]] = []
        self._led = False
        self._next_leader: Entry[W] | None = None

    def add(self, entry: Entry[W]) -> bool:
        """Queue an append; return whether its caller must lead: send the next request."""
        self._entries.append(entry)
        leads, self._led = not self._led, True
        return leads

    def __len__(self) -> int:
        return len(self._entries)

    def take_back(self, entry: Entry[W]) -> Entry[W] | None:
        """Drop an append whose caller has gone; return the entry that leads in its place, if it was to lead."""
        with suppress(ValueError):  # it is in a request already
            self._entries.remove(entry)
        return self.hand_over() if entry is self._next_leader else None

    def hand_over(self) -> Entry[W] | None:
        """End the leader's turn; return the entry whose caller leads now, None where none is left."""
        self._next_leader = self._entries[0] if self._entries else None
        self._led = self._next_leader is not None
        return self._next_leader

    def send(self, url: str, content_type: str | None, *, repeatable: bool = False) -> Op[str | None]:
        """Send the queued appends that fit into one request; returns the stream's content type if known.

        Only the leader's own append fails where the content type cannot be had: the next leader asks again.
        """
        self._next_leader = None
        self._taken = [self._entries.popleft()]
        try:
            known = content_type or (yield from operations.content_type_of(url))
        except DurableStreamError as error:
            self._taken[0].error = error
            return None
        yield from _append(url, *self._take(known), known, repeatable=repeatable)
        return known

    def finish(self, cause: BaseException | None = None) -> list[Entry[W]]:
        """Return the entries whose callers to wake: those that the last request decided.

        ``cause``: the error that ended the leader in the middle, None for none.
        """
        taken, self._taken = self._taken, []
        for entry in taken:
            if not entry.done:
                entry.error = _broken_off(cause)
        return taken

    def _take(self, content_type: str) -> tuple[list[Entry[W]], list[bytes]]:
        """Return the entries of the next request and their records: the one taken already, and what fits with it.

        One whose data the stream cannot hold is done with that error, and is in no request.
        """
        entries: list[Entry[W]] = []
        records: list[bytes] = []
        size, entry = 0, self._taken[0]
        while True:
            try:
                record = operations.encode_record(entry.data, content_type)
            except Exception as error:  # noqa: BLE001 - an error of encoding is its caller's
                entry.error = error
            else:
                entries.append(entry)
                records.append(record)
                size += len(record) + 1
            try:
                if size >= MAX_BATCH_BYTES:
                    return entries, records
                entry = self._entries.popleft()
            except IndexError:
                return entries, records
            self._taken.append(entry)


def _append(
    url: str, entries: list[Entry[W]], records: list[bytes], content_type: str, *, repeatable: bool
) -> Op[None]:
    """Append the records in one request, and note the outcome in their entries.

    Where the server finds the request too large (413), each record goes on its own.
    """
    if not records:
        return
    try:
        result = yield from operations.append_records(url, records, content_type, repeatable=repeatable)
    except DurableStreamError as error:
        if error.status == 413 and len(entries) > 1:
            for entry, record in zip(entries, records, strict=True):
                yield from _append(url, [entry], [record], content_type, repeatable=repeatable)
            return
        for entry in entries:
            entry.error = copy(error)  # each caller's own: it collects the traceback of its raise
    else:
        for entry in entries:
            entry.result = result


def _broken_off(cause: BaseException | None) -> FetchError:
    # A header callable, say: an error here comes before anything is sent.
    if isinstance(cause, Exception):
        return FetchError(
            f"The request that carries this append could not be made: {cause}.",
            original=cause,
            may_have_been_sent=False,
            code="REQUEST_FAILED",
        )
    return FetchError(
        "The request that carried this append was broken off; the append may have been written.",
        code="INTERRUPTED",
    )
