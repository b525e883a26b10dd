"""Writes whole logs, for a transfer: many records in one atomic batch, many appends in one record.

Invariants: the meta that completes a stream is in the batch of its last record, which holds the state; a log is
extended from its known end, or not at all.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence

import msgspec

from durable_streams.protocol.retention import due_at
from durable_streams.protocol.state import ProducerState, StreamState
from durable_streams.stores.base import (
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    StoreUncertainError,
)
from durable_streams.stores.jetstream.layout import EXPECT, RECORD, ROLLUP
from durable_streams.stores.jetstream.nats.bus import Bus, ConflictError
from durable_streams.stores.jetstream.nats.messages import Message
from durable_streams.stores.jetstream.records import (
    Base,
    LogRecord,
    cut_snapshot,
    encode_meta,
    encode_record,
)

__all__ = ["PATIENCE", "PAUSE", "LogWriter", "TargetLog"]

PATIENCE = 30.0  # seconds that NATS may be away: an election or two
PAUSE = 0.25

_BATCH_MESSAGES = 1000
_BATCH_BYTES = 4 << 20
_RECORD_BYTES = 256 << 10
_RECORD_APPENDS = 1000  # their lengths are in the header


class TargetLog(msgspec.Struct, gc=False):
    """A log that is being written: its stored part, the waiting records, and the record that is not full yet.

    ``base`` and ``last_seq`` are those of a complete stream that is extended; they stay until it is finished.
    """

    state: StreamState
    stored: Base
    revision: int
    n: int
    position: int
    base: Base | None = None
    last_seq: str | None = None
    waits: bool = False
    last: int = 0
    appends: list[bytes] = []
    size: int = 0


class LogWriter:
    """Writes logs to one bucket.

    Attributes:
        last_seq: The last sequence of the bucket.
        disturbed: Whether another program wrote to the bucket.
    """

    def __init__(self, bus: Bus, last_seq: int) -> None:
        self.last_seq = last_seq
        self.disturbed = False
        self._bus = bus
        self._layout = bus.layout
        self._run = secrets.token_hex(4)
        self._written = 0
        self._messages: list[Message] = []
        self._logs: list[TargetLog] = []  # with waiting records
        self._bytes = 0
        self._witness = 0  # index of the last waiting log record

    async def write(self, log: TargetLog, appends: Sequence[bytes]) -> None:
        """Add appends to a log."""
        room = min(_RECORD_BYTES, self._bus.max_message)
        for append in appends:
            size = len(append)
            if log.appends and (log.size + size > room or len(log.appends) == _RECORD_APPENDS):
                await self._room(1, log.size)
                self._add(log)
            if size > self._bus.max_message:
                await self._write_pieces(log, append)
            else:
                log.appends.append(append)
                log.size += size

    async def _write_pieces(self, log: TargetLog, append: bytes) -> None:
        room = self._bus.max_message
        cuts = range(0, len(append), room)
        if len(cuts) > _BATCH_MESSAGES:
            raise StoreError(
                f"the stream {log.state.path} has an append of {len(append)} bytes, too large for messages of {room}: "
                "raise max_payload of the NATS servers"
            )
        await self._room(len(cuts), len(append))
        for cut in cuts:
            log.appends = [append[cut : cut + room]]
            self._add(log, more=cut + room < len(append))

    async def finish(self, log: TargetLog, producers: Mapping[str, ProducerState], now: float) -> None:
        """Write the rest of a log, and the meta that completes its stream."""
        state, layout = log.state, self._layout
        # No later record names a producer: all of them are in the snapshot.
        base = log.stored if producers else None
        snapshot = cut_snapshot(base, producers, self._bus.max_message) if base else []
        await self._room(4 + len(snapshot), log.size + sum(map(len, snapshot)))
        self._add(log, base=base, is_last=True)
        if state.deleted:
            self._add(log, base=base, is_last=True, end=True)
        for number, part in enumerate(snapshot):
            self._put(layout.snapshot(state.id, number), part)
        self._put(layout.meta(state.path), encode_meta(state), {EXPECT: str(log.revision)})
        due = due_at(state)
        if due is not None:
            self._put(layout.due(max(due, now), state.path), state.path.encode())

    def _add(
        self,
        log: TargetLog,
        *,
        more: bool = False,
        base: Base | None = None,
        is_last: bool = False,
        end: bool = False,
    ) -> None:
        """Queue a record with the waiting appends of a log."""
        state, appends = log.state, log.appends
        data = appends[0] if len(appends) == 1 else b"".join(appends)
        log.n += 1
        record = LogRecord(
            f"{self._run}{self._written:x}",
            log.n,
            log.position,
            lengths=list(map(len, appends)) if len(appends) > 1 else [],
            closed=state.closed and is_last,
            closed_by=state.closed_by if is_last else None,
            last_seq=state.last_seq if is_last else log.last_seq,
            more=more,
            end=end,
            base=base if is_last else log.base,
            trims=state.trims if is_last else 0,
            records=state.records if is_last else None,
            appended=state.appended if is_last else None,
        )
        headers = {RECORD: encode_record(record)}
        if not log.waits:
            headers[EXPECT] = str(log.stored.seq)
            log.waits = True
            self._logs.append(log)
        log.position += len(data)
        log.appends, log.size = [], 0
        log.last = self._witness = len(self._messages)
        self._messages.append(Message(self._layout.log(state.id), data, headers))
        self._bytes += len(data)

    def _put(self, subject: str, value: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._messages.append(Message(subject, value, {ROLLUP: "sub", **(headers or {})}))
        self._bytes += len(value)

    async def _room(self, messages: int, size: int) -> None:
        """Flush first if the batch has no room for ``messages`` more messages of ``size`` bytes."""
        if self._messages and (
            len(self._messages) + messages > _BATCH_MESSAGES or self._bytes + size > _BATCH_BYTES
        ):
            await self.flush()

    async def flush(self) -> None:
        """Store all full records and all finished streams."""
        if not self._messages:
            return
        messages, logs = self._messages, self._logs
        last = await self._publish(messages, self._witness)
        first = last - len(messages) + 1
        self.disturbed |= first != self.last_seq + 1
        self.last_seq = last
        for log in logs:
            log.stored = Base(first + log.last, log.n, log.position)
            log.waits = False
        self._messages, self._logs, self._bytes = [], [], 0
        self._written += 1

    async def _publish(self, messages: list[Message], witness: int) -> int:
        """Publish an atomic batch until it is certainly stored, once; return the last sequence."""
        clock = asyncio.get_running_loop().time
        until, in_doubt = clock() + PATIENCE, False
        while True:
            try:
                return await self._bus.publish(messages)
            except ConflictError as error:
                stored = await self._own(messages[witness]) if in_doubt else None
                if stored is not None:
                    return stored - witness + len(messages) - 1
                if not in_doubt or clock() > until:
                    raise self.disturbance from error
            except StoreFullError:
                raise
            except StoreUnavailableError as error:
                in_doubt |= isinstance(error, StoreUncertainError)
                if clock() > until:
                    raise
            await asyncio.sleep(PAUSE)

    async def _own(self, record: Message) -> int | None:
        """Return the sequence of a log record if it is the last of its log."""
        try:
            last = await self._bus.last(record.subject)
        except StoreUnavailableError:
            return None
        mine = (record.headers or {})[RECORD].encode()
        return last.seq if last is not None and last.record == mine else None

    @property
    def disturbance(self) -> StoreError:
        """The error for a bucket that another program writes to."""
        return StoreError(
            f"another program writes to the bucket {self._layout.name} in NATS: stop its servers and other transfers, "
            "then run this again"
        )
