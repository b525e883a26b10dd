"""Work on a data folder that is killed: trims and deletions with their purges, an upgrade, and a backup.

Says on standard output what is about to be done, and what is done: a line of JSON each.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import msgspec

from durable_streams.protocol.commands import Append, Create, Trim
from durable_streams.protocol.state import StreamState
from durable_streams.stores.backup import back_up
from durable_streams.stores.sqlite import SqliteStore

BYTES = "application/octet-stream"
APPENDS, SIZE = 12, 60_000
LARGE = 400_000
FOREVER = 3600.0  # seconds; the process is killed before


def say(**line: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def payload(path: str, number: int) -> bytes:
    """Return the bytes of an append: every third is large."""
    return f"{path}/{number}:".encode().ljust(LARGE if number % 3 == 1 else SIZE, b".")


async def work(folder: Path, first: int) -> None:
    store = SqliteStore(folder)
    await store.open()
    number = first
    while True:
        path = f"s/{number}"
        say(begins="create", path=path)
        state = await create(store, path)
        say(done="create", path=path)
        middle = (await store.read(state, 0, 1)).end
        say(begins="trim", path=path, earliest=middle)
        await store.retain(path, Trim(state.id, middle))
        say(done="trim", path=path)
        if number % 3:
            say(begins="delete", path=path)
            await store.delete(path)
            say(done="delete", path=path)
        number += 1


async def create(store: SqliteStore, path: str) -> StreamState:
    await store.create(Create(path, BYTES))
    for number in range(APPENDS):
        state = (await store.append(path, Append(BYTES, payload(path, number)))).state
    return state


async def start(folder: Path) -> None:
    say(begins="open")
    store = SqliteStore(folder)
    await store.open()
    say(done="open")
    await asyncio.sleep(FOREVER)


def copy(source: Path, target: Path) -> None:
    say(begins="backup")
    back_up(source, target, lambda *_: None)
    say(done="backup")
    time.sleep(FOREVER)


if __name__ == "__main__":
    kind, folder, *rest = sys.argv[1:]
    if kind == "work":
        asyncio.run(work(Path(folder), int(rest[0])))
    elif kind == "start":
        asyncio.run(start(Path(folder)))
    else:
        copy(Path(folder), Path(rest[0]))
