"""Another program as a process that can be killed, suspended and started again.

Invariants: a program stays in the process group of its parent unless it gets a session of its own, so that a signal to
the group (Ctrl-C in a terminal, ``timeout``) leaves no process behind; its standard error goes to a file, because a
pipe that is not read stops its writer.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

__all__ = ["Program", "ProgramError", "clean_environment", "wait_until"]

_READY_WITHIN = 30.0  # seconds
_ENDS_WITHIN = 10.0
_POLL = 0.05


class ProgramError(Exception):
    """A program did not do what was expected of it; one sentence says what."""


def clean_environment() -> dict[str, str]:
    """Return the environment without the settings of ``durable-streams``, which are for the user's own server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_STREAMS_")}


class Program:
    """A program that is started by `start`, and again after it has ended.

    Args:
        name: What it is called in messages.
        command: Its command line, or a function that gives it at each start.
        log: The file that its output is added to; None for a temporary one.
        environment: Its environment; None for that of this process.
        folder: Its working folder; None for that of this process.
        feed: Whether its standard input is a pipe.
        listen: Whether its standard output is a pipe; otherwise it goes to the log.
        own_session: Whether it gets a session of its own, which Ctrl-C in the terminal does not reach.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str] | Callable[[], Sequence[str]],
        log: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        feed: bool = False,
        listen: bool = False,
        own_session: bool = False,
    ) -> None:
        self.name = name
        self._command = command if callable(command) else lambda: command
        self._log_path = log
        self._begins = 0  # where the output since the last start begins
        self._temporary: IO[bytes] | None = None  # the log, where it has no path
        self._said = b""  # what a temporary log held when it was closed
        self._environment, self._cwd = environment, folder
        self._feed, self._listen, self._own_session = feed, listen, own_session
        self._popen: subprocess.Popen[bytes] | None = None
        self._suspended = False

    # -- what it is doing

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Its last process, with the pipes that were asked for."""
        assert self._popen is not None, f"{self.name} was not started"  # noqa: S101 - an error of the caller
        return self._popen

    @property
    def pid(self) -> int:
        """The id of its process, 0 before the first start."""
        return self._popen.pid if self._popen else 0

    @property
    def exit_code(self) -> int | None:
        """How its last process ended: negative for a signal, None while it exists and before the first start."""
        return self._popen.poll() if self._popen else None

    @property
    def alive(self) -> bool:
        """Whether its process exists; a suspended one does."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def running(self) -> bool:
        """Whether its process exists and is not suspended."""
        return self.alive and not self._suspended

    @property
    def output(self) -> bytes:
        """What it has written to its log since the last start."""
        if self._log_path is not None:
            return self._log_path.read_bytes()[self._begins :] if self._log_path.exists() else b""
        if self._temporary is None:
            return self._said
        size = os.fstat(self._temporary.fileno()).st_size
        return os.pread(self._temporary.fileno(), size, 0)

    @property
    def log(self) -> str:
        """The same as text."""
        return self.output.decode(errors="replace")

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.strip().splitlines()
        return lines[-1] if lines else "(no output)"

    # -- starting

    def start(self) -> None:
        """Start the process unless it exists, without waiting for it to be ready."""
        if self.alive:
            return
        with self._open_log() as log:
            self._popen = subprocess.Popen(  # noqa: S603 - a command of our own
                list(self._command()),
                stdin=subprocess.PIPE if self._feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._listen else log,
                stderr=log,
                cwd=self._cwd,
                env=self._environment,
                start_new_session=self._own_session,
            )
        self._suspended = False

    def first_line(self, within: float = _READY_WITHIN) -> bytes:
        """Wait for the first line on its standard output, usually the one that says that it is ready.

        Args:
            within: How long to wait, in seconds.

        Returns:
            The line with its end, and what came with it.

        Raises:
            ProgramError: It ended, or wrote no line in time.
        """
        pipe = self.process.stdout
        assert pipe is not None, "listen=True"  # noqa: S101 - an error of the caller
        received, deadline = b"", time.monotonic() + within
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ProgramError(f"the {self.name} was not ready in {within:g} seconds")
                part = os.read(pipe.fileno(), 65536)
                if not part:
                    self._end(_ENDS_WITHIN)
                    raise ProgramError(f"the {self.name} did not start: {self.last_words}")
                received += part
        return received

    def restart(self) -> None:
        """Kill the process and start it again, with the same command."""
        self.kill()
        self.start()

    # -- ending

    def stop(self, number: int = signal.SIGTERM, within: float = _ENDS_WITHIN) -> int | None:
        """End the process in order, a suspended one too, and kill it if it does not end.

        Args:
            number: The signal that asks it to end.
            within: How long it may take, in seconds.

        Returns:
            Its exit code; that of SIGKILL if it did not end in time, None if there was never a process.
        """
        self.send(number)
        self.resume()  # a suspended process gets the signal only then
        return self._end(within)

    def wait(self, within: float = _ENDS_WITHIN) -> int | None:
        """Wait for its end and kill it after ``within`` seconds; return its exit code."""
        return self._end(within)

    def _end(self, within: float) -> int | None:
        if self._popen is None:
            return None
        try:
            self._popen.wait(within)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._close_files()
        return self._popen.returncode

    def kill(self) -> None:
        """End the process with SIGKILL: no handler runs, nothing is flushed."""
        self.stop(signal.SIGKILL)

    def suspend(self) -> None:
        """Stop the process from running: its connections stay open, and nothing answers."""
        self.send(signal.SIGSTOP)
        self._suspended = True

    def resume(self) -> None:
        """Let a suspended process continue."""
        self.send(signal.SIGCONT)
        self._suspended = False

    def send(self, number: int) -> None:
        """Send a signal; one that has ended gets none."""
        if self._popen is not None:
            self._popen.send_signal(number)

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[IO[bytes]]:
        if self._log_path is None:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryFile()  # noqa: SIM115 - open until the process has ended
            yield self._temporary
            return
        self._log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._log_path.open("ab") as log:
            self._begins = log.tell()
            yield log

    def _close_files(self) -> None:
        self._said = self.output
        for file in (self.process.stdin, self.process.stdout, self._temporary):
            if file is not None:
                with contextlib.suppress(OSError):  # a full pipe with no reader
                    file.close()
        self._temporary = None


def wait_until(condition: Callable[[], bool], within: float) -> bool:
    """Ask until ``condition`` holds, for at most ``within`` seconds; return whether it does."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
