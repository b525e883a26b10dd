"""The example of docs/write-a-store.md passes the contract of every store, and survives what its page says."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from journal_store import JournalStore

from durable_streams.protocol.commands import Append, Create
from durable_streams.server.app import App
from durable_streams.server.asgi import AsgiApp
from durable_streams.stores.base import StoreError
from durable_streams.testing.contract import StoreContract


class TestJournalStore(StoreContract):
    durable = True

    def make_store(self, folder: Path, clock: Callable[[], float]) -> JournalStore:
        return JournalStore(folder, clock=clock)

    @contextmanager
    def failing_commits(self, store: JournalStore) -> Iterator[None]:
        """Let the system refuse a longer file, in the middle of a frame."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (store._backend.path.stat().st_size + 4, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_frame_that_was_cut_off_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    async def test() -> None:
        store = JournalStore(tmp_path)
        await store.open()
        await store.create(Create("s", "text/plain"))
        await store.append("s", Append("text/plain", b"kept"))
        await store.append("s", Append("text/plain", b"cut off"))
        await store.close()
        journal = tmp_path / "journal"
        journal.write_bytes(journal.read_bytes()[:-1])
        again = JournalStore(tmp_path, clock=time.time)
        await again.open()
        state = await again.get("s")
        assert state is not None
        assert (await again.read(state, 0, 100)).payload == b"kept"
        assert (await again.append("s", Append("text/plain", b"!"))).state.tail == 5
        await again.close()

    asyncio.run(test())


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    async def test() -> None:
        first, second = JournalStore(tmp_path), JournalStore(tmp_path)
        await first.open()
        with pytest.raises(StoreError, match="another server has"):
            await second.open()
        await first.close()

    asyncio.run(test())


def test_the_server_takes_it(tmp_path: Path) -> None:
    async def test() -> None:
        app = AsgiApp(App(JournalStore(tmp_path)))
        await app.startup()
        await app.shutdown()
        assert (tmp_path / "journal").exists()

    asyncio.run(test())
