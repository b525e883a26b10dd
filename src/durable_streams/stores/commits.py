"""Group commit: commands wait, are decided together, and are answered once they are stored.

Invariants: one batch is committed at a time; a batch is published only after its commit succeeded, however long that
took; a command is answered once, within about twice the time that a commit may take; waiting commands are bounded;
damage of one stream fails the commands of that stream only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from durable_streams.stores.backlog import Backlog
from durable_streams.stores.base import (
    StoreDamagedError,
    StoreError,
    StoreLostError,
    StoreUnavailableError,
    StoreUncertainError,
    as_store_error,
)
from durable_streams.stores.batch import CommitBatch
from durable_streams.stores.figures import CommitFigures

__all__ = ["LOST", "Committed", "GroupCommits", "copied"]

T = TypeVar("T")
Committed = Callable[["StoreError | None"], None]

_BATCH_COMMANDS = 1024
_BATCH_BYTES = 16 << 20
_LOOKS = 10  # checks of a commit within its time limit

LOST = "the server's data folder was moved, removed or replaced"
_LATE = "the disk does not answer"
_NOTHING = "none of this request was stored"

_log = logging.getLogger("durable_streams.stores")


class _QueuedCommand(msgspec.Struct, frozen=True):
    """A command that waits; ``repeatable``: a retry is harmless even if the command was stored."""

    decide: Callable[[CommitBatch], Any]
    future: asyncio.Future[Any]
    size: int
    repeatable: bool


_Outcome = tuple[_QueuedCommand, Any, "BaseException | None"]


class GroupCommits:
    """The queue of commands, and the batch that is being committed.

    Attributes:
        figures: What was committed.
        backlog: The bound on waiting commands.

    Args:
        new_batch: Returns an empty batch.
        commit: Writes a batch, all or nothing, and calls back on the event loop, now or later.
        publish: Called with every batch that was committed.
        on_lost: Called when a commit finds that the data are no longer where they were opened.
        timeout: Seconds that a commit may take.
        backlog: The bound on waiting commands.
    """

    def __init__(
        self,
        new_batch: Callable[[], CommitBatch],
        commit: Callable[[CommitBatch, Committed], None],
        publish: Callable[[CommitBatch], None],
        on_lost: Callable[[StoreLostError], None],
        *,
        timeout: float,
        backlog: Backlog,
    ) -> None:
        self.figures = CommitFigures()
        self._on_lost = on_lost
        self._new_batch = new_batch
        self._commit = commit
        self._publish = publish
        self._timeout = timeout
        self.backlog = backlog
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: deque[_QueuedCommand] = deque()
        self._outcomes: list[_Outcome] = []  # of the batch that is being committed
        self._alone = 0  # commands at the head of the queue that are committed one by one
        self._committing = False
        self._began = 0.0  # when the present commit began, on the loop's clock
        self._measured_from = 0.0  # the same, on a clock that counts more than milliseconds
        self._watching = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped: StoreError | None = None  # for good
        self._refusal: StoreError | None = None  # for good or until the disk answers

    def submit(
        self, decide: Callable[[CommitBatch], T], size: int = 0, *, repeatable: bool = False
    ) -> asyncio.Future[T]:
        """Queue a command.

        Args:
            decide: Decides the command on a batch; its result or exception is the command's.
            size: The command's bytes.
            repeatable: Whether a retry is harmless even if the command was stored.

        Returns:
            The future of the result, which is set when the batch is stored.

        Raises:
            StoreUnavailableError: The command cannot be stored now.
        """
        if self._refusal is not None:
            raise copied(self._refusal)
        self.backlog.add(size)
        loop = self._loop
        if loop is None:
            # Asked for once: to find the loop of this thread costs a system call.
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.append(_QueuedCommand(decide, future, size, repeatable))
        if not self._committing:
            self._committing = True
            self._idle.clear()
            # Commands that arrive in the same iteration of the event loop share the commit.
            loop.call_soon(self._next)
        return future

    def stop(self, reason: StoreError) -> None:
        """Accept no more commands. Accepted ones continue, unless the store is lost."""
        if not isinstance(self._stopped, StoreLostError):
            self._stopped = self._refusal = reason
        if isinstance(reason, StoreLostError):
            self._refuse_queue(reason)

    async def drained(self, timeout: float) -> bool:
        """Wait until all commands are answered; after ``timeout`` seconds fail the rest and return False."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except asyncio.TimeoutError:
            self._give_up()
            return False
        return True

    # -- from waiting commands to a batch, and back

    def _next(self) -> None:
        batch = self._new_batch()
        outcomes: list[_Outcome] = []
        self._outcomes = outcomes
        queue, size = self._queue, 0
        most = 1 if self._alone else _BATCH_COMMANDS
        while queue and size < _BATCH_BYTES and len(outcomes) < most:
            command = queue.popleft()
            if self._alone:
                self._alone -= 1
            if command.future.done():
                self.backlog.remove(command.size)
                continue
            try:
                outcomes.append((command, command.decide(batch), None))
                size += command.size
            except Exception as refusal:  # noqa: BLE001 - any failure is this command's, not the batch's
                outcomes.append((command, None, refusal))
        if not batch:
            self._ended(batch, outcomes, None)
            return
        self._watch()
        try:
            self._commit(batch, lambda error: self._committed(batch, outcomes, error))
        except Exception as error:  # noqa: BLE001 - any failure must reach the waiters, and the next batch must run
            self._ended(batch, outcomes, as_store_error(error))

    def _committed(self, batch: CommitBatch, outcomes: list[_Outcome], error: StoreError | None) -> None:
        if isinstance(error, StoreDamagedError) and len(outcomes) > 1:
            # Most of them can be stored: they are decided again, each in a batch of its own.
            self._outcomes = []
            self._queue.extendleft([command for command, _, _ in reversed(outcomes)])
            self._alone += len(outcomes)
            self._next()
        else:
            self._ended(batch, outcomes, error)

    def _ended(self, batch: CommitBatch, outcomes: list[_Outcome], error: StoreError | None) -> None:
        self._outcomes = []
        self.backlog.remove(sum([command.size for command, _, _ in outcomes]), len(outcomes))
        if batch:
            self._count(batch, len(outcomes), error)
        if self._refusal is not self._stopped:
            _log.warning("the disk answers again: streams can be written to")
            self._refusal = self._stopped
        if error is None:
            self._publish(batch)
        elif isinstance(error, StoreLostError):
            self._on_lost(error)
        if self._queue:
            # The next commit starts before any command is answered, so that disk and answers overlap.
            self._next()
        else:
            self._committing = False
            self._idle.set()
        for command, outcome, refusal in outcomes:
            future = command.future
            if future.done():
                continue
            if error is not None:
                future.set_exception(_failure(command, refusal, error))
            elif refusal is not None:
                future.set_exception(refusal)
            else:
                future.set_result(outcome)

    def _count(self, batch: CommitBatch, commands: int, error: StoreError | None) -> None:
        if error is not None:
            self.figures.failed += 1
            return
        self.figures.appends += len(batch.records)
        self.figures.bytes += sum([len(payload) for _, _, payload, _ in batch.records])
        self.figures.stored(commands, time.perf_counter() - self._measured_from)

    # -- a disk that does not answer

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._measured_from = time.perf_counter()
        if not self._watching:
            # One timer serves many commits: a timer for each would cost each of them.
            self._watching = True
            loop.call_later(self._timeout / _LOOKS, self._look)

    def _look(self) -> None:
        self._watching = False
        loop = asyncio.get_running_loop()
        if not self._outcomes:
            return
        if loop.time() - self._began < self._timeout:
            self._watching = True
            loop.call_later(self._timeout / _LOOKS, self._look)
            return
        _log.error(
            "the disk has not answered for %g seconds: nothing can be stored until it does", self._timeout
        )
        if self._stopped is None:
            self._refusal = StoreUnavailableError(f"{_LATE}; {_NOTHING}")
        self._give_up()

    def _give_up(self) -> None:
        """Answer all waiting commands. The batch that is being committed may still be stored, and is published then."""
        for command, _, refusal in self._outcomes:
            if not command.future.done():
                command.future.set_exception(_in_doubt(command, refusal, _LATE))
        self._refuse_queue(self._refusal or StoreUnavailableError(f"{_LATE}; {_NOTHING}"))

    def _refuse_queue(self, reason: StoreError) -> None:
        while self._queue:
            command = self._queue.popleft()
            self.backlog.remove(command.size)
            if not command.future.done():
                command.future.set_exception(copied(reason))


def _failure(command: _QueuedCommand, refusal: BaseException | None, error: StoreError) -> StoreError:
    """Return the error of a command whose batch failed."""
    if not isinstance(error, StoreLostError):
        return copied(error)
    return _in_doubt(command, refusal, LOST) if error.written else StoreLostError(f"{LOST}; {_NOTHING}")


def _in_doubt(command: _QueuedCommand, refusal: BaseException | None, reason: str) -> StoreError:
    """Return the error of a command whose batch has an unknown outcome."""
    if refusal is not None:  # the command would have changed nothing
        return StoreUnavailableError(f"{reason}; {_NOTHING}")
    if command.repeatable:
        return StoreUnavailableError(f"{reason}: retry the request, it is stored once in any case")
    return StoreUncertainError(f"{reason}: the request may have been stored; read the stream to find out")


def copied(error: StoreError) -> StoreError:
    """Return a copy of an error that is raised in several places."""
    return type(error)(*error.args)
