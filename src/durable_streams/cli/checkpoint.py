"""A consumer's saved place: one small file, replaced as a whole, never ahead of what was written.

Invariants: the file always holds a complete checkpoint; the output is on disk before the checkpoint that
covers it; a position is saved only after its data was handed over and flushed. With an output file, the
checkpoint also holds its length, so that a consumer that was killed in between cuts off what its checkpoint
does not cover.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import final

import click
import msgspec

__all__ = ["Checkpoint", "CheckpointSaver", "load", "save"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """``offset`` is where to go on in ``stream`` (a URL); ``bytes`` is the output file's length there."""

    stream: str
    offset: str
    bytes: int | None = None


def load(path: Path, stream: str) -> Checkpoint | None:
    """Return the saved place, None if nothing was saved yet; raises ClickException for another stream's."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        checkpoint = msgspec.json.decode(content, type=Checkpoint)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise click.ClickException(
            f"{path} is not a checkpoint; remove it to start from the beginning."
        ) from None
    if checkpoint.stream != stream:
        raise click.ClickException(
            f"{path} is the checkpoint of {checkpoint.stream}, not of {stream}; choose another file."
        )
    return checkpoint


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file in one step, on disk when it returns; raises ClickException where that fails."""
    # Always the same name: what a killed process left behind is used up by the next one.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(checkpoint) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise click.ClickException(
            f"cannot save the checkpoint {path}: {reason}; choose another file."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Not every file system lets a folder be synced; the file itself is complete either way.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@final
class CheckpointSaver:
    """Saves the latest position in a thread of its own: a fast stream costs one write for many batches.

    A failure to save is raised by the next `advance`, or at the end of the ``with`` block.
    """

    def __init__(self, path: Path, stream: str, output: int | None = None) -> None:
        """``output`` is the descriptor of the file that the checkpoints' ``bytes`` speak of."""
        self._path = path
        self._stream = stream
        self._output = output
        self._latest: Checkpoint | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def advance(self, offset: str, length: int | None = None) -> None:
        """Save this position soon: everything before it was written and flushed."""
        with self._changed:
            self._raise()
            self._latest = Checkpoint(self._stream, offset, length)
            self._changed.notify()

    def __enter__(self) -> CheckpointSaver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        if error is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (checkpoint := self._next()) is not None:
                if self._output is not None:
                    os.fsync(self._output)
                save(self._path, checkpoint)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that writes
            self._error = error

    def _next(self) -> Checkpoint | None:
        with self._changed:
            while self._latest is None and not self._ended:
                self._changed.wait()
            checkpoint, self._latest = self._latest, None
            return checkpoint
