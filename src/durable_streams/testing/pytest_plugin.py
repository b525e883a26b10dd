"""The pytest fixture ``durable_streams_server``: a fresh server for each test that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from durable_streams.testing.server import InMemoryStreamServer

__all__ = ["durable_streams_server"]


@pytest.fixture
def durable_streams_server() -> Iterator[InMemoryStreamServer]:
    """Give a running InMemoryStreamServer, stopped after the test."""
    # Imported here: every pytest run of every user loads this module.
    from durable_streams.testing.server import InMemoryStreamServer  # noqa: PLC0415

    with InMemoryStreamServer() as server:
        yield server
