"""Rows in a file: rows and offset belong together, whatever ends the process; what is not ours is left as it is."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from live_state import Side, User, schema
from servers import ServerProcess

from durable_streams import DurableStream, DurableStreamError, SyncIdempotentProducer
from durable_streams.state import Collection, StateSchema, StreamDB, control_message


def test_the_next_start_goes_on_where_the_last_one_ended(
    side: Side, handle: DurableStream, tmp_path: Path
) -> None:
    path = tmp_path / "state.db"
    handle.append(schema.users.insert(User("1", "Ada")))
    handle.append(control_message("snapshot-start"))
    handle.append(schema.users.insert(User("2", "Bob")))
    first = side.db(handle, schema, path=path)
    first.preload()
    offset = first.offset
    first.close()
    handle.append(control_message("snapshot-end"))
    second = side.db(handle, schema, path=path)
    assert second.offset == offset
    assert list(second.users) == ["1", "2"]
    changes = second.changes()
    second.preload()
    assert list(second.users) == ["2"]
    assert next(changes)[:4] == ("user", "1", "delete", User("1", "Ada"))


KILLS = 4
ROWS = 40
PROGRAM = """
import sys
from live_state import schema
from durable_streams.state import StreamDB

with StreamDB(sys.argv[1], schema, path=sys.argv[2]) as db:
    db.preload()
    print("up to date", flush=True)
    for change in db.changes(max_pending=1_000_000):
        pass
"""


def test_a_killed_process_leaves_the_rows_of_a_prefix(
    shared_memory_server: ServerProcess, stream: str, tmp_path: Path
) -> None:
    """Each message has its number, so that the rows say how many messages they were made of."""
    handle = DurableStream.create(f"{shared_memory_server.root}/{stream}", content_type="application/json")
    path = tmp_path / "state.db"
    support = os.pathsep.join(str(Path(__file__).parents[1] / name) for name in ("support",))
    environment = {**os.environ, "PYTHONPATH": support}
    written, offsets = 0, set()
    with SyncIdempotentProducer(handle.url, "writer", max_batch_bytes=20_000) as producer:
        for kill in range(KILLS):
            with subprocess.Popen(
                [sys.executable, "-c", PROGRAM, handle.url, str(path)],
                env=environment,
                stdout=subprocess.PIPE,
            ) as follower:
                assert follower.stdout is not None
                assert follower.stdout.readline() == b"up to date\n"
                end = time.monotonic() + 0.05 * kill
                while time.monotonic() < end or written % 5000 == 0:
                    for _ in range(100):
                        producer.put(schema.users.upsert(User(str(written % ROWS), str(written))))
                        written += 1
                follower.send_signal(signal.SIGKILL)
            offsets.add(check_prefix(handle, path, written, producer))
    assert len(offsets) > 1


def check_prefix(handle: DurableStream, path: Path, written: int, producer: SyncIdempotentProducer) -> str:
    producer.flush()
    with StreamDB(handle, schema, path=path) as db:
        offset = db.offset
        rows = {int(key): int(user.name) for key, user in db.users.items()}
    with handle.stream(offset=offset, live=False) as rest:
        count = written - len(rest.read_json())
    last = range(max(0, count - ROWS), count)
    assert rows == {number % ROWS: number for number in last}
    return offset


def test_one_process_at_a_time_follows_into_a_file(side: Side, handle: DurableStream, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    one = side.db(handle, schema, path=path)
    one.preload()
    other = side.db(handle, schema, path=path)
    other.preload()
    handle.append(schema.users.insert(User("1", "Ada")))
    errors = []
    for db in (one, other):
        try:
            db.wait_offset(handle.head().offset, timeout=30)
        except DurableStreamError as error:
            errors.append(error.message)
    assert len(errors) == 1
    assert "is written by another process" in errors[0]
    assert [len(db.users) for db in (one, other)] == [1, 1]


def refused(path: Path, stream: Any, of: StateSchema | None = schema) -> str:
    """Return why a file is refused; it stays as it is."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(DurableStreamError) as raised:
        StreamDB(stream, of, path=path)
    assert raised.value.code == "CHECKPOINT"
    assert "\n" not in raised.value.message
    assert before == (path.read_bytes() if path.is_file() else None)
    return raised.value.message


def test_a_file_that_is_not_its_own_is_refused(handle: DurableStream, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with StreamDB(handle, schema, path=path) as db:
        db.preload()
    assert f"holds the rows of {handle.url}, not of" in refused(path, handle.url + "-other")
    assert 'of the types ["message","user"], not null; remove it' in refused(path, handle, None)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE its (own)")
    connection.close()
    assert "a file of another program" in refused(other, handle)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    assert "has format 9, and this version reads 1" in refused(path, handle)
    (text := tmp_path / "text").write_text("not a database, and long enough to be seen as none" * 100)
    assert "cannot be used: file is not a database" in refused(text, handle)
    assert "cannot be used: unable to open database file" in refused(tmp_path / "no" / "state.db", handle)


def test_rows_that_the_model_of_today_refuses(handle: DurableStream, tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    handle.append(schema.users.insert(User("1", "Ada")))
    with StreamDB(handle, schema, path=path) as db:
        db.preload()

    class Newer(msgspec.Struct):
        id: str
        name: int

    newer = StateSchema(
        users=Collection(Newer, type="user"), messages=Collection(type="message", key="messageId")
    )
    with StreamDB(handle, newer, path=path) as db:
        with pytest.raises(
            DurableStreamError, match=r"holds a row .* that its model refuses: Expected `int`"
        ):
            db.users["1"]
        changes = db.changes()
        handle.append(newer.users.update(Newer("1", 7)))
        db.wait_offset(handle.head().offset, timeout=30)
        assert db.users["1"] == Newer("1", 7)
        assert next(changes).old == {"id": "1", "name": "Ada"}


def test_a_full_disk_ends_the_following_and_the_file_stays_whole(
    handle: DurableStream, tmp_path: Path
) -> None:
    path = tmp_path / "state.db"
    handle.append(schema.users.insert(User("1", "Ada")))
    with StreamDB(handle, schema, path=path) as db:
        db.preload()
        db._rows._writer.execute("PRAGMA max_page_count = 5")
        offset = db.offset
        handle.append(schema.users.insert(User("2", "x" * 100_000)))
        with pytest.raises(DurableStreamError, match="cannot be used: database or disk is full"):
            db.wait_offset(handle.head().offset, timeout=30)
        assert list(db.users) == ["1"]
        assert db.offset == offset
    with StreamDB(handle, schema, path=path) as db:
        db.preload()
        assert list(db.users) == ["1", "2"]


def test_more_rows_than_a_page_of_the_file(handle: DurableStream, tmp_path: Path) -> None:
    with SyncIdempotentProducer(handle.url, "writer") as producer:
        for number in range(1200):
            producer.append(schema.users.insert(User(f"{number:04}", "")))
    with StreamDB(handle, schema, path=tmp_path / "state.db") as db:
        db.preload()
        assert list(db.users) == [f"{number:04}" for number in range(1200)]
