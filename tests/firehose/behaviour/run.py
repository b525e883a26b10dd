"""Run probes on one side: a worker in that side's interpreter against a scripted server in this one.

Of the official package each probe has an interpreter of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from probes import PROBES
from scripted import Received, ScriptedServer

from durable_streams.testing.program import Program, ProgramError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
WITHIN = 60.0  # seconds; a busy machine is no difference


Played = Callable[[str, str], "list[str] | str"]
"""Plays a probe against a URL: returns what happened, or in one text how it failed."""


def official(python: list[str]) -> Played:
    """Return what plays probes with an interpreter that has the official package."""

    def play(name: str, url: str) -> list[str] | str:
        try:
            done = subprocess.run(
                [*python, str(HERE / "worker.py"), name, url],
                capture_output=True,
                text=True,
                check=False,
                timeout=WITHIN,
                env=_environment(),
            )
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        events: list[str] = json.loads(done.stdout) if done.returncode == 0 else []
        return events if done.returncode == 0 else done.stderr

    return play


class Ours:
    """Plays probes on the `xdk.streaming` of this repository, each in a process forked from one that imported it."""

    def __init__(self) -> None:
        paths = os.pathsep.join(str(ROOT / path) for path in ("xdk/src", "src"))
        environment = {**_environment(), "PYTHONPATH": paths}
        command = [sys.executable, str(HERE / "worker.py")]
        self._worker = Program("worker", command, environment=environment, feed=True, listen=True)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.kill()

    def __call__(self, name: str, url: str) -> list[str] | str:
        self._worker.start()
        pipe = self._worker.process.stdin
        assert pipe is not None
        pipe.write(f"{name} {url}\n".encode())
        pipe.flush()
        try:
            events: list[str] | str = json.loads(self._worker.first_line(WITHIN))
        except ProgramError as error:
            self._worker.kill()
            raise TimeoutError from error
        return events


def observe(play: Played, name: str) -> str:
    """Return what happened on one side, in one line."""
    replies = PROBES[name].replies()
    with ScriptedServer(replies) if replies else ScriptedServer(answer=_echo) as server:
        try:
            events = play(name, server.root + "/feed")
        except TimeoutError:
            return "does not end"
    if isinstance(events, str):
        return "fails: " + (events.strip().splitlines() or ["killed"])[-1]
    return _port_free("; ".join(events))


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}


def _port_free(text: str) -> str:
    return re.sub(r"127\.0\.0\.1:\d+", "HOST", text)


def _echo(request: Received) -> bytes:
    headers = request.headers
    echo = {
        "method": request.method,
        "target": request.target,
        "body": request.body,
        **{name: headers.get(name) for name in ("authorization", "cookie", "x-mine", "content-type")},
    }
    if "show" in request.query:
        echo = {"header": headers.get(request.query["show"])}
    return ScriptedServer.response(200, json.dumps(echo).encode() + b"\n", Connection="close")
