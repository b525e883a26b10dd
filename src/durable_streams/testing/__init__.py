"""For tests: a real server in a thread, and the contract that every store must pass."""

from __future__ import annotations

from durable_streams.testing.server import InMemoryStreamServer

__all__ = ["InMemoryStreamServer"]
