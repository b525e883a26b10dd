"""The list of streams over HTTP: pages, refusals, and a store with many streams."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import base64
import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.protocol.commands import Create, ForkPoint, Rejection
from durable_streams.protocol.grants import Grant
from durable_streams.protocol.listing import Page
from durable_streams.protocol.offsets import format_offset
from durable_streams.server import listing as listing_module
from durable_streams.server.app import App
from durable_streams.server.listing import Listing
from durable_streams.server.places import is_place, path_of, place_of
from durable_streams.stores import sqlite
from durable_streams.stores.base import Listed
from durable_streams.stores.checksums import state_sum
from durable_streams.stores.memory import MemoryStore
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
    # What a page leaves out, since it is looked up for each stream.
    assert one.json == {**entry, "records_per_second": round(1 / 60, 3)}
    assert either_server.request("HEAD", f"{LIST}/{quote(path)}").status == 200
    for name in ("created", "last_append"):
        moment = entry.pop(name)
        assert moment.startswith("20")
        assert moment.endswith("Z")
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
        "records": 1,
        "retention_max_age": None,
        "retention_max_bytes": None,
        "records_per_second": None,
    }


def test_a_stream_with_the_longest_path_is_described_and_trimmed(either_server, stream: str) -> None:
    path = f"{stream}/".ljust(1024, "n")
    either_server.create(path, "text/plain")
    assert either_server.request("GET", f"{LIST}/{path}").json["path"] == path
    assert either_server.request("GET", f"__ds/producers/{path}").status == 200
    assert either_server.request("POST", f"{LIST}/{path}/trim", b'{"max_bytes":0}').status == 200
    assert either_server.request("GET", f"{LIST}/{path}n").status == 400
    assert either_server.request("GET", f"{LIST}/{path}{path}").status == 400


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

    def __init__(self, query: str = "", *rules: str) -> None:
        self.query = query
        self.grant = Grant.of(*(f"list:{rule}" for rule in rules)) if rules else None


class _Counting(MemoryStore):
    """Counts how many streams are asked for."""

    asked = 0

    async def list_streams(self, prefix: str, after: str, limit: int) -> Listed:
        self.asked += limit
        return await super().list_streams(prefix, after, limit)


async def _store_of(*paths: str) -> _Counting:
    store = _Counting()
    await store.open()
    for path in paths:
        await store.create(Create(path, "text/plain"))
    return store


async def _page(listing: Listing, query: str, *rules: str) -> tuple[list[str], str | None]:
    answer = await listing.read(_Asks(query, *rules), "")  # type: ignore[arg-type]
    assert isinstance(answer.body, bytes)
    page = msgspec.json.decode(answer.body, type=Page)
    return [one.path for one in page.streams], page.next


async def _pages(listing: Listing, limit: int, *rules: str, prefix: str = "") -> tuple[list[str], list[str]]:
    """Return the whole list, and the places between its pages."""
    found, following = await _page(listing, f"limit={limit}&prefix={prefix}", *rules)
    between = []
    while following is not None:
        between.append(following)
        query = urlencode({"limit": limit, "prefix": prefix, "after": following})
        more, following = await _page(listing, query, *rules)
        found += more
    return found, between


TREE = ["a", "a-b", "a-b/c", "a/1", "a/1/x", "a/2", "a/2/x", "b/1/x", "b/1/y", "b/2", "b/3/x", "secret", "z"]


@pytest.mark.parametrize(
    "rules",
    [
        ["**"],
        ["a"],
        ["a/**"],
        ["a/*"],
        ["*"],
        ["b/*/x"],
        ["**/x"],
        ["a", "z"],
        ["b/*/x", "a/*", "a"],
        ["a/**", "a/1", "z"],
        ["none/**"],
    ],
)
def test_pages_show_what_a_caller_may_see_and_nothing_else(rules: list[str]) -> None:
    """The end of a page, which names a stream, is one of those."""

    async def main() -> None:
        store = await _store_of(*TREE)
        listing = Listing(store)
        grant = Grant.of(*(f"list:{rule}" for rule in rules))
        for prefix in ("", "a", "a/", "b/1", "c"):
            visible = [path for path in TREE if grant.allows("list", path) and path.startswith(prefix)]
            for limit in range(1, len(TREE) + 1):
                found, between = await _pages(listing, limit, *rules, prefix=prefix)
                assert found == visible
                assert between == visible[limit - 1 : -1 : limit], "a path of the caller's, where more follow"
        await store.close()

    asyncio.run(main())


def test_what_is_not_to_be_seen_is_not_looked_at_either() -> None:
    async def main() -> None:
        store = await _store_of(*(f"hidden/{number}" for number in range(500)), "mine/1", "mine/2", "x")
        assert await _page(Listing(store), "limit=10", "mine/*", "x") == (["mine/1", "mine/2", "x"], None)
        assert store.asked <= 20
        await store.close()

    asyncio.run(main())


def test_a_page_that_looked_at_enough_ends_at_a_place_that_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing_module, "_MOST_LOOKS", 20)
    monkeypatch.setattr(listing_module, "_AT_ONCE", 10)

    async def main() -> None:
        hidden = [f"users/secret-{number:03}/private" for number in range(100)]
        store = await _store_of(*hidden, "users/secret-050/inbox", "users/x/inbox")
        listing = Listing(store)
        found, between = await _pages(listing, 5, "users/*/inbox")
        assert found == ["users/secret-050/inbox", "users/x/inbox"]
        assert store.asked < 200
        assert len(between) >= 3
        for place in between:
            assert is_place(place)
            raw = base64.urlsafe_b64decode(place[2:] + "==")
            assert b"secret" not in raw
        assert len(set(between)) == len(between)
        assert len(set(map(len, between))) == 1, "not even how long a path is"
        again = [(await _page(listing, "limit=5", "users/*/inbox"))[1] for _ in range(2)]
        assert again[0] != again[1]
        with pytest.raises(Rejection, match="of another server"):
            await _page(Listing(store), urlencode({"after": between[0]}), "users/*/inbox")
        await store.close()

    asyncio.run(main())


def test_servers_of_one_store_know_each_others_places() -> None:
    async def main() -> None:
        store = MemoryStore()
        first, second = (App(store).subscriptions for _ in range(2))
        assert first is not None
        assert second is not None
        await store.open()
        assert await first.token_key() == await second.token_key()
        await store.close()

    asyncio.run(main())


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=1024))
def test_a_place_keeps_its_path(path: str) -> None:
    assert path_of(place_of(path, b"k" * 32), b"k" * 32) == path


@given(st.integers(2, 1500), st.sampled_from(list("Aa0-_=.~é")))
def test_a_place_that_was_changed_is_none(at: int, other: str) -> None:
    made = place_of("secret", b"k" * 32)
    changed = made[:at] + other + made[at + 1 :]
    try:
        found = path_of(changed, b"k" * 32)
    except ValueError:
        return
    assert found == "secret", "base64 has several forms of one content"


@pytest.mark.parametrize("place", ["./", "./x", "./!", "./" + "A" * 2000, "./é"])
def test_no_place(place: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - one of several
        path_of(place, b"k" * 32)


def test_one_stream_that_is_hidden_is_like_one_that_is_not_there() -> None:
    async def main() -> None:
        store = await _store_of("secret")
        listing = Listing(store)
        refusals = []
        for path in ("secret", "absent"):
            with pytest.raises(Rejection) as refused:
                await listing.read(_Asks("", "mine/**"), path)  # type: ignore[arg-type]
            refusals.append((refused.value.status, str(refused.value)))
        assert refusals[0] == refusals[1]
        await store.close()

    asyncio.run(main())


def test_a_hidden_source_of_a_fork_is_not_named() -> None:
    async def main() -> None:
        store = await _store_of("secret", "open")
        for source in ("secret", "open"):
            state = await store.get(source)
            assert state is not None
            await store.create(Create(f"mine/{source}", "text/plain", fork=ForkPoint(source, state.id, 0)))
        listing = Listing(store)
        for grant, named in (
            (None, ["open", "secret"]),
            (Grant.of("list:mine/*"), [None, None]),
            (Grant.of("list:mine/*", "list:open"), ["open", None]),
            (Grant.of("list:mine/*", "read:secret"), [None, "secret"]),
        ):
            asked = _Asks("prefix=mine/")
            asked.grant = grant
            answer = await listing.read(asked, "")  # type: ignore[arg-type]
            one = await listing.read(asked, "mine/secret")  # type: ignore[arg-type]
            assert isinstance(answer.body, bytes)
            assert isinstance(one.body, bytes)
            streams = msgspec.json.decode(answer.body, type=Page).streams
            assert [stream.forked_from for stream in streams] == named
            assert msgspec.json.decode(one.body)["forked_from"] == named[1]
        await store.close()

    asyncio.run(main())


def test_a_page_searches_the_index_however_many_streams_there_are(tmp_path: Path) -> None:
    """The plan of SQLite is what bounds the time; that it is kept is measured with 30,000 rows."""

    async def main() -> None:
        store = SqliteStore(tmp_path)
        await store.open()
        await store.close()
        states = (
            (n, f"t/{n:06}", f'{{"id":{n},"path":"t/{n:06}","content_type":"a/b"}}') for n in range(1, 30_001)
        )
        rows = ((n, path, None, state, state_sum(n, path, state), 0) for n, path, state in states)
        with contextlib.closing(sqlite3.connect(tmp_path / "streams.db")) as file, file:
            file.executemany("INSERT INTO stream VALUES (?, ?, ?, ?, ?, ?)", rows)
            for sql in (sqlite._LIST, sqlite._LIST_AFTER):
                plan = str(file.execute(f"EXPLAIN QUERY PLAN {sql}", ("a", "b", 1)).fetchall())
                assert "SEARCH stream USING INDEX" in plan
                assert "TEMP B-TREE" not in plan
        store = SqliteStore(tmp_path)
        await store.open()
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
        await store.close()

    asyncio.run(main())
