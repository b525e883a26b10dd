"""Fixtures for live state: both sides of its API, a stream, and a place for rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from facade import Loop
from live_state import Side
from servers import ServerProcess

from durable_streams import DurableStream


@pytest.fixture(params=["sync", "async"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    """Give one side of the API after the other."""
    loop = Loop() if request.param == "async" else None
    side = Side(loop)
    yield side
    side.close()
    if loop is not None:
        loop.stop()
        assert loop.complaints == []


@pytest.fixture
def handle(shared_memory_server: ServerProcess, stream: str) -> DurableStream:
    """Give a new stream of JSON."""
    return DurableStream.create(f"{shared_memory_server.root}/{stream}", content_type="application/json")


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Give where rows are kept: memory, and a file."""
    return None if request.param == "memory" else tmp_path / "state.db"
