"""Fixtures for the tests of the testing module itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from durable_streams.server import ServerConfig
from durable_streams.testing import InMemoryStreamServer
from durable_streams.testing.pytest_plugin import durable_streams_server

__all__ = ["durable_streams_server", "server"]  # the first also where the project is not installed


@pytest.fixture
def server() -> Iterator[InMemoryStreamServer]:
    """Give a test server whose live reads are short."""
    config = ServerConfig(long_poll_timeout=0.5, sse_max_age=2.0, sse_heartbeat=0.1)
    with InMemoryStreamServer(config=config) as running:
        yield running
