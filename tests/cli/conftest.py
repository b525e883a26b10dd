"""The command line as users meet it: real processes, a real server on a free port."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Received, ScriptedServer

from durable_streams.testing.program import Program, clean_environment

COMMAND = [sys.executable, "-m", "durable_streams.cli"]
PATIENCE = 100.0  # seconds until a test gives up; nothing is asserted about how long things take


class CLI:
    """Runs commands in a folder of their own, with a server's root in the environment."""

    def __init__(self, folder: Path, root: str | None = None) -> None:
        self.folder = folder
        self.root = root
        self.processes: list[subprocess.Popen[bytes]] = []
        self.programs: list[Program] = []

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        environment = clean_environment()
        if self.root is not None:
            environment["DURABLE_STREAMS_URL"] = self.root
        return environment | (extra or {})

    def run(
        self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env=self.environment(env),
            timeout=PATIENCE,
            check=False,
        )

    def ok(self, *arguments: str, stdin: bytes = b"") -> bytes:
        done = self.run(*arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    def error(
        self, *arguments: str, code: int = 1, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> str:
        done = self.run(*arguments, stdin=stdin, env=env)
        message = done.stderr.decode()
        assert done.returncode == code, message
        assert message.startswith("durable-streams: ")
        assert message.count("\n") == 1, "a failure is one line"
        assert "Traceback" not in message
        assert "internal error" not in message
        return message

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        settings: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "cwd": self.folder,
            "env": self.environment(),
        }
        process = subprocess.Popen([*COMMAND, *arguments], **(settings | options))
        self.processes.append(process)
        return process

    def end(self) -> None:
        for program in self.programs:
            program.kill()
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


class ServerProcess:
    """``serve`` on a free port; killed and started again it keeps its port and its folder."""

    def __init__(self, cli: CLI, *options: str) -> None:
        self.port = 0
        self._program = Program(
            "server",
            lambda: [*COMMAND, "serve", "--port", str(self.port), *options],
            environment=cli.environment(),
            folder=cli.folder,
            listen=True,
        )
        cli.programs.append(self._program)
        self.start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        return self._program.process

    def start(self) -> None:
        self._program.start()
        self.ready = self._program.first_line(PATIENCE).decode()
        assert self.ready.startswith("durable-streams: serving http://"), self.ready
        self.root = self.ready.split()[2]
        self.port = int(self.root.split("/")[2].rpartition(":")[2])

    def kill(self) -> None:
        self._program.kill()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int | None, bytes]:
        """Ask it to end; return its exit code and its standard error."""
        code = self._program.stop(number, PATIENCE)
        return code, self._program.output


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[CLI]:
    """Commands without a server."""
    cli = CLI(tmp_path)
    yield cli
    cli.end()


@pytest.fixture
def serving(bare: CLI) -> Callable[..., ServerProcess]:
    """Start servers with options of the test's own; the commands of ``bare`` talk to the last one."""

    def start(*options: str) -> ServerProcess:
        server = ServerProcess(bare, *options)
        bare.root = server.root
        return server

    return start


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    cli = CLI(tmp_path_factory.mktemp("server"))
    server = ServerProcess(
        cli, "--memory", "--long-poll-timeout", "2", "--sse-max-age", "2", "--chunk-size", "4096"
    )
    yield server
    assert server.stop() == (0, b"")


@pytest.fixture
def cli(tmp_path: Path, shared_server: ServerProcess) -> Iterator[CLI]:
    """Commands with a root of the test's own on the shared server."""
    cli = CLI(tmp_path, f"{shared_server.root}/{tmp_path.name}")
    yield cli
    cli.end()


class HTTPPeer:
    """A server that answers everything alike and writes down who asked."""

    def __init__(self) -> None:
        self._answer = (200, b"")
        self._server = ScriptedServer(answer=self._reply)
        self.root = f"{self._server.root}/v1/stream"
        self.stop = self._server.stop

    @property
    def tokens(self) -> list[str | None]:
        return [request.headers.get("authorization") for request in self._server.requests]

    def answer(self, status: int, body: bytes) -> None:
        self._answer = (status, body)

    def _reply(self, request: Received) -> bytes:
        status, body = self._answer
        content = b"" if request.method == "HEAD" else body
        return ScriptedServer.response(status, content, length=len(body))


@pytest.fixture
def http_peer() -> Iterator[HTTPPeer]:
    peer = HTTPPeer()
    yield peer
    peer.stop()


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so; fail the test when it never becomes so."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.01)

    return wait
