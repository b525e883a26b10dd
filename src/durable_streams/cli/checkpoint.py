"""A tail's place, saved beside its work: never ahead of what was written.

Invariants: the output is on disk before the checkpoint that covers it; a position is saved only after its data
was handed over and flushed. With an output file, the checkpoint also holds its length, so that a consumer
that was killed in between cuts off what its checkpoint does not cover.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import final

from durable_streams.cli.output import Output
from durable_streams.client.checkpoints import Checkpoint, FileCheckpoint

__all__ = ["CheckpointSaver"]


@final
class CheckpointSaver:
    """Saves the latest position in a thread of its own: a fast stream costs one write for many batches.

    A failure to save is raised by the next `advance`, or at the end of the ``with`` block.
    """

    def __init__(
        self, file: FileCheckpoint, output: Output | None = None, on_failure: Callable[[], None] | None = None
    ) -> None:
        """``output`` is the file that the checkpoints' ``bytes`` speak of.

        ``on_failure`` is called, from the thread that saves, when that failed: to end a wait for what comes next.
        """
        self._file = file
        self._on_failure = on_failure
        self._output = output
        self._latest: Checkpoint | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def advance(self, offset: str, length: int | None = None) -> None:
        """Save this position soon: everything before it was written and flushed.

        Args:
            offset: The stream's offset behind what was written.
            length: The output's length there in bytes, None for an output that is no file.

        Raises:
            Exception: Saving an earlier position failed with it.
        """
        with self._changed:
            self._raise()
            self._latest = Checkpoint(offset, self._file.stream, length)
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
                    self._output.settle()
                self._file.write(checkpoint)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that writes
            self._error = error
            if self._on_failure is not None:
                self._on_failure()

    def _next(self) -> Checkpoint | None:
        with self._changed:
            while self._latest is None and not self._ended:
                self._changed.wait()
            checkpoint, self._latest = self._latest, None
            return checkpoint
