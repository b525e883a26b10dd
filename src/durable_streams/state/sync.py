# Made from state/aio.py by tools/make_sync.py: change that file, then run `make generate`.

"""The sync StreamDB: follows a stream in a thread, and lets others wait for what it does. I/O only."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

from durable_streams.client.sync import DurableStream, StreamResponse
from durable_streams.client.sync_performer import run
from durable_streams.client.transports.limits import TimeoutLike
from durable_streams.errors import DurableStreamError, OffsetConflictError
from durable_streams.protocol import headers as h
from durable_streams.protocol import operations
from durable_streams.protocol.changes import RowChange, StateMessage, control_message
from durable_streams.protocol.jsonrule import OnInvalid
from durable_streams.protocol.jsonvalues import encode
from durable_streams.protocol.retry import RetryPolicy
from durable_streams.state.base import (
    Compaction,
    Inbox,
    OnChange,
    OnTrimmed,
    SnapshotPlan,
    StreamDBBase,
)
from durable_streams.state.news import News
from durable_streams.state.schema import StateSchema
from durable_streams.types import HeadersLike, LiveMode, ParamsLike

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["StreamDB", "compact"]

JSON = "application/json"
ATTEMPTS = 100


class StreamDB(StreamDBBase):
    """Rows that follow a stream of the State Protocol: in memory, or in a SQLite file. A context manager.

    The stream is followed by a thread of its own, which `preload` begins. Rows are in ``db.users``, or
    ``db.collections["users"]``, for a collection named ``users``; `table` has them by their type. They are
    those of whole batches.

    Args:
        stream: The stream's absolute URL, or its handle.
        schema: The collections; messages of other types are left out. None for JSON values of all types.
        path: A SQLite file for the rows. Rows and offset are written in one transaction, and the next start
            goes on from there. None for memory.
        live: How the stream is followed, as for `stream`; False ends at the tail.
        on_invalid: How to treat a message that is not of the protocol, or not of its model. "skip" leaves it
            out, counts it (`invalid`) and logs the first one; "raise" ends the following; so does a callable,
            which is given its bytes and the error, and may raise it.
        on_trimmed: What becomes of the rows where the stream has given up what would come next. "resync" takes
            them from the snapshot that the stream begins with now; without one, and with "raise",
            RetentionGoneError ends the following.
        on_change: A callable that is given the list of changes of each batch, after it was committed and before
            the next one is. An error of it ends the following.
        max_txids: How many of the last transactions `wait_txid` knows.
        headers: Headers of each request; values may be callables, called for every attempt.
        params: Query parameters of each request, in the same form.
        client: A client of httpx, httpx2, requests or urllib3; None for one that the process shares.
        timeout: Seconds of silence before a request counts as stalled, as for `stream`.
        retry: How failures are retried, as for `stream`.

    Attributes:
        collections: The rows of each collection, by its name.

    Raises:
        ValueError: The URL is not absolute, or an argument is out of its range.
        DurableStreamError: The file cannot be used (code ``CHECKPOINT``).
    """

    def __init__(
        self,
        stream: str | DurableStream,
        schema: StateSchema | None = None,
        *,
        path: str | PathLike[str] | None = None,
        live: LiveMode = True,
        on_invalid: OnInvalid = "skip",
        on_trimmed: OnTrimmed = "resync",
        on_change: OnChange | None = None,
        max_txids: int = 10_000,
        headers: HeadersLike | None = None,
        params: ParamsLike | None = None,
        client: Any = None,
        timeout: TimeoutLike | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._handle = _as_handle(
            stream, headers=headers, params=params, client=client, timeout=timeout, retry=retry
        )
        self._live = live
        self._response: StreamResponse[Any] | None = None
        self._follower: threading.Thread | None = None
        self._starting = threading.Lock()
        super().__init__(
            self._handle.url,
            schema,
            path,
            News(),
            on_invalid=on_invalid,
            on_trimmed=on_trimmed,
            on_change=on_change,
            max_txids=max_txids,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the following, and close the file."""
        self._closing = True
        follower = self._follower
        while follower not in {None, threading.current_thread()} and follower.is_alive():
            if (response := self._response) is not None:
                response.close()
            follower.join(0.1)
        self._ended = True
        self._news.ring()
        self._rows.close()

    def preload(self, timeout: float | None = None) -> None:
        """Follow the stream, and return once the rows are those of its tail.

        Args:
            timeout: Seconds to wait; None for as long as it takes.

        Raises:
            StateTimeoutError: The tail was not reached in time.
            DurableStreamError: The stream cannot be read, or a message of it is refused.
        """
        self._start()
        there = self._news.wait_for(self._settled, timeout)
        self._require(self._is_ready and (there or self._ended), "The tail", timeout)
        self._require(self._error is None, "The tail", timeout)

    def wait_txid(self, txid: str, timeout: float = 5.0) -> None:
        """Return once the rows have a change of a transaction: at once if it came before.

        Args:
            txid: The name that the message has in its headers. Names that came before this object was made, or
                before the last ``max_txids``, are not known.
            timeout: Seconds to wait.

        Raises:
            StateTimeoutError: It did not come in time; it may still come.
            DurableStreamError: The following has ended.
        """
        self._start()
        self._news.wait_for(lambda: self._has_seen(txid), timeout)
        self._require(txid in self._txids, f"The transaction {txid!r}", timeout)

    def wait_offset(self, offset: str, timeout: float = 5.0) -> None:
        """Return once the rows have everything before an offset, such as the ``next_offset`` of an append.

        Args:
            offset: The offset.
            timeout: Seconds to wait.

        Raises:
            StateTimeoutError: The rows did not get there in time.
            DurableStreamError: The following has ended.
        """
        self._start()
        self._news.wait_for(lambda: self._is_at(offset), timeout)
        self._require(self.offset >= offset, f"The data before {offset}", timeout)

    def changes(self, *, max_pending: int = 100_000) -> Iterator[RowChange]:
        """Iterate over the changes from now on, each after its batch was committed, until the following ends.

        Args:
            max_pending: How many changes may wait for the consumer; a batch counts as a whole.

        Raises:
            ChangesLostError: More were waiting. The rows are right all the same.
            DurableStreamError: The following has ended with it.
        """
        inbox = self._inbox(max_pending)
        self._start()
        return self._changes(inbox)

    def _changes(self, inbox: Inbox) -> Generator[RowChange, None, None]:
        try:
            while True:
                self._news.wait_for(lambda: len(inbox) > 0 or self._ended)
                if not len(inbox):
                    break
                yield from inbox.take()
        finally:
            self._drop(inbox)
        if self._error is not None:
            raise self._error

    # -- the follower

    def _start(self) -> None:
        with self._starting:
            if self._follower is None and not self._closing:
                self._follower = threading.Thread(
                    target=self._follow, name="durable-streams-state", daemon=True
                )
                self._follower.start()

    def _follow(self) -> None:
        try:
            while self._read():
                pass
        except Exception as error:  # noqa: BLE001 - it is raised where somebody waits
            self._note_failure(error)
        finally:
            self._ended = True
            self._news.ring()

    def _read(self) -> bool:
        """Follow from where the rows are; return whether to go on at another offset."""
        response = self._handle._response(  # noqa: SLF001 - not started yet: `close` can end it
            offset=self.offset, live=self._live, on_invalid=self._refuse, on_gone=self._gone
        )
        self._response = response
        if self._is_closing():
            return False
        with response.start():
            if not h.is_json(response.content_type or JSON):
                raise DurableStreamError(
                    f"The stream at {self._url} holds {response.content_type}, and rows are in streams of JSON.",
                    code="BAD_CONTENT_TYPE",
                    url=self._url,
                )
            for event in response.iter_events("json", decode=StateMessage):
                applied = self._take(event)
                self._is_ready = self._is_ready or event.up_to_date
                if self._on_change is not None and applied.changes:
                    self._on_change(applied.changes)
                self._news.ring()
                if self._is_closing():  # by ``on_change``
                    return False
                if applied.restart is not None:
                    return True
        self._is_ready = True
        return False


