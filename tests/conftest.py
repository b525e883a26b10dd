"""Fixtures for tests against a real server: a process of its own on a free port, with a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from servers import ServerProcess, server_arguments, serving

# How long an example takes says something of the machine, not of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the folder in which relays keep their state: no test writes into that of the user."""
    folder = tmp_path_factory.mktemp("state-home")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_STATE_HOME", str(folder))
        yield folder


StartServer = Callable[..., ServerProcess]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Give a function that starts a server, ``start_server(folder_or_None, **settings)``; ended with the test."""
    started: list[ServerProcess] = []

    def start(
        data_dir: Path | None = None, *, environment: Mapping[str, str] | None = None, **settings: object
    ) -> ServerProcess:
        server = ServerProcess(server_arguments(data_dir, **settings), environment)
        started.append(server)
        return server.wait_until_ready()

    yield start
    for server in started:
        server.kill()


@pytest.fixture
def run_server() -> Iterator[Callable[..., ServerProcess]]:
    """Give a function that starts any command as a server without waiting for it; all end with the test."""
    started: list[ServerProcess] = []

    def run(
        arguments: list[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> ServerProcess:
        server = ServerProcess(arguments, environment, folder)
        started.append(server)
        return server

    yield run
    for server in started:
        server.kill()


@pytest.fixture
def server_command() -> Callable[..., list[str]]:
    """Give the function that names the command to serve a folder, for ``run_server``."""
    return server_arguments


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Give one server on SQLite for all tests of this process that do it no harm."""
    # Short waits, so that tests that wait for the end of a live read are quick.
    with serving(tmp_path_factory.mktemp("shared-server"), long_poll_timeout=1.0, sse_max_age=30.0) as server:
        yield server


@pytest.fixture(scope="session")
def shared_memory_server() -> Iterator[ServerProcess]:
    """Give one server that keeps streams in memory, for all tests of this process that do it no harm."""
    with serving(None, long_poll_timeout=1.0, sse_max_age=30.0) as server:
        yield server


@pytest.fixture(scope="session")
def small_server() -> Iterator[ServerProcess]:
    """Give a shared server with small answers and very short waits: reads take many requests."""
    with serving(None, chunk_size=1024, long_poll_timeout=0.2, sse_max_age=0.2) as server:
        yield server


@pytest.fixture(scope="session", params=["rsgi", "asgi"])
def either_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Give a shared server on SQLite, once as ``serve`` runs it and once under an ASGI server."""
    folder = tmp_path_factory.mktemp(f"shared-{request.param}")
    with serving(folder, request.param, long_poll_timeout=1.0, max_body=1 << 20) as server:
        yield server


_numbers = count()


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """Give a stream's path that no other test uses."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    return f"{name[:80]}-{next(_numbers)}"


_LONG = 120  # seconds of a time limit: tests that may take longer begin early
_AHEAD = 10


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "every_transport: run over every HTTP library, not only the default ones"
    )
    config.addinivalue_line("markers", "every_store: run against a server on each store, not only SQLite")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each worker have its share of the longest tests early: begun last, one of them keeps all others waiting."""
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    longest = [item for item in items if _takes_long(item)]
    others = [item for item in items if not _takes_long(item)]
    share = -(-len(others) // workers)
    # A few others first: where exactly the share of a worker begins depends on the scheduler.
    items[:] = [
        item
        for number in range(workers)
        for part in (others[number * share :][:share],)
        for item in (*part[:_AHEAD], *longest[number::workers], *part[_AHEAD:])
    ]


def _takes_long(item: pytest.Item) -> bool:
    limit = item.get_closest_marker("timeout")
    return limit is not None and bool(limit.args) and not 0 < limit.args[0] <= _LONG


def pytest_addoption(parser: pytest.Parser) -> None:
    crash = parser.getgroup("crash", "tests that kill servers")
    crash.addoption(
        "--log-kills", type=int, default=4, help="how often to kill a store that sorts (default 4)"
    )
    crash.addoption("--crash-kills", type=int, default=20, help="how often to kill the server (default 20)")
    crash.addoption(
        "--crash-seed", type=int, default=None, help="the seed of a run to repeat (default: a new one)"
    )
    crash.addoption(
        "--subscription-kills", type=int, default=4, help="how often, under subscriptions (default 4)"
    )
    crash.addoption(
        "--subscription-count", type=int, default=4, help="subscriptions of each kind (default 4)"
    )
    crash.addoption(
        "--maintenance-kills",
        type=int,
        default=20,
        help="how often, during trims, purges, upgrades and backups (default 20)",
    )
    drivers = parser.getgroup("drivers", "tests of the client")
    drivers.addoption(
        "--every-httpx2",
        action="store_true",
        help="run over httpx2 too what one adapter does for it and httpx",
    )
    damages = parser.getgroup("damages", "seeded damages of a data folder")
    damages.addoption("--damages", type=int, default=50, help="how many (default 50)")
    chaos = parser.getgroup("chaos", "tests through a network that fails at random")
    chaos.addoption("--chaos-seeds", type=int, default=40, help="how many seeds to run (default 40)")
    chaos.addoption("--chaos-seed", type=int, default=None, help="the one seed to run")
    chaos.addoption("--chaos-answers", type=int, default=8, help="how many answers to generate (default 8)")
    chaos.addoption("--chaos-kills", type=int, default=2, help="how often to kill their server (default 2)")
    fuzz = parser.getgroup("fuzz", "raw requests of every kind")
    fuzz.addoption(
        "--fuzz-requests", type=int, default=2000, help="how many, over all servers (default 2,000)"
    )
    fuzz.addoption(
        "--fuzz-seed", type=int, default=None, help="the seed of a run to repeat (default: a new one)"
    )
    fuzz.addoption("--fuzz-only", type=int, default=None, help="the one case of the seed to send")
    cluster = parser.getgroup("cluster", "tests with several gateways on NATS servers that fail")
    cluster.addoption("--proof-appends", type=int, default=5_000, help="how many appends (default 5,000)")
