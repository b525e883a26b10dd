"""The relay itself: records out of a source, through an idempotent producer, into a durable stream.

Invariants:
* the state file is never ahead of the target: a place is saved with the offset at which the target has just that;
* a run begins with what the target holds, not with what the last run believed: records that it has are not sent again;
* after a run that was killed nothing is sent before that run's last request is settled (`Target.claim`);
* the records that are not acknowledged are bounded: a slow target stops the reading.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from durable_streams.errors import DurableStreamError, StreamNotFoundError
from durable_streams.protocol.jsonrule import OnInvalid, check_on_invalid
from durable_streams.protocol.request import check_url
from durable_streams.relay.dedupe import Known, id_reader
from durable_streams.relay.open import source_for
from durable_streams.relay.selection import selector
from durable_streams.relay.source import Gap, Record, Source
from durable_streams.relay.state import (
    Acknowledged,
    State,
    StateFile,
    default_path,
    make_default_folder,
    new_producer_id,
)
from durable_streams.relay.target import EncodedProducer, Target
from durable_streams.types import HeadersLike

__all__ = ["Relay", "RelayReport", "relay"]

_SAVE_EVERY = 1.0  # seconds: a save waits for the disk


@dataclass(frozen=True)
class RelayReport:
    """The progress of a relay.

    Attributes:
        records: Records that this run stored, as the target acknowledged.
        skipped: Records that the target had already, or that came twice.
        invalid: Records that were left out.
        gaps: Times in which records of the source may have been missed.
        filtered: Records that ``where`` did not select.
        reconnects: How often the source was connected again.
        pending: Records that were read and are not acknowledged yet.
        seconds: How long the relay has run.
        place: The source's place after the last acknowledged record, None where it has no places.
        offset: The target's offset after that record.
        closed: Whether the target was closed.
        guarantee: One sentence, beginning with ``exactly once``, ``at least once`` or ``gaps possible``.
    """

    records: int
    skipped: int
    invalid: int
    gaps: int
    filtered: int
    reconnects: int
    pending: int
    seconds: float
    place: Any
    offset: str
    closed: bool
    guarantee: str


class Relay:
    """Relays a source into a durable stream, by an idempotent producer (section 4). `run` it once.

    Args:
        source: A path, ``-`` (standard input), a URL (an NDJSON or SSE feed, or a durable stream), a FirehoseStream, a
            `Source`, or any iterable of records.
        target: The URL of the durable stream to write to.
        state: The file that keeps the place between runs; by default one in the user's state folder, named after
            source and target.
        id_field: Where a record has its id, as a path (``data.id``); None for records without ids.
        id_window: A record is not stored again if its id is among this many that were stored last.
        create: Whether to make the target where it is missing.
        content_type: The content type of a target that is made; by default one that fits the source.
        close: Whether to close the target when the source has ended.
        gap_events: Whether to store a record ``{"relay": "gap", ...}`` where records of the source may be missing.
        headers: Headers of all requests to the target.
        retry_for: Seconds for which a target that is away or failing is retried, at the start too; forever by default.
        grace: Seconds that `stop` waits for acknowledgements.
        on_invalid: For a record that the target cannot hold: ``"raise"`` ends the relay, with every record before it
            stored; ``"skip"`` leaves it out and counts it; so does a callable, which gets its bytes and the error. By
            default feeds skip, and other sources raise.
        where: Pairs of a field's path and a value: only records are stored of which each field that is named has one of
            its values. A value is text, or the JSON of a number, ``true``, ``false`` or ``null``; None for all records.
        on_source: Called without arguments, once, when the source has answered and `guarantee` holds.

    Raises:
        ValueError: An option makes no sense.
        TypeError: The source is none of these.
        DurableStreamError: The state file cannot be used.
    """

    def __init__(
        self,
        source: Source | Iterable[Any] | str | os.PathLike[str],
        target: str,
        *,
        state: str | os.PathLike[str] | None = None,
        id_field: str | None = None,
        id_window: int = 100_000,
        create: bool = True,
        content_type: str | None = None,
        close: bool = False,
        gap_events: bool = False,
        headers: HeadersLike | None = None,
        retry_for: float = math.inf,
        grace: float = 10.0,
        on_invalid: OnInvalid | None = None,
        where: Iterable[tuple[str, str]] | None = None,
        on_source: Callable[[], object] | None = None,
    ) -> None:
        if id_window < 1:
            raise ValueError(f"id_window must be a count from 1, not {id_window!r}.")
        self.source = source_for(source)
        if on_invalid is not None:
            check_on_invalid(on_invalid)
            self.source.on_invalid = on_invalid
        self._stopping = threading.Event()
        self._target = Target(
            check_url(target),
            headers=headers,
            content_type=content_type,
            retry_for=retry_for,
            stopping=self._stopping,
        )
        self._id_field, self._id_window = id_field, id_window
        self._id_of = id_reader(id_field) if id_field is not None else None
        self._file = self._state_file(state)
        self._create, self._close, self._gap_events, self._grace = create, close, gap_events, grace
        self._selects = selector(where) if where is not None else None
        self._on_source = on_source
        self._taken = self._skipped = self._invalid = self._gaps = self._filtered = 0
        self._closed = self._gave_up = False
        self._unsettled: tuple[int, int] | None = None
        self._began = self._saved_at = time.monotonic()
        self._timer: threading.Timer | None = None
        self._producer: EncodedProducer | None = None
        self._known: Known | None = None
        self._state = State(offset="-1", stream=target, source=self.source.key, producer_id=new_producer_id())
        self._acknowledged = Acknowledged(None, "-1")
        self._place: Any = None

    def _state_file(self, path: str | os.PathLike[str] | None) -> StateFile | None:
        """Return the file of the state, None where there is nothing to keep: no places and no ids."""
        name, url = self.source.key, self._target.url
        if path is None:
            if not self.source.resumable and self._id_of is None:
                return None
            path = default_path(name, url)
            make_default_folder(path)
        return StateFile(path, name, url)

    @property
    def guarantee(self) -> str:
        """One sentence, beginning with ``exactly once``, ``at least once`` or ``gaps possible``."""
        if self._id_field is None or self.source.resumable:
            return self.source.promise
        return (
            f"exactly once for what {self.source.name} sends or sends again while the relay runs: a record is known "
            f"by its {self._id_field} among the last {self._id_window:,}; what it sends at other times only is lost."
        )

    @property
    def state_path(self) -> str | None:
        """Where the state is kept, None where nothing is."""
        return str(self._file.path) if self._file is not None else None

    def report(self) -> RelayReport:
        """Return the progress so far; from any thread."""
        place, _, offset = self._acknowledged.latest
        producer = self._producer
        return RelayReport(
            records=self._acknowledged.records,
            skipped=self._skipped,
            invalid=self._invalid + self.source.invalid,
            gaps=self._gaps,
            filtered=self._filtered,
            reconnects=self.source.reconnects,
            pending=producer.pending_count if producer is not None else 0,
            seconds=time.monotonic() - self._began,
            place=place,
            offset=offset,
            closed=self._closed,
            guarantee=self.guarantee,
        )

    def stop(self, grace: float | None = None) -> None:
        """Stop reading, and let `run` return once every record that was read is stored; from any thread.

        A signal handler must not call this, but may wake a thread that does.

        Args:
            grace: Seconds to wait for acknowledgements, None for the relay's own; a later call may shorten it.
        """
        if self._timer is None or grace is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(self._grace if grace is None else grace, self._give_up)
            self._timer.daemon = True
            self._timer.start()
        self._stopping.set()
        self.source.stop()

    def run(self) -> RelayReport:
        """Relay until the source ends or `stop` is called.

        Returns:
            What was done.

        Raises:
            DurableStreamError: The source cannot be read, the target cannot be written, or a record is not valid and
                is not to be skipped; every record before it is stored then.
        """
        self._began = time.monotonic()
        with contextlib.ExitStack() as stack:
            if self._file is not None:
                stack.enter_context(self._file.locked())
            stack.callback(self._release)
            self._open()
            try:
                self._pump()
            except Exception as error:
                with contextlib.suppress(DurableStreamError):
                    self._settle()
                if isinstance(error, DurableStreamError):
                    raise self._unfinished(error) from error
                raise
            except BaseException:  # Ctrl-C, without a handler that calls `stop`
                if self._producer is not None and not self.source.resumable:
                    self._producer._remains.settle("the relay was interrupted", "was not flushed")  # noqa: SLF001
                raise
            self._settle()
            if self._close and not self.source.stopped and self.source.ends:
                self._target.close_stream()
                self._closed = True
        return self.report()

    # -- the beginning

    def _open(self) -> None:
        """Find the target, and the records of the source that it has."""
        self.source.check()
        self._announce()
        saved = self._file.load() if self._file is not None else None
        make = self._create and saved is None
        try:
            found, _ = self._target.open(self.source.content_type if make else None)
        except StreamNotFoundError as error:
            if saved is None:
                raise
            raise self._lost_target() from error
        tail = found.offset or "-1"
        if saved is not None and tail < saved.offset:
            raise self._lost_target()
        if saved is None or saved.clean:
            # Nothing is under way: all that the source has up to the place is before the tail.
            self._state = msgspec.structs.replace(saved or self._state, offset=tail, clean=True)
        else:
            self._state = saved
        self._place = self._state.place
        self._acknowledged = Acknowledged(self._place, self._state.offset)
        unclean = not self._state.clean
        if unclean and not found.stream_closed:
            self._settle_number()
        if self._id_of is not None or (unclean and self.source.resumable):
            self._known = Known(
                self._target,
                self._id_of,
                self._id_window,
                self._state.window or "-1",
                self._state.offset if self.source.resumable else None,
            )
            if self._state.clean:
                self._known.forget_tail()
        if saved is not None and self.source.live and not self.source.resumable:
            self._take_gap(Gap(max(0.0, time.time() - saved.saved)))

    def _announce(self) -> None:
        """Call ``on_source``, now or once the source has answered."""
        if self._on_source is not None:
            if self.source.found:
                self._on_source()
            else:
                self.source.on_found = self._on_source

    def _settle_number(self) -> None:
        """Learn the number of the request that the last run may have under way, before the tail is read."""
        number = self._target.next_number(self._state.producer_id, self._state.epoch)
        self._state = msgspec.structs.replace(self._state, epoch=number[0])
        if self.source.resumable or self._id_of is not None:
            self._unsettled = number

    def _lost_target(self) -> DurableStreamError:
        return DurableStreamError(
            f"{self._target.url} is no longer the stream that the state in {self.state_path} belongs to: it is "
            "gone or shorter; remove that file to relay from the beginning.",
            code="CHECKPOINT",
            url=self._target.url,
        )

    # -- record by record

    def _pump(self) -> None:
        with contextlib.closing(self.source.records(self._state.place)) as items:
            for item in items:
                if isinstance(item, Gap):
                    self._take_gap(item)
                else:
                    self._take(item)
                if self._producer is not None and time.monotonic() - self._saved_at > _SAVE_EVERY:
                    self._save(*self._acknowledged.latest)

    def _take(self, record: Record) -> None:
        self._taken += 1
        try:
            data = self._target.encode(
                record.data, beyond_double=self.source.beyond_double, checked=self.source.checked
            )
        except (ValueError, TypeError) as error:
            self._refuse(record, error)
            return
        if self._selects is not None and not self._selects(data):
            self._filtered += 1
            self._place = record.place
            return
        known = self._known
        key = known.id_of(data) if known is not None else None
        if (known is not None and known.has(data, key)) or self._claimed(data, key):
            self._skipped += 1
        else:
            self._send(data, key, record.place)
        self._place = record.place

    def _refuse(self, record: Record, cause: Exception) -> None:
        on_invalid = self.source.on_invalid or ("skip" if self.source.skips_invalid else "raise")
        if on_invalid == "raise":
            raise self._flawed(cause) from None
        self._invalid += 1
        self._place = record.place
        if callable(on_invalid):
            raw = record.data if isinstance(record.data, bytes) else str(record.data).encode(errors="replace")
            on_invalid(raw, self._flawed(cause))

    def _claimed(self, data: bytes, key: str | int | None) -> bool:
        """Settle a killed run's last request by sending this record in its place; return whether it is stored now."""
        known = self._known
        if self._unsettled is None or known is None:
            return False
        self._target.claim(self._state.producer_id, self._unsettled, data)
        known.extend()
        self._unsettled = None
        return known.has(data, key)

    def _send(self, data: bytes, key: str | int | None, place: Any) -> None:
        producer = self._producer or self._begin()
        known = self._known
        if known is not None:
            known.forget_tail()
            if key is not None:
                known.ids.add(key)
        self._acknowledged.sent(place, known.ids.added if known is not None else 0)
        producer.append_record(data)

    def _begin(self) -> EncodedProducer:
        """Make the producer, under an epoch that no run had before."""
        epoch = self._state.epoch + 1
        self._state = msgspec.structs.replace(self._state, epoch=epoch, clean=False)
        self._write_state()
        self._producer = self._target.producer(self._state.producer_id, epoch, self._acknowledged.stored)
        return self._producer

    def _take_gap(self, gap: Gap) -> None:
        self._gaps += 1
        if self._gap_events:
            event = {
                "relay": "gap",
                "source": self.source.name,
                "seconds": round(gap.seconds, 3),
                "last_seen": gap.last_seen,
            }
            data = self._target.encode(msgspec.json.encode(event))
            if not self._claimed(data, None):
                self._send(data, None, self._place)

    def _flawed(self, error: Exception) -> DurableStreamError:
        reason = str(error).partition(";")[0].rstrip(".")
        reason = reason[:1].lower() + reason[1:]
        return DurableStreamError(
            f"Record {self._taken:,} of {self.source.name} cannot be stored: {reason}; those before it are stored, "
            "none after it.",
            code="INVALID_RECORD",
        )

    # -- the end

    def _settle(self) -> None:
        """Wait until everything read is stored, and keep that in the state."""
        producer = self._producer
        if producer is not None:
            try:
                producer.flush()
            except DurableStreamError as error:
                raise self._unfinished(error) from error
        if self._unsettled is None:
            _, ids, offset = self._acknowledged.latest
            self._state = msgspec.structs.replace(self._state, clean=True)
            self._save(self._place, ids, offset)

    def _unfinished(self, error: DurableStreamError) -> DurableStreamError:
        if not (self._gave_up and error.code == "PRODUCER_CLOSED"):
            return error
        again = (
            "the next start brings them" if self.source.resumable else "they are lost unless they come again"
        )
        return DurableStreamError(
            f"{self._target.url} did not acknowledge the last records within {self._grace:g} seconds; {again}.",
            code="UNACKNOWLEDGED",
            url=self._target.url,
        )

    def _save(self, place: Any, ids: int, offset: str) -> None:
        self._saved_at = time.monotonic()
        window = self._state.window
        if self._known is not None and self._id_of is not None:
            self._known.ids.mark(ids, offset)
            window = self._known.ids.start
        frozen = self.source.freeze(place) if place is not None else None
        self._state = msgspec.structs.replace(self._state, place=frozen, offset=offset, window=window)
        self._write_state()

    def _write_state(self) -> None:
        if self._file is not None:
            self._file.save(msgspec.structs.replace(self._state, saved=time.time()))

    def _give_up(self) -> None:
        self._gave_up = True
        if self._producer is not None:
            self._producer.abandon()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._producer is not None:
            self._producer.abandon()


