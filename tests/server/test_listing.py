"""The list of streams over HTTP: pages, refusals, and a store with many streams."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from durable_streams.protocol.offsets import format_offset
from durable_streams.server.control import Control
from durable_streams.server.listing import Listing
from durable_streams.stores import sqlite
from durable_streams.stores.sqlite import SqliteStore

LIST = "__ds/streams"


def listed(server, **query: object) -> dict:
    answer = server.request("GET", f"{LIST}?{urlencode(query)}")
    assert answer.status == 200, answer
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == (
        "application/json",
        "no-store",
    )
    return answer.json


def test_pages_lead_through_all_streams_of_a_prefix(either_server, stream: str) -> None:
    paths = [f"{stream}/{number:02}" for number in range(7)]
    for path in paths:
        either_server.create(path, "text/plain")
    assert [one["path"] for one in listed(either_server, prefix=f"{stream}/")["streams"]] == paths
    found, after, pages = [], "", 0
    while after is not None:
        page = listed(either_server, prefix=f"{stream}/", after=after, limit=3)
        found += [one["path"] for one in page["streams"]]
        after, pages = page["next"], pages + 1
    assert (found, pages) == (paths, 3)


def test_a_stream_is_described(either_server, stream: str) -> None:
    path = f"{stream}/ü ?"
    either_server.create(quote(path), "text/plain", stream_ttl="500")
    either_server.append(quote(path), b"abc", "text/plain")
    [entry] = listed(either_server, prefix=stream)["streams"]
    one = either_server.request("GET", f"{LIST}/{quote(path)}")
    assert one.json == entry
    assert either_server.request("HEAD", f"{LIST}/{quote(path)}").status == 200
    created = entry.pop("created")
    assert created.startswith("20")
    assert created.endswith("Z")
    assert entry == {
        "path": path,
        "content_type": "text/plain",
        "tail": format_offset(3),
        "earliest": format_offset(0),
        "bytes": 3,
        "closed": False,
        "ttl_seconds": 500,
        "expires_at": None,
        "forked_from": None,
        "forks": 0,
    }


def test_a_stream_that_is_not_there_is_not_described(either_server, stream: str) -> None:
    answer = either_server.request("GET", f"{LIST}/{stream}")
    assert (answer.status, answer.json["error"]["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=-1",
        "limit=1001",
        "limit=x",
        "limit=",
        "limit=%C2%B2",
        "prefix=%00",
        "after=a%0Ab",
        "prefix=%FF",
    ],
)
def test_what_makes_no_sense_is_refused(either_server, query: str) -> None:
    answer = either_server.request("GET", f"{LIST}?{query}")
    assert answer.status == 400
    assert answer.json["error"]["code"] in {"INVALID_REQUEST", "BAD_REQUEST"}


def test_only_reads_are_possible(either_server) -> None:
    for method in ("PUT", "DELETE"):
        answer = either_server.request(method, LIST, b"{}" if method != "DELETE" else None)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST, HEAD, OPTIONS")
    assert either_server.request("POST", LIST, b"{}").status == 404


class _Asks:
    """A request for a page."""

    method = "GET"

    def __init__(self, query: str) -> None:
        self.query = query


def test_what_a_caller_may_not_see_is_left_out() -> None:
    from durable_streams.protocol.commands import Create, Rejection
    from durable_streams.stores.memory import MemoryStore

    async def main() -> None:
        store = MemoryStore()
        await store.open()
        for path in ("a", "secret", "z"):
            await store.create(Create(path, "text/plain"))
        control = Control()
        control.add("streams", {"GET": Listing(store, lambda _: lambda path: path != "secret").read})
        page = await control.answer(_Asks("limit=2"), "streams")
        assert isinstance(page.body, bytes)
        assert b'"a"' in page.body
        assert b'"next":"secret"' in page.body, "an empty or a short page still goes on"
        assert b'{"path"' not in page.body.partition(b'"path":"a"')[2]
        with pytest.raises(Rejection) as hidden:
            await control.answer(_Asks(""), "streams/secret")
        with pytest.raises(Rejection) as absent:
            await control.answer(_Asks(""), "streams/absent")
        assert str(hidden.value) == str(absent.value)
        await store.close()

    asyncio.run(main())


def test_a_page_searches_the_index_however_many_streams_there_are(tmp_path: Path) -> None:
    """The plan of SQLite is what bounds the time; that it is kept is measured with 30,000 rows."""

    async def main() -> None:
        store = SqliteStore(tmp_path)
        await store.open()
        writer: sqlite3.Connection = store._backend._connections[0]
        rows = (
            (n, f"t/{n:06}", None, f'{{"id":{n},"path":"t/{n:06}","content_type":"a/b"}}')
            for n in range(1, 30_001)
        )
        writer.execute("BEGIN")
        writer.executemany("INSERT INTO stream VALUES (?, ?, ?, ?)", rows)
        writer.execute("COMMIT")
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1

        for connection in store._backend._connections[1:]:
            connection.set_progress_handler(step, 100)
        for prefix, after in (("", ""), ("t/", "t/015000"), ("t/02", ""), ("t/029999", ""), ("x", "")):
            steps = 0
            await store.list_streams(prefix, after, 10)
            assert steps < 50, "about 5,000 instructions of SQLite"
        for sql in (sqlite._LIST, sqlite._LIST_AFTER):
            plan = str(writer.execute(f"EXPLAIN QUERY PLAN {sql}", ("a", "b", 1)).fetchall())
            assert "SEARCH stream USING INDEX" in plan
            assert "TEMP B-TREE" not in plan
        await store.close()

    asyncio.run(main())
