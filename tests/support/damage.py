"""A folder with many streams, and seeded damages of it: bits, pages, truncations and rows."""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
from pathlib import Path

from durable_streams.protocol.commands import Append, Create, ForkPoint, Trim
from durable_streams.protocol.state import ProducerStamp, StreamState
from durable_streams.stores.sqlite import LARGE, SqliteStore

BYTES = "application/octet-stream"
PAGE = 4096
KINDS = ["bit", "bit", "bits", "page", "swapped pages", "truncation", "row", "value"]


async def fill(folder: Path, streams: int) -> dict[str, tuple[int, bytes]]:
    """Write streams of many shapes; return where each begins, and what a read of it gives."""
    chance = random.Random(streams)
    store = SqliteStore(folder)
    await store.open()
    expected: dict[str, tuple[int, bytes]] = {}

    async def fill_one(number: int) -> None:
        path = f"s/{number:03d}"
        content = b""
        await store.create(Create(path, BYTES))
        for seq in range(chance.choice([1, 2, 5, 12])):
            size = chance.choice([1, 20, 100, 700, 3000])
            if number % 60 == 7 and seq == 1:
                size = LARGE + 1000
            payload = chance.randbytes(size)
            stamp = ProducerStamp("p", 0, seq) if number % 3 == 0 else None
            await store.append(path, Append(BYTES, payload, producer=stamp))
            content += payload
        expected[path] = 0, content

    for begin in range(0, streams, 50):
        await asyncio.gather(*map(fill_one, range(begin, min(streams, begin + 50))))
    for number in range(0, streams, 25):
        path, trimmed = f"s/{number:03d}", f"s/{number + 1:03d}"
        state = await state_of(store, path)
        await store.create(Create(f"{path}/fork", BYTES, fork=ForkPoint(path, state.id, state.tail)))
        await store.append(f"{path}/fork", Append(BYTES, b"own"))
        expected[f"{path}/fork"] = 0, expected[path][1] + b"own"
        state = await state_of(store, trimmed)
        await store.retain(trimmed, Trim(state.id, state.tail))
        await store.append(trimmed, Append(BYTES, b"kept"))
        expected[trimmed] = state.tail, b"kept"
    await store.close()
    return expected


async def state_of(store: SqliteStore, path: str) -> StreamState:
    state = await store.get(path)
    assert state is not None
    return state


def damage(folder: Path, seed: int) -> str:
    """Damage the closed folder; return what was done."""
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    path = folder / "streams.db"
    content = bytearray(path.read_bytes())
    pages = len(content) // PAGE
    if kind in ("bit", "bits"):
        places = [chance.randrange(100, len(content)) for _ in range(1 if kind == "bit" else 40)]
        for place in places:
            content[place] ^= 1 << chance.randrange(8)
        done = f"bits of the bytes {places}"
    elif kind == "page":
        page = chance.randrange(1, pages)
        fill = chance.choice([bytes(PAGE), b"\xaa" * PAGE, chance.randbytes(PAGE)])
        torn = chance.choice([0, 512, 2048])
        content[page * PAGE + torn : (page + 1) * PAGE] = fill[torn:]
        done = f"page {page} from byte {torn}"
    elif kind == "swapped pages":
        one, two = chance.sample(range(1, pages), 2)
        first = content[one * PAGE : (one + 1) * PAGE]
        content[one * PAGE : (one + 1) * PAGE] = content[two * PAGE : (two + 1) * PAGE]
        if chance.random() < 0.5:
            content[two * PAGE : (two + 1) * PAGE] = first
        done = f"pages {one} and {two}"
    elif kind == "truncation":
        size = chance.randrange(PAGE, len(content))
        del content[size:]
        done = f"cut at {size}"
    else:
        return damage_row(path, chance, kind)
    path.write_bytes(content)
    return done


def damage_row(path: Path, chance: random.Random, kind: str) -> str:
    with sqlite3.connect(path) as connection:
        table = chance.choice(["stream", "record", "record", "large", "name", "producer"])
        if table == "producer" and kind == "row":
            table = "record"  # that a producer is missing shows only by its next number
        key = "stream, start" if table == "record" else "rowid"
        if table in ("name", "producer"):
            key = "stream, hash" if table == "name" else "stream, id"
        row = chance.choice(connection.execute(f"SELECT {key} FROM {table}").fetchall())
        where = f"({key}) = ({', '.join('?' * len(row))})"
        if kind == "row":
            connection.execute(f"DELETE FROM {table} WHERE {where}", row)
            done = f"row {row} of {table}"
        else:
            columns = {
                "stream": ["state", "sum", "path"],
                "record": ["data", "sum", "start"],
                "large": ["data", "sum"],
                "name": ["hash"],
                "producer": ["seq", "epoch"],
            }[table]
            column = chance.choice(columns)
            values = {
                "data": "zeroblob(length(data))",
                "path": "path || 'x'",
                "state": "replace(state, '\"tail\":', '\"tale\":')",
            }
            value = values.get(column, f"{column} + 1")
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = {value} WHERE {where}", row)
            done = f"{column} of {row} of {table}"
    connection.close()
    return done


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    shutil.copyfile(folder / "streams.db", target / "streams.db")
    return target