def relay(
    source: Source | Iterable[Any] | str | os.PathLike[str],
    target: str,
    *,
    state: str | os.PathLike[str] | None = None,
    id_field: str | None = None,
    id_window: int = 100_000,
    create: bool = True,
    content_type: str | None = None,
    close: bool = False,
    gap_events: bool = False,
    headers: HeadersLike | None = None,
    retry_for: float = math.inf,
    grace: float = 10.0,
    on_invalid: OnInvalid | None = None,
    where: Iterable[tuple[str, str]] | None = None,
    on_source: Callable[[], object] | None = None,
) -> RelayReport:
    """Relay a source into a durable stream until it ends (section 4).

    Args:
        source: A path, ``-`` (standard input), a URL (an NDJSON or SSE feed, or a durable stream), a FirehoseStream, a
            `Source`, or any iterable of records.
        target: The URL of the durable stream to write to.
        state: The file that keeps the place between runs; by default one in the user's state folder, named after
            source and target.
        id_field: Where a record has its id, as a path (``data.id``); None for records without ids.
        id_window: A record is not stored again if its id is among this many that were stored last.
        create: Whether to make the target where it is missing.
        content_type: The content type of a target that is made; by default one that fits the source.
        close: Whether to close the target when the source has ended.
        gap_events: Whether to store a record ``{"relay": "gap", ...}`` where records of the source may be missing.
        headers: Headers of all requests to the target.
        retry_for: Seconds for which a target that is away or failing is retried, at the start too; forever by default.
        grace: Seconds that `stop` waits for acknowledgements.
        on_invalid: For a record that the target cannot hold: ``"raise"`` ends the relay, with every record before it
            stored; ``"skip"`` leaves it out and counts it; so does a callable, which gets its bytes and the error. By
            default feeds skip, and other sources raise.
        where: Pairs of a field's path and a value: only records are stored of which each field that is named has one of
            its values. A value is text, or the JSON of a number, ``true``, ``false`` or ``null``; None for all records.
        on_source: Called without arguments, once, when the source has answered and its guarantee holds.

    Returns:
        What was done.

    Raises:
        ValueError: An option makes no sense.
        TypeError: The source is none of these.
        DurableStreamError: The source cannot be read, the target cannot be written, or a record is not valid and
            ``on_invalid`` is ``"raise"``; every record before it is stored then.
    """
    return Relay(
        source,
        target,
        state=state,
        id_field=id_field,
        id_window=id_window,
        create=create,
        content_type=content_type,
        close=close,
        gap_events=gap_events,
        headers=headers,
        retry_for=retry_for,
        grace=grace,
        on_invalid=on_invalid,
        where=where,
        on_source=on_source,
    ).run()
