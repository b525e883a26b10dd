"""The log of ``serve``: on standard error, as text for people or as a line of JSON for each record.

Invariants: the event loop never waits for whatever reads the log: records wait in a bounded queue for a thread of
their own; those that do not fit are left out, and counted in a record that says so; all is written before the process
ends, if it is read.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Literal

import msgspec

from durable_streams.server.request_log import ACCESS, AUDIT, FIELDS

__all__ = ["LEVELS", "Format", "logging_to_stderr"]

Format = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")

_QUEUED = 10_000  # records
_LAST_SECONDS = 2.0  # for records that wait at the end
_ROOT = "durable_streams"
_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Text(logging.Formatter):
    """Time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname:<7} {super().format(record)}"


class _Json(logging.Formatter):
    """One line of JSON: time, level, logger, message, the values of a request, the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return _encode(fields).decode()


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Queued(logging.Handler):
    """Hands records to the thread that writes them."""

    def __init__(self, records: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__()
        self._records = records
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; never wait."""
        try:
            if self._dropped:
                self._records.put_nowait(self._gap(record))
                self._dropped = 0
            self._records.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def _gap(self, record: logging.LogRecord) -> logging.LogRecord:
        message = "the log was not read in time: %d records were left out"
        return logging.LogRecord(
            record.name, logging.WARNING, record.pathname, record.lineno, message, (self._dropped,), None
        )


@contextlib.contextmanager
def logging_to_stderr(form: Format, level: str) -> Iterator[None]:
    """Write what the package logs to standard error.

    Args:
        form: How records are written.
        level: The least of `LEVELS` that is written. What the options of `serve` ask for is, in any case.
    """
    records: queue.Queue[logging.LogRecord | None] = queue.Queue(_QUEUED)
    formatter = _Json() if form == "json" else _Text()
    writer = threading.Thread(target=_write, args=(records, formatter), name="log", daemon=True)
    log, handler = logging.getLogger(_ROOT), _Queued(records)
    log.addHandler(handler)
    log.setLevel(level.upper())
    for asked_for in (ACCESS, AUDIT):
        logging.getLogger(asked_for).setLevel(logging.INFO)
    writer.start()
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(queue.Full):
            records.put(None, timeout=_LAST_SECONDS)
        writer.join(_LAST_SECONDS)


def _write(records: queue.Queue[logging.LogRecord | None], formatter: logging.Formatter) -> None:
    while (record := records.get()) is not None:
        try:
            line = formatter.format(record)
        except Exception as error:  # noqa: BLE001 - one record that cannot be written must not end the log
            line = f"a record of {record.name} could not be written: {error}"
        if sys.stderr is not None:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
