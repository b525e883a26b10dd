"""Stores for a reader's position between runs: any object that loads and saves an offset, or one small file.

Invariants: the file always holds one complete checkpoint, replaced in one step and on disk when `save` returns;
a checkpoint of one stream is never taken for another's.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated, Protocol, final, runtime_checkable

import msgspec

from durable_streams.errors import DurableStreamError
from durable_streams.protocol.jsonparser import MALFORMED

__all__ = ["Checkpoint", "CheckpointStore", "FileCheckpoint", "as_store", "is_at", "open_private"]


@runtime_checkable
class CheckpointStore(Protocol):
    """Keeps one offset for one reader; `FileCheckpoint` is one, a row in a database can be another."""

    def load(self) -> str | None:
        """Return the offset that was saved last, None if none was saved yet."""

    def save(self, offset: str) -> None:
        """Keep an offset: `load` returns it from then on, also after a crash.

        Args:
            offset: The offset.
        """


def is_at(path: str | os.PathLike[str], descriptor: int) -> bool:
    """Whether a path leads to the open file: it may have been moved, removed or replaced since."""
    opened = os.fstat(descriptor)
    try:
        there = Path(path).stat()
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """The content of a checkpoint's file.

    Args:
        offset: Where the read goes on.
        stream: The stream's URL; None for any stream.
        bytes: The length of the reader's output there, where it has one.
    """

    offset: Annotated[str, msgspec.Meta(min_length=1)]
    stream: str | None = None
    bytes: Annotated[int, msgspec.Meta(ge=0)] | None = None


@final
class FileCheckpoint:
    """A CheckpointStore that is one small JSON file. One reader at a time may save to it.

    Its methods raise DurableStreamError (code ``CHECKPOINT``) for a file that is not a checkpoint, and where the file
    system refuses.

    Args:
        path: The file's path.
        stream: The URL of the stream it belongs to, which is kept in the file: the file of another stream is refused.
            None takes any file.

    Raises:
        ValueError: The path does not name a file.
    """

    def __init__(self, path: str | os.PathLike[str], stream: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.name:
            raise ValueError(f"A checkpoint is a file, and {str(path)!r} does not name one.")
        self.stream = stream

    def __repr__(self) -> str:
        return f"FileCheckpoint({str(self.path)!r}, stream={self.stream!r})"

    def load(self) -> str | None:
        """Return the offset that was saved last, None if nothing was saved yet."""
        checkpoint = self.read()
        return checkpoint.offset if checkpoint is not None else None

    def save(self, offset: str) -> None:
        """Replace the file in one step; it is on disk when this returns.

        Args:
            offset: The offset.
        """
        self.write(Checkpoint(offset, self.stream))

    def read(self) -> Checkpoint | None:
        """Return all that the file holds, None if there is no file yet."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            self._require_folder()
            return None
        except OSError as error:
            raise self._failure("read", error) from error
        try:
            checkpoint = msgspec.json.decode(content, type=Checkpoint)
            content.decode()
        except MALFORMED:
            raise _error(f"{self.path} is not a checkpoint; remove it to start from the beginning.") from None
        if None not in (self.stream, checkpoint.stream) and checkpoint.stream != self.stream:
            raise _error(
                f"{self.path} is the checkpoint of {checkpoint.stream}, not of {self.stream}; "
                "choose another file."
            )
        return checkpoint

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the file in one step; it is on disk when this returns.

        Args:
            checkpoint: The new content.
        """
        # Always the same name: the next save replaces the file that a killed process left.
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            with open(temporary, "wb", opener=open_private) as file:
                file.write(msgspec.json.encode(checkpoint) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise self._failure("save", error) from error
            raise
        _sync_folder(self.path.parent)

    def _require_folder(self) -> None:
        # Better now than after the first batch was processed.
        if not self.path.parent.is_dir():
            raise _error(
                f"There is no folder {self.path.parent} for the checkpoint {self.path.name}; create it."
            )

    def _failure(self, what: str, error: OSError) -> DurableStreamError:
        reason = error.strerror or str(error)
        return _error(f"cannot {what} the checkpoint {self.path}: {reason}; choose another file.")


def as_store(
    checkpoint: CheckpointStore | str | os.PathLike[str], stream: str | None = None
) -> CheckpointStore:
    """Return the store itself, or for a path its FileCheckpoint for ``stream`` (a URL); else raises TypeError."""
    if isinstance(checkpoint, (str, os.PathLike)):
        return FileCheckpoint(checkpoint, stream)
    if isinstance(checkpoint, CheckpointStore):
        return checkpoint
    raise TypeError(f"A checkpoint is a path, or has load() and save(offset), not {checkpoint!r}.")


def open_private(path: str, flags: int) -> int:
    """Open a file that only its owner may see; for ``open(opener=…)``."""
    descriptor = os.open(path, flags, 0o600)
    if hasattr(os, "fchmod"):
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, 0o600)  # a file of an older version may be readable by all
    return descriptor


def _error(message: str) -> DurableStreamError:
    return DurableStreamError(message, code="CHECKPOINT")


def _sync_folder(folder: Path) -> None:
    # Not every file system lets a folder be synced; the file itself is complete either way.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
