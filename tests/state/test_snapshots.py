"""Snapshots, compaction and trimmed streams: a reader ends with the same rows, whichever way it came."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from live_state import Side, User, schema

from durable_streams import AsyncDurableStream, DurableStream, DurableStreamError, RetentionGoneError
from durable_streams.embedded import DurableStreams
from durable_streams.state import AsyncStreamDB, StreamDB, acompact, base, control_message


def rows_of(stream: str | DurableStream, **options: Any) -> dict[str, Any]:
    """Return the rows of a reader that begins now."""
    with StreamDB(stream, schema, live=False, **options) as db:
        db.preload()
        return dict(db.users.items())


def write(handle: DurableStream, numbers: range) -> None:
    for number in numbers:
        user = User(str(number % 10), f"name {number}")
        handle.append(schema.users.delete(user.id) if number % 7 == 0 else schema.users.upsert(user))


def test_a_new_reader_needs_the_snapshot_only(side: Side, handle: DurableStream, path: Path | None) -> None:
    write(handle, range(50))
    handle.append({"type": "other", "key": "1", "value": {"more": 1e300}, "headers": {"operation": "insert"}})
    before = rows_of(handle)
    done = side.compact(handle.url, path=path)
    head = handle.head()
    assert done == (len(before) + 1, head.earliest_offset, True)
    assert rows_of(handle) == before
    with StreamDB(handle, live=False) as everything:
        everything.preload()
        assert everything.table("other")["1"] == {"more": 1e300}
    write(handle, range(50, 55))
    again = side.compact(handle.url, path=path, trim=False)
    assert not again.trimmed
    assert handle.head().earliest_offset == done.offset
    assert rows_of(handle) == rows_of(handle, path=path and path.with_name("other.db"))


def test_what_others_write_meanwhile_is_in_the_rows(
    side: Side, handle: DurableStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHUNK", 200)
    for number in range(40):
        handle.append(schema.users.insert(User(str(number), "first")))
    ended, written = threading.Event(), dict(rows_of(handle))

    def others() -> None:
        chance = random.Random(7)
        with DurableStream(handle.url, content_type="application/json") as own:
            while not ended.wait(chance.random() * 0.03):
                user = User(str(chance.randrange(60)), f"{chance.random()}")
                if chance.random() < 0.3:
                    own.append(schema.users.delete(user.id))
                    written.pop(user.id, None)
                else:
                    own.append(schema.users.upsert(user))
                    written[user.id] = user

    writer = threading.Thread(target=others)
    writer.start()
    try:
        side.compact(handle.url)
        side.compact(handle.url)
    finally:
        ended.set()
        writer.join()
    assert rows_of(handle) == written


def test_a_snapshot_gives_way_to_a_later_one(
    side: Side, handle: DurableStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(handle, range(20))
    before = rows_of(handle)
    piece = base.SnapshotPlan.piece

    def with_another(plan: Any) -> list[bytes]:
        records = piece(plan)
        if records and plan.rows == 0:
            handle.append(control_message("snapshot-start"))
        return records

    monkeypatch.setattr(base.SnapshotPlan, "piece", with_another)
    with pytest.raises(DurableStreamError, match="Another snapshot was begun") as raised:
        side.compact(handle.url)
    assert raised.value.code == "CONFLICT"
    assert rows_of(handle) == before
    monkeypatch.undo()
    side.compact(handle.url)
    assert rows_of(handle) == before


def test_a_reader_that_was_away_takes_the_snapshot(
    side: Side, handle: DurableStream, path: Path | None, tmp_path: Path
) -> None:
    write(handle, range(30))
    kept = tmp_path / "away.db"
    rows_of(handle, path=kept)
    write(handle, range(30, 60))
    handle.append(schema.users.delete("2"))
    handle.append(schema.users.delete("3"))
    side.compact(handle.url, path=path)
    db = side.db(handle, schema, path=kept)
    changes = db.changes()
    db.preload()
    assert dict(db.users.items()) == rows_of(handle)
    assert "2" not in db.users
    gone: set[str] = set()
    while not {"2", "3"} <= gone:
        change = next(changes)
        gone.update([change.key] if change.operation == "delete" else [])


def test_a_trimmed_stream_without_a_snapshot_is_an_error(
    side: Side, handle: DurableStream, tmp_path: Path
) -> None:
    write(handle, range(30))
    kept = tmp_path / "away.db"
    before = rows_of(handle, path=kept)
    write(handle, range(30, 40))
    handle.trim(before="now")
    for more in range(2):
        for on_trimmed in ("resync", "raise"):
            db = side.db(handle, schema, path=kept, on_trimmed=on_trimmed)
            with pytest.raises(RetentionGoneError):
                db.preload()
            assert dict(db.users.items()) == before
            db.close()
        write(handle, range(40 + more, 41 + more))
    handle.append(control_message("reset"))
    handle.trim(before=handle.append(control_message("reset")).next_offset)
    handle.append(control_message("reset"))
    handle.append(schema.users.insert(User("new", "")))
    assert rows_of(handle, path=kept) == {"new": User("new", "")}


def test_a_reset_that_names_a_later_offset_skips_to_it(side: Side, handle: DurableStream) -> None:
    """The reset is stored before its offset is known: what is written in its place has the same length."""
    handle.append(schema.users.insert(User("old", "")))
    copy = DurableStream.create(handle.url + "-copy", content_type="application/json")
    copy.append(schema.users.insert(User("old", "")))
    reset: dict[str, Any] = {"headers": {"control": "reset", "offset": copy.head().offset}}
    copy.append(reset)
    later = copy.append(schema.users.insert(User("skipped", ""))).next_offset

    handle.append({"headers": {"control": "reset", "offset": later}})
    assert handle.append(schema.users.insert(User("skipped", ""))).next_offset == later
    handle.append(schema.users.insert(User("new", ""), txid="t"))
    copy.append(schema.users.insert(User("new", ""), txid="t"))
    for stream, users in ((handle, ["new"]), (copy, ["new", "skipped"])):
        db = side.db(stream, schema)
        db.preload()
        db.wait_txid("t")
        assert sorted(db.users) == users


def test_others_that_write_all_the_time_end_a_compaction(
    side: Side, handle: DurableStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(handle, range(5))
    piece = base.SnapshotPlan.piece

    def after_another(plan: Any) -> list[bytes]:
        handle.append(schema.users.upsert(User("busy", "")))
        return piece(plan)

    monkeypatch.setattr(base.SnapshotPlan, "piece", after_another)
    monkeypatch.setattr("durable_streams.state.aio.ATTEMPTS", 3)
    monkeypatch.setattr("durable_streams.state.sync.ATTEMPTS", 3)
    with pytest.raises(DurableStreamError, match="stream ends at") as raised:
        side.compact(handle.url)
    assert raised.value.code == "CONFLICT_OFFSET"
    assert rows_of(handle)["busy"] == User("busy", "")


def test_streams_in_the_process_are_followed_and_compacted() -> None:
    async def work() -> None:
        streams = DurableStreams()
        async with streams.lifespan():
            users = await streams.create("users", content_type="application/json")
            async with AsyncStreamDB(users, schema) as db:
                await db.preload()
                done = await users.append(schema.users.insert(User("1", "Ada")))
                await db.wait_offset(done.next_offset)
                assert db.users["1"] == User("1", "Ada")
            assert (await acompact(users)).rows == 1

    asyncio.run(work())


def test_an_async_handle_can_be_compacted(side: Side, handle: DurableStream) -> None:
    write(handle, range(5))
    stream: Any = handle if side.is_sync else AsyncDurableStream(handle.url)
    assert side.compact(stream).trimmed
