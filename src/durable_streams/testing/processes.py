"""A server of another program as a process that can be killed, suspended and started again.

It stays in the process group of whoever started it, so that what ends the group (Ctrl-C in a terminal, ``timeout``)
leaves no server behind even where nobody is left to stop it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["ServerProcess", "wait_until"]

_ENDS_WITHIN = 10.0  # seconds
_POLL = 0.05


class ServerProcess:
    """A process called ``name`` whose log is ``folder/log``; ``command`` gives its command line at each start."""

    def __init__(self, name: str, folder: Path, command: Callable[[], list[str]]) -> None:
        self.name = name
        self.folder = folder
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._suspended = False
        self._begins = 0  # of the log of the last start

    @property
    def pid(self) -> int:
        """The id of its process, 0 if there never was one."""
        return self._process.pid if self._process else 0

    @property
    def exit_code(self) -> int | None:
        """How its last process ended: negative for a signal, None while it exists or if there never was one."""
        return self._process.poll() if self._process else None

    @property
    def alive(self) -> bool:
        """Whether its process exists; a suspended one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def running(self) -> bool:
        """Whether its process exists and is not suspended."""
        return self.alive and not self._suspended

    @property
    def log(self) -> str:
        """What it has said since the last start."""
        path = self.folder / "log"
        return path.read_bytes()[self._begins :].decode(errors="replace") if path.exists() else ""

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def start(self) -> None:
        """Start the process if it is not there, without waiting for what it does."""
        if self.alive:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._begins = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - a command of our own
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._suspended = False

    def stop(self) -> None:
        """End the process in order; one that is suspended goes on for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process without warning."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the process and start it again, on the same ports and data."""
        self.kill()
        self.start()

    def suspend(self) -> None:
        """Stop the process from running: its connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)
        self._suspended = True

    def resume(self) -> None:
        """Let a suspended process go on."""
        self._signal(signal.SIGCONT)
        self._suspended = False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # does nothing to one that has ended

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        self.resume()  # a suspended one hears of it only then
        try:
            self._process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def wait_until(condition: Callable[[], bool], within: float) -> bool:
    """Ask until ``condition`` holds, for at most ``within`` seconds; return whether it does."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
