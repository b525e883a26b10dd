"""The stores of this project pass the contract."""
# ruff: noqa: ARG002 - a store in memory has no use for a folder

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from durable_streams.stores.base import StoreFullError
from durable_streams.stores.commit_log import LogLimits
from durable_streams.stores.memory import MemoryStore
from durable_streams.stores.sqlite import SqliteStore
from durable_streams.testing.contract import StoreContract


class TestMemory(StoreContract):
    def make_store(self, folder: Path, clock: Callable[[], float]) -> MemoryStore:
        return MemoryStore(clock=clock)

    @contextmanager
    def failing_commits(self, store: MemoryStore) -> Iterator[None]:
        with _refusing(store):
            yield


class TestSqlite(StoreContract):
    durable = True

    def make_store(self, folder: Path, clock: Callable[[], float]) -> SqliteStore:
        return SqliteStore(folder, clock=clock)

    @contextmanager
    def failing_commits(self, store: SqliteStore) -> Iterator[None]:
        """Let SQLite itself run out of pages, in the middle of a transaction."""
        writer = store._backend._connections[0]
        pages = writer.execute("PRAGMA page_count").fetchone()[0]
        writer.execute(f"PRAGMA max_page_count = {pages}")
        try:
            yield
        finally:
            writer.execute("PRAGMA max_page_count = 1000000000")


class TestSqliteThatForgetsEverything(TestSqlite):
    """Hardly any stream stays in memory, so that everything is loaded again and again."""

    def make_store(self, folder: Path, clock: Callable[[], float]) -> SqliteStore:
        return SqliteStore(folder, max_streams=2, clock=clock)


class TestSqliteWithAllInTheLog(TestSqlite):
    """What is in the log and not sorted is no different from what is."""

    def make_store(self, folder: Path, clock: Callable[[], float]) -> SqliteStore:
        return SqliteStore(folder, max_streams=2, clock=clock, log=LogLimits(streams=0, quiet=1e9))


class TestMemoryThatForgetsEverything(TestMemory):
    def make_store(self, folder: Path, clock: Callable[[], float]) -> MemoryStore:
        return MemoryStore(max_streams=2, clock=clock)


class TestSqliteWhoseCommitsAreRefused(TestSqlite):
    """Failures before the first statement instead of in the middle."""

    @contextmanager
    def failing_commits(self, store: SqliteStore) -> Iterator[None]:
        with _refusing(store):
            yield


@contextmanager
def _refusing(store: MemoryStore | SqliteStore) -> Iterator[None]:
    def commit(batch: object, committed: Callable[[StoreFullError], None]) -> None:
        asyncio.get_running_loop().call_soon(committed, StoreFullError("no room"))

    backend = store._backend
    backend.commit = commit
    kept = backend.subscriptions
    write = getattr(kept, "_write", None)
    kept._write = commit
    try:
        yield
    finally:
        del backend.commit
        kept._write = write
