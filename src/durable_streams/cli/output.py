"""Where the bytes of ``read`` and ``tail`` go: standard output, or a file that a checkpoint covers."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from durable_streams.cli.options import stdout_bytes
from durable_streams.client.checkpoints import is_at
from durable_streams.file_lock import try_lock

__all__ = ["Output", "open_output", "when_reader_leaves"]


class Output:
    """Bytes out, flushed one batch at a time. ``length`` is a file's length, None for standard output."""

    def __init__(self, stream: BinaryIO, length: int | None = None, path: Path | None = None) -> None:
        self._stream = stream
        self._path = path
        self._last = b"\n"
        self.length = length
        self.is_terminal = path is None and stream.isatty()

    def settle(self) -> None:
        """Return when a file is on disk, where its path leads; raises ClickException if that leads elsewhere by now."""
        if self._path is None:
            return
        descriptor = self._stream.fileno()
        os.fsync(descriptor)
        if not is_at(self._path, descriptor):
            raise click.ClickException(
                f"{self._path} was moved, removed or replaced while it was written: its checkpoint covers what was "
                "there before; put the file back, or remove both to start from the beginning."
            )

    def write(self, data: bytes) -> None:
        """Write bytes and flush.

        Args:
            data: All of it is written, or OSError raised.
        """
        if data:
            self._stream.write(data)
            self._stream.flush()
            self._last = data[-1:]
            if self.length is not None:
                self.length += len(data)

    def end_line(self) -> None:
        """End the line on a terminal, so that the prompt stands below it; elsewhere bytes stay as they are."""
        if self.is_terminal and self._last != b"\n":
            self.write(b"\n")


@contextlib.contextmanager
def open_output(path: Path | None, resume_at: int | None = None) -> Iterator[Output]:
    """Open a file for output, or standard output without one.

    Args:
        path: The file, None for standard output.
        resume_at: How many bytes of the file are kept; the rest is cut off. None starts it over.

    Yields:
        The output, open within the block.

    Raises:
        ClickException: The file is shorter than ``resume_at``, or another process is writing it.
    """
    if path is None:
        out = Output(stdout_bytes())
        try:
            yield out
        finally:
            with contextlib.suppress(OSError):  # a terminal that is gone
                out.end_line()
        return
    path.touch()
    with path.open("r+b") as file:
        _lock(file, path)
        kept = resume_at or 0
        if file.seek(0, os.SEEK_END) < kept:
            raise click.ClickException(
                f"{path} is shorter than the {kept} bytes that its checkpoint covers; "
                "remove both to start from the beginning."
            )
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.truncate(kept)
            file.seek(kept)
        yield Output(file, kept, path)


def _lock(file: BinaryIO, path: Path) -> None:
    if not try_lock(file):
        raise click.ClickException(f"another process is writing {path}; choose another file.")


def when_reader_leaves(call: Callable[[], None]) -> None:
    """Watch for the end of standard output's reader, if it is a pipe.

    Otherwise a tail of a quiet stream would notice only with its next write.

    Args:
        call: Called once, from another thread, when nobody reads standard output any more.
    """
    descriptor = stdout_bytes().fileno()
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) or not hasattr(select, "poll"):
        return

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # errors and hang-ups only
        if poll.poll():
            call()

    threading.Thread(target=watch, name="pipe-watch", daemon=True).start()
