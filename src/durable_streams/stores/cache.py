"""Which streams' slots a store has in memory: bounded, loaded when asked for, never two of one path.

Invariants: a slot that anything refers to is the only slot of its path, so that eviction is always safe; all who wait
for a path share one load, and go on in the order in which they came; what is asked for meanwhile is loaded together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from durable_streams.stores.base import as_store_error
from durable_streams.stores.slots import Slot

__all__ = ["LoadingCache", "SlotCache"]

S = TypeVar("S", bound=Slot)

_LOAD_STREAMS = 256


class SlotCache(Generic[S]):
    """The slots of a store; at most about ``max_streams`` of those that nothing else refers to."""

    def __init__(self, max_streams: int) -> None:
        self._half = max(1, max_streams // 2)
        self.clear()

    def clear(self) -> None:
        """Forget everything; for a store that is opened again, maybe on another event loop."""
        # Two generations instead of a linked list: a hit costs one dictionary look-up.
        self.young: dict[str, S] = {}
        self._old: dict[str, S] = {}
        self._all: WeakValueDictionary[str, S] = WeakValueDictionary()

    def peek(self, path: str) -> S | None:
        """Return the slot of a path if it is in memory."""
        return self.young.get(path) or self._all.get(path)

    def find(self, path: str) -> S | None:
        """Return the slot of a path if it is in memory, and keep it there for longer."""
        slot = self.young.get(path)
        if slot is None:
            slot = self._all.get(path)
            if slot is not None:
                self._keep(slot)
        return slot

    def hold(self, slot: S) -> None:
        """Keep the slot of a path that has none."""
        self._all[slot.path] = slot
        self._keep(slot)

    def watched(self) -> list[S]:
        """Return the slots that somebody watches."""
        return [slot for slot in self._all.values() if slot.audience is not None]

    def _keep(self, slot: S) -> None:
        if len(self.young) >= self._half:
            self._old = self.young
            self.young = {}
        self.young[slot.path] = slot


class LoadingCache(SlotCache[S]):
    """A cache that loads what it does not have.

    ``load`` makes the slots of some paths, of each of them; what it raises goes to those who wait, as a StoreError.
    """

    def __init__(self, load: Callable[[list[str]], Awaitable[Mapping[str, S]]], max_streams: int) -> None:
        self._load_slots = load
        super().__init__(max_streams)

    def clear(self) -> None:
        """Forget everything; for a store that is opened again, maybe on another event loop."""
        super().clear()
        self._loading: dict[str, asyncio.Future[S]] = {}
        self._to_load: list[str] = []
        self._loader: asyncio.Task[None] | None = None

    async def get(self, path: str) -> S:
        """Return the slot of a path; hot callers look into ``young`` first, which saves the coroutine."""
        slot = self.find(path)
        if slot is not None:
            return slot
        loading = self._loading.get(path)
        if loading is None:
            loading = self._loading[path] = asyncio.get_running_loop().create_future()
            self._to_load.append(path)
            if self._loader is None:
                self._loader = asyncio.create_task(self._load())
        # Shielded: one reader that goes away must not fail the others who wait for the same stream.
        return await asyncio.shield(loading)

    async def _load(self) -> None:
        while self._to_load:
            paths, self._to_load = self._to_load[:_LOAD_STREAMS], self._to_load[_LOAD_STREAMS:]
            try:
                self._loaded(paths, await self._load_slots(paths))
            except Exception:  # noqa: BLE001 - one unreadable stream must not take its neighbours along
                await self._load_one_by_one(paths)
        self._loader = None

    async def _load_one_by_one(self, paths: list[str]) -> None:
        for path in paths:
            try:
                self._loaded([path], await self._load_slots([path]))
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                loading = self._loading.pop(path)
                loading.set_exception(as_store_error(error))
                loading.exception()  # heard, should nobody wait any more

    def _loaded(self, paths: list[str], slots: Mapping[str, S]) -> None:
        for path in paths:
            self.hold(slots[path])
            self._loading.pop(path).set_result(slots[path])
