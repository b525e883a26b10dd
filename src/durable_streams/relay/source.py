"""Sources of records for a relay: files, pipes and iterables.

Invariants: a record's place is right after it, so that reading from there gives the next one; a source without
places cannot be read again; a record is handed over whole or not at all; `stop` may be called from another
thread, and ends the iteration soon.
"""

from __future__ import annotations

import hashlib
import os
import select
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from durable_streams.errors import DurableStreamError, StreamParseError
from durable_streams.protocol import headers as h
from durable_streams.protocol.jsonrule import OnInvalid
from durable_streams.protocol.lines import DEFAULT_LIMIT, LineDecoder

__all__ = ["FileSource", "Gap", "IterableSource", "PipeSource", "Record", "Source", "source_error"]

_WHITESPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_FINGERPRINT = 4096  # bytes at a file's start by which it is known again
_LOOK_AGAIN = 0.1  # seconds between two looks at a file that is followed
_CHUNK = 1 << 16
_TEXT_SUFFIXES = {".txt", ".log", ".csv", ".tsv"}


class Record(NamedTuple):
    """One record: bytes of one line or JSON text, or any JSON value; and the place right after it, if it has one."""

    data: Any
    place: Any = None


class Gap(NamedTuple):
    """A time in which records may have been missed. ``seconds`` is how long it lasted."""

    seconds: float
    last_seen: Any = None


class Source:
    """Where records come from. A subclass sets the attributes that differ, and gives `records`.

    Attributes:
        name: What messages call it.
        key: What tells this source from others between runs.
        resumable: Whether `records` can begin at an earlier place.
        skips_invalid: Whether a record that is not JSON is left out and counted, instead of ending the relay.
        on_invalid: What becomes of such a record where that was asked for; else ``skips_invalid`` decides.
        ends: Whether its end is final and not only a pause, so that the target may be closed.
        live: Whether it goes on while nothing reads it.
        checked: Whether its records are bytes that are known to be JSON.
        beyond_double: Whether an infinity in its values was read from a number that no double holds.
        content_type: The content type that fits a new target.
        reconnects: How often it was connected again.
        invalid: How many records it left out itself.
        found: Whether it is known to be there once `check` has passed; else it calls ``on_found`` when it answers.
        on_found: Called without arguments, once, when a source that was not ``found`` has answered.
    """

    name = "the source"
    resumable = False
    skips_invalid = False
    ends = True
    live = False
    beyond_double = False
    checked = False
    on_invalid: OnInvalid | None = None
    content_type: str | None = h.JSON_CONTENT_TYPE
    reconnects = 0
    invalid = 0
    found = True
    on_found: Callable[[], object] | None = None

    def __init__(self) -> None:
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    @property
    def key(self) -> str:
        """What tells this source from others, between runs."""
        return self.name

    @property
    def promise(self) -> str:
        """One sentence: which guarantee holds for this source where records have no ids."""
        return f"exactly once: {self.name} is read again from where the target ends."

    @property
    def size(self) -> int | None:
        """How many bytes the source has, where it is known; places are then positions in them."""
        return None

    def check(self) -> None:
        """Raise where it cannot be read at all; called before the target is made."""

    def records(self, saved: Any = None) -> Generator[Record | Gap, None, None]:
        """Iterate over the records after a place that `freeze` gave, or from the beginning."""
        raise NotImplementedError

    def freeze(self, place: Any) -> Any:
        """Return a place as a JSON value, to be kept in the state file; one that is so already stays as it is."""
        return place

    def stop(self) -> None:
        """End the iteration soon."""
        self._stopped.set()

    def _answered(self) -> None:
        """Note that it is there."""
        self.found = True
        report, self.on_found = self.on_found, None
        if report is not None:
            report()


def source_error(message: str) -> DurableStreamError:
    """Return the error for a source that cannot be read."""
    return DurableStreamError(message, code="SOURCE")


