"""The servers that are measured beside each other: each is had by one function and started by one.

They are black boxes: installed from their registries into ``peer/.venv-peers``, started by their documented commands,
with their defaults. What cannot be had is left out, with one sentence.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import appends
from processes import (
    BARE,
    HERE,
    MEMORY,
    PEER_FILES,
    PEER_MEMORY,
    READY_WITHIN,
    SQLITE,
    BenchmarkError,
    Server,
    install_peer,
    serving,
)

from durable_streams import __version__
from durable_streams.testing.program import Program, clean_environment

CACHE = HERE / "peer" / ".venv-peers"
RUST, RAKAIA = "0.1.5", "0.9.0"
RAKAIA_PINS = [f"rakaia-streams=={RAKAIA}", "uvicorn==0.52.4", "click==8.5.1", "h11==0.16.0"]
CADDY = "github.com/durable-streams/durable-streams/packages/caddy-plugin/cmd/caddy@latest"


@dataclass(frozen=True)
class Contender:
    """A server in one of its settings; ``have`` installs it, ``start`` runs it on a folder."""

    name: str
    have: Callable[[], str]
    start: Callable[[Path], AbstractContextManager[Server]]
    durable: bool
    stores: bool = True


def _run(what: str, command: list[str], **environment: str) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
            env={**os.environ, **environment},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"{what} cannot be installed: {error}.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1].strip()
        raise BenchmarkError(f"{what} cannot be installed: {last}")


def _tool(name: str, *places: str) -> str:
    """Return where a compiler is."""
    found = shutil.which(name) or next((place for place in places if os.access(place, os.X_OK)), None)
    if found is None:
        raise BenchmarkError(f"{name} was not found, which builds this server.")
    return found


def have_ours() -> str:
    return __version__


def have_node() -> str:
    install_peer()
    return "@durable-streams/server 0.3.7"


def have_rust() -> str:
    if not (CACHE / "rust/bin/durable-streams-server").exists():
        cargo = _tool("cargo", str(Path.home() / ".cargo/bin/cargo"))
        root = str(CACHE / "rust")
        _run("Rust", [cargo, "install", "durable-streams", "--version", RUST, "--locked", "--root", root])
    return f"durable-streams {RUST}"


def have_caddy() -> str:
    """Build the plugin's own server."""
    if not (CACHE / "go/caddy").exists():
        go = _tool("go", "/usr/local/go/bin/go")
        _run("Caddy", [go, "install", CADDY], GOBIN=str(CACHE / "go"))
    return "the latest release of the plugin"


def have_rakaia() -> str:
    python = CACHE / "rakaia/bin/python"
    if not (CACHE / "rakaia/bin/uvicorn").exists():
        _run("rakaia", [sys.executable, "-m", "venv", "--clear", str(CACHE / "rakaia")])
        _run("rakaia", [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *RAKAIA_PINS])
    return f"rakaia-streams {RAKAIA}, uvicorn"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _listening(name: str, port: int, command: list[str], folder: Path, **extra: str) -> Iterator[Server]:
    """Run a server on a given port, until it takes connections; end it afterwards."""
    program = Program(name, command, environment={**clean_environment(), **extra}, folder=folder)
    before = time.perf_counter()
    program.start()
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                if not program.alive or time.perf_counter() - before > READY_WITHIN:
                    raise BenchmarkError(f"{name} does not start: {program.last_words}") from None
                time.sleep(0.01)
        yield Server(name, port, program.pid, time.perf_counter() - before)
    finally:
        program.stop(within=20)


def start_rust(name: str, folder: Path, *options: str) -> AbstractContextManager[Server]:
    port = _free_port()
    binary = str(CACHE / "rust/bin/durable-streams-server")
    return _listening(name, port, [binary, "--port", str(port), "--data-dir", str(folder), *options], folder)


def start_caddy(name: str, folder: Path, *, files: bool) -> AbstractContextManager[Server]:
    port = _free_port()
    storage = f"{{\ndata_dir {folder / 'streams'}\n}}" if files else ""
    config = folder / "Caddyfile"
    config.write_text(
        f"{{\nadmin off\n}}\nhttp://127.0.0.1:{port} {{\nroute /v1/stream/* {{\ndurable_streams {storage}\n}}\n}}\n"
    )
    return _listening(name, port, [str(CACHE / "go/caddy"), "run", "--config", str(config)], folder)


def start_rakaia(name: str, folder: Path, *, files: bool) -> AbstractContextManager[Server]:
    port = _free_port()
    app = ["--app-dir", str(HERE / "peer"), "rakaia_files:app"] if files else ["rakaia:app"]
    options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    return _listening(
        name, port, [str(CACHE / "rakaia/bin/uvicorn"), *app, *options], folder, RAKAIA_DATA=str(folder)
    )


CONTENDERS = [
    Contender(SQLITE, have_ours, lambda folder: serving(SQLITE, folder), durable=True),
    Contender("Rust, WAL", have_rust, lambda folder: start_rust("Rust, WAL", folder), durable=True),
    Contender("Node, files", have_node, lambda folder: serving(PEER_FILES, folder), durable=True),
    Contender(
        "Caddy, files",
        have_caddy,
        lambda folder: start_caddy("Caddy, files", folder, files=True),
        durable=True,
    ),
    Contender(
        "rakaia, files",
        have_rakaia,
        lambda folder: start_rakaia("rakaia, files", folder, files=True),
        durable=True,
    ),
    Contender(BARE, have_ours, lambda _: serving(BARE, None, **appends.HEADERS), durable=False, stores=False),
    Contender(MEMORY, have_ours, lambda _: serving(MEMORY), durable=False),
    Contender(
        "Rust, memory",
        have_rust,
        lambda folder: start_rust("Rust, memory", folder, "--durability", "memory"),
        durable=False,
    ),
    Contender("Node, memory", have_node, lambda _: serving(PEER_MEMORY), durable=False),
    Contender(
        "Caddy, memory",
        have_caddy,
        lambda folder: start_caddy("Caddy, memory", folder, files=False),
        durable=False,
    ),
    Contender(
        "rakaia, memory",
        have_rakaia,
        lambda folder: start_rakaia("rakaia, memory", folder, files=False),
        durable=False,
    ),
]
