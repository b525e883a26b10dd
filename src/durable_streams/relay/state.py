"""The state of a relay between runs: one small file, replaced in one step.

Invariants: ``offset`` and ``place`` belong together: at ``offset`` the target holds the records of the source up to
``place``, and none after it; an epoch is in the file before the first request that carries it;
``clean`` is true only while no request can be under way; one relay at a time uses a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from durable_streams.client.checkpoints import Checkpoint, FileCheckpoint, is_at, open_private
from durable_streams.errors import DurableStreamError
from durable_streams.file_lock import try_lock

__all__ = ["Acknowledged", "State", "StateFile", "default_path", "make_default_folder"]


class State(Checkpoint, frozen=True, kw_only=True, omit_defaults=True):
    """``offset`` in ``stream`` (the target's URL), ``place`` in ``source``, and the producer that writes.

    ``window``: the offset from which the target holds the ids that are remembered. ``saved``: when, in seconds
    since 1970.
    """

    source: str
    producer_id: str
    epoch: int = 0
    clean: bool = False
    place: Any = None
    window: str | None = None
    saved: float = 0.0


class Acknowledged:
    """The records that are stored, in order, and the place and offset that a state may hold. Thread-safe."""

    def __init__(self, place: Any, offset: str) -> None:
        self.records = 0
        self.latest = (place, 0, offset)
        self._lock = threading.Lock()
        self._sent: deque[tuple[Any, int]] = deque()

    def sent(self, place: Any, ids: int) -> None:
        """Note a record that is about to be sent; ``ids``: how many ids were added up to it."""
        self._sent.append((place, ids))

    def stored(self, records: int, offset: str) -> None:
        """Note that this many records, in all, are stored: a whole request of them since the last time."""
        with self._lock:
            if records <= self.records:
                return  # another thread has noted it
            place, ids = self.latest[:2]
            for _ in range(records - self.records):
                place, ids = self._sent.popleft()
            # The offset is that after a whole request, and so is the place of its last record.
            self.latest = (place, ids, offset)
            self.records = records


def new_producer_id() -> str:
    """Return a name that no other relay has."""
    return f"relay-{uuid.uuid4()}"


def default_path(source: str, target: str) -> Path:
    """Return where the state of this source and target is kept by default."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    name = hashlib.sha256(f"{source}\n{target}".encode()).hexdigest()[:16]
    return Path(base).expanduser() / "durable-streams" / "relay" / f"{name}.json"


def make_default_folder(path: Path) -> None:
    """Make the folder of a default path; only its owner may look into it, also if an older version made it."""
    folder = path.parent
    folder.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # as XDG wants it
    for ours in (folder.parent, folder):
        ours.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(OSError):
            ours.chmod(0o700)


class StateFile:
    """The file of one relay. Raises DurableStreamError (code ``CHECKPOINT``) as FileCheckpoint does."""

    def __init__(self, path: str | os.PathLike[str], source: str, target: str) -> None:
        self._file = FileCheckpoint(path, target)
        self._source = source
        self._lock: IO[bytes] | None = None

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._file.path

    def load(self) -> State | None:
        """Return what was saved last, None at the first start; raises for the state of another relay."""
        if self._file.read() is None:
            return None
        try:
            state = msgspec.json.decode(self.path.read_bytes(), type=State)
        except msgspec.DecodeError:
            raise _error(f"{self.path} is not the state of a relay; choose another file.") from None
        if state.source != self._source:
            raise _error(f"{self.path} is the state of a relay from {state.source}; choose another file.")
        return state

    def save(self, state: State) -> None:
        """Replace the file; it is on disk when this returns. Raises once the lock is not where it was taken."""
        # Without it another relay may be at work, on a state of its own.
        if self._lock is not None and not is_at(self._lock_path, self._lock.fileno()):
            raise _error(
                f"the folder of {self.path}, or its lock, was moved, removed or replaced while the relay ran; "
                "put it back, or choose another file."
            )
        self._file.write(state)

    @property
    def _lock_path(self) -> Path:
        # Beside the file, which is replaced all the time.
        return self.path.with_name(f".{self.path.name}.lock")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the file; raises DurableStreamError if another relay uses it."""
        if sys.platform == "win32":
            yield  # no lock there: of two relays on one file, the younger one fences the elder
            return
        with self._open_lock() as lock:
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None
                # While it is locked: a relay that opened it meanwhile sees that it is gone, and makes another.
                if is_at(self._lock_path, lock.fileno()):
                    with contextlib.suppress(OSError):
                        self._lock_path.unlink()

    def _open_lock(self) -> IO[bytes]:
        """Return the lock's file, locked, and where its path leads."""
        while True:
            try:
                lock = open(self._lock_path, "wb", opener=open_private)  # noqa: SIM115 - no opener; the caller closes it
            except OSError as error:
                raise _error(f"cannot use {self.path}: {error.strerror}; choose another file.") from error
            if not try_lock(lock):
                lock.close()
                raise _error(f"another relay uses {self.path}; stop it, or choose another state file.")
            if is_at(self._lock_path, lock.fileno()):
                return lock
            lock.close()  # another relay ended just now, and removed it


def _error(message: str) -> DurableStreamError:
    return DurableStreamError(message, code="CHECKPOINT")
