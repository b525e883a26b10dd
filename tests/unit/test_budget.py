"""The budget of what is held for clients: bounded, in order, and never stuck."""

from __future__ import annotations

import asyncio

import pytest

from durable_streams.server.budget import MemoryBudget


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_g1_room_is_given_in_order() -> None:
    async def main() -> None:
        budget = MemoryBudget(100)
        await budget.room(80)
        order: list[str] = []

        async def want(name: str, size: int) -> None:
            await budget.room(size)
            order.append(name)

        waiting = [asyncio.ensure_future(want(name, size)) for name, size in [("large", 60), ("small", 5)]]
        await settled()
        assert order == []
        assert budget.is_short
        assert budget.free == 0
        assert not budget.try_charge(1)
        budget.release(80)
        await asyncio.gather(*waiting)
        assert order == ["large", "small"]
        assert budget.used == 65
        assert not budget.is_short

    asyncio.run(main())


def test_g1_what_is_larger_than_the_budget_goes_alone() -> None:
    async def main() -> None:
        budget = MemoryBudget(100)
        await budget.room(1)
        waiting = asyncio.ensure_future(budget.room(1000))
        await settled()
        assert not waiting.done()
        budget.release(1)
        await waiting
        assert budget.used == 1000
        assert not budget.try_charge(1)
        budget.release(1000)
        assert budget.try_charge(100)

    asyncio.run(main())


@pytest.mark.parametrize("granted", [False, True])
def test_g1_who_gives_up_leaves_nothing_counted(granted: bool) -> None:
    async def main() -> None:
        budget = MemoryBudget(100)
        await budget.room(100)
        first = asyncio.ensure_future(budget.room(90))
        second = asyncio.ensure_future(budget.room(50))
        await settled()
        if granted:
            budget.release(100)  # the first has its room, and is cancelled before it knows
        first.cancel()
        await settled()
        if not granted:
            budget.release(100)
        await second
        assert first.cancelled()
        assert budget.used == 50

    asyncio.run(main())


def test_g1_what_may_be_used_again_is_given_up_first() -> None:
    async def main() -> None:
        budget = MemoryBudget(100)
        budget.charge(90)
        budget.reclaim = lambda: budget.release(90)
        await budget.room(50)
        assert budget.used == 50

    asyncio.run(main())