class FileSource(Source):
    """The lines of a file.

    The file may grow, but not change: it is recognised by its first bytes.

    Args:
        path: The file.
        follow: Whether to wait at its end for more, as ``tail -f`` does.

    Raises:
        DurableStreamError: It is not the file that was read before (code ``SOURCE``); from `records`.
        OSError: It cannot be read; from `check` and `records`.
    """

    resumable = True

    def __init__(self, path: str | os.PathLike[str], *, follow: bool = False) -> None:
        super().__init__()
        self.path = Path(path)
        self.name = str(path)
        self.ends = not follow
        self.content_type = "text/plain" if self.path.suffix in _TEXT_SUFFIXES else h.JSON_CONTENT_TYPE
        self._file: BinaryIO | None = None

    @property
    def key(self) -> str:
        """The file's whole path."""
        return str(self.path.absolute())

    @property
    def size(self) -> int | None:
        """The file's present length."""
        return self.path.stat().st_size

    def check(self) -> None:
        """See Source."""
        self.path.open("rb").close()

    def records(self, saved: Any = None) -> Generator[Record | Gap, None, None]:
        """Iterate over the lines that are not blank; a last one without its end counts unless the file is followed."""
        with self.path.open("rb") as self._file:
            position = self._resume(saved) if saved is not None else 0
            self._file.seek(position)
            for line in self._lines(position):
                text = line.removeprefix(_BOM) if position == 0 else line
                position += len(line)
                text = text.rstrip(b"\r\n")
                if text.strip(_WHITESPACE):
                    yield Record(text, position)

    def freeze(self, place: Any) -> Any:
        """Return the position, and what the file is known by."""
        if isinstance(place, dict):
            return place
        return {"bytes": place, "known_by": self._fingerprint(place)}

    def _resume(self, saved: Any) -> int:
        position, known_by = saved["bytes"], saved["known_by"]
        if (self.size or 0) < position:
            raise source_error(
                f"{self.name} is shorter than the {position:,} bytes that were relayed; it is another file now."
            )
        if self._fingerprint(position) != known_by:
            raise source_error(f"{self.name} is not the file that was relayed: its first bytes are others.")
        return int(position)

    def _fingerprint(self, position: int) -> str:
        with self.path.open("rb") as file:
            return hashlib.sha256(file.read(min(position, _FINGERPRINT))).hexdigest()[:16]

    def _lines(self, position: int) -> Iterator[bytes]:
        file = self._file
        assert file is not None  # noqa: S101 - for the type checker: `records` opened it
        while not self.stopped:
            line = file.readline(DEFAULT_LIMIT)
            if len(line) == DEFAULT_LIMIT and not line.endswith(b"\n"):
                raise StreamParseError(f"A line of {self.name} is longer than {DEFAULT_LIMIT} bytes.")
            if line.endswith(b"\n") or (line and self.ends):
                position += len(line)
                yield line
            elif self.ends:
                return
            else:
                self._await_growth(position + len(line))
                file.seek(position)

    def _await_growth(self, length: int) -> None:
        while not self._stopped.wait(_LOOK_AGAIN):
            size = self.size or 0
            if size < length:
                raise source_error(f"{self.name} became shorter while it was read; it is another file now.")
            if size > length:
                return


class PipeSource(Source):
    """The lines of a file descriptor, such as standard input: read once, without places."""

    content_type = h.JSON_CONTENT_TYPE

    def __init__(self, descriptor: int, name: str = "standard input") -> None:
        super().__init__()
        self.name = name
        self._descriptor = descriptor
        self._woken, self._waker = os.pipe()

    @property
    def promise(self) -> str:
        """See Source."""
        return (
            f"gaps possible: {self.name} cannot be read again, so that records read but not stored when the relay "
            "is killed are lost; none is stored twice unless it comes twice."
        )

    def records(self, saved: Any = None) -> Generator[Record | Gap, None, None]:
        """Iterate over the lines that are not blank."""
        _ = saved
        lines, first = LineDecoder(), True
        while not self.stopped:
            chunk = self._read()
            if chunk is None:
                return
            complete = lines.feed(chunk) if chunk else [lines.flush()]
            if first and complete:
                complete[0], first = complete[0].removeprefix(_BOM), False
            yield from (Record(line) for line in complete if line.strip(_WHITESPACE))
            if not chunk:
                return

    def stop(self) -> None:
        """Wake the read. Bytes that were not read stay in the pipe."""
        super().stop()
        os.write(self._waker, b"\0")

    def _read(self) -> bytes | None:
        """Return the next bytes, ``b""`` at the end, None once stopped."""
        ready, _, _ = select.select([self._descriptor, self._woken], [], [])
        return None if self._woken in ready else os.read(self._descriptor, _CHUNK)

    def __del__(self) -> None:
        for descriptor in (self._woken, self._waker):
            os.close(descriptor)


class IterableSource(Source):
    """Any iterable of records: bytes or text that is JSON already, or JSON values. Stopped between two records."""

    def __init__(
        self, records: Iterable[Any] | Callable[[], Iterable[Any]], name: str = "the iterable"
    ) -> None:
        super().__init__()
        self.name = name
        self._records = records

    @property
    def promise(self) -> str:
        """See Source."""
        return (
            f"at least once: {self.name} has no places, so a restart that brings a record again stores it again; "
            "give an id field to prevent it."
        )

    def records(self, saved: Any = None) -> Generator[Record | Gap, None, None]:
        """Iterate over what the iterable gives."""
        _ = saved
        for record in self._records() if callable(self._records) else self._records:
            if self.stopped:
                return
            yield Record(record)