def compact(
    stream: str | DurableStream,
    *,
    trim: bool = True,
    path: str | PathLike[str] | None = None,
    headers: HeadersLike | None = None,
    params: ParamsLike | None = None,
    client: Any = None,
    timeout: TimeoutLike | None = None,
    retry: RetryPolicy | None = None,
) -> Compaction:
    """Append a snapshot of all rows to a stream, and let the stream give up what is before it.

    Others may go on writing: each piece of the snapshot is stored only if everything before it was taken into
    account. The server must be one of this project.

    Args:
        stream: The stream's absolute URL, or its handle.
        trim: Whether the stream gives up what is before the snapshot, for good.
        path: A SQLite file for the rows meanwhile, which a later compaction goes on from; None for memory.
        headers: Headers of each request; values may be callables, called for every attempt.
        params: Query parameters of each request, in the same form.
        client: A client of httpx, httpx2, requests or urllib3; None for one that the process shares.
        timeout: Seconds of silence before a request counts as stalled, as for `stream`.
        retry: How failures are retried, as for `stream`.

    Returns:
        What was done.

    Raises:
        OffsetConflictError: Others write too much to get a piece of the snapshot in between.
        DurableStreamError: Another snapshot was begun meanwhile (code ``CONFLICT``), or a request failed.
    """
    handle = _as_handle(stream, headers=headers, params=params, client=client, timeout=timeout, retry=retry)
    with StreamDB(handle, path=path) as db:
        db.preload()
        writer = _SnapshotWriter(handle, db)
        writer.append(lambda: [encode(control_message("snapshot-start"))])
        # Not before that: what others write before the snapshot begins is for the snapshot to repeat.
        plan = SnapshotPlan(db)
        while writer.append(plan.piece):
            plan.stored()
        writer.append(lambda: [encode(control_message("snapshot-end"))])
    if trim:
        handle.trim(before=writer.begin)
    return Compaction(plan.rows, writer.begin, trim)


