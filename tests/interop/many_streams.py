"""Fill a data folder with streams, through the store itself: many_streams.py FOLDER COUNT."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from durable_streams.protocol.commands import Create
from durable_streams.stores.sqlite import SqliteStore

AT_ONCE = 2000


async def main(folder: Path, count: int) -> None:
    """Create streams ``many/0000000``, ``many/0000001``, …, each with data of another size."""
    store = SqliteStore(folder)
    await store.open()
    for begin in range(0, count, AT_ONCE):
        numbers = range(begin, min(count, begin + AT_ONCE))
        await asyncio.gather(
            *(
                store.create(Create(f"many/{number:07}", "text/plain", b"x" * (number % 97)))
                for number in numbers
            )
        )
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
