"""The seeds, and the servers that they run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos_scenario import Scenario

from durable_streams.server import ServerConfig
from durable_streams.testing import InMemoryStreamServer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "chaos_seed" in metafunc.fixturenames:
        one, many = metafunc.config.getoption("--chaos-seed"), metafunc.config.getoption("--chaos-seeds")
        metafunc.parametrize("chaos_seed", range(many) if one is None else [one])


@pytest.fixture(scope="session")
def chaos_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[InMemoryStreamServer]]:
    """Give two servers, in memory and on SQLite, whose answers are small and whose live reads are short."""
    memory = ServerConfig(long_poll_timeout=0.4, sse_max_age=0.5, sse_heartbeat=0.05, chunk_size=2000)
    folder = tmp_path_factory.mktemp("chaos")
    sqlite = ServerConfig(data_dir=folder, long_poll_timeout=0.1, sse_max_bytes=3000, sse_max_age=5.0)
    with InMemoryStreamServer(config=memory) as one, InMemoryStreamServer(config=sqlite) as two:
        yield [one, two]


@pytest.fixture
def scenario(
    chaos_seed: int, chaos_servers: list[InMemoryStreamServer], request: pytest.FixtureRequest
) -> Iterator[Scenario]:
    """Give the scenario of a seed; a test that fails says how to repeat it."""
    request.node.add_report_section("setup", "repeat", f"pytest tests/chaos --chaos-seed {chaos_seed}")
    made = Scenario(chaos_seed, chaos_servers[chaos_seed % 2])
    with made.proxy:
        yield made