class _SnapshotWriter:
    """Appends to a stream, each time on the condition that the rows have everything before it."""

    def __init__(self, handle: DurableStream, db: StreamDB) -> None:
        self._handle = handle
        self._db = db
        self._end = db.offset
        self._snapshots: int | None = None
        self.begin = ""

    def append(self, make: Any) -> bool:
        """Append what ``make`` returns, made again after each conflict; return whether there was any."""
        for _ in range(ATTEMPTS):
            seen = self._db._core.snapshots  # noqa: SLF001 - of the same module
            self._check_alone(seen)
            records = make()
            if not records:
                return False
            op = operations.append_records(
                self._handle._url,  # noqa: SLF001
                records,
                JSON,
                conditions=operations.conditions_of(None, self._end),
            )
            try:
                result = run(op, self._handle._options)  # noqa: SLF001
            except OffsetConflictError as error:
                conflict = error
                self._catch_up(error.current_offset)
                continue
            if self._snapshots is None:
                self.begin, self._snapshots = self._end, seen + 1
            self._end = result.next_offset
            return True
        raise conflict

    def _catch_up(self, tail: str | None) -> None:
        if tail is None:
            tail = (self._handle.head()).offset or ""
        self._db.wait_offset(tail, timeout=60.0)
        self._end = self._db.offset

    def _check_alone(self, seen: int) -> None:
        if self._snapshots is not None and seen > self._snapshots:
            raise DurableStreamError(
                "Another snapshot was begun in this stream meanwhile, and this one was given up: compact a stream in "
                "one place at a time.",
                code="CONFLICT",
            )


def _as_handle(
    stream: str | DurableStream,
    *,
    headers: HeadersLike | None,
    params: ParamsLike | None,
    client: Any,
    timeout: TimeoutLike | None,
    retry: RetryPolicy | None,
) -> DurableStream:
    if isinstance(stream, DurableStream):
        return stream
    return DurableStream(
        stream,
        content_type=JSON,
        headers=headers,
        params=params,
        client=client,
        timeout=timeout,
        retry=retry,
    )
