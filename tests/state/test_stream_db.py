"""Rows that follow a stream: what a program sees, and what it is notified of."""

from __future__ import annotations

import dataclasses
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from live_state import Message, Side, User, schema
from scripted import ScriptedServer
from typing_extensions import TypedDict

from durable_streams import (
    DurableStream,
    DurableStreamError,
    StreamNotFoundError,
    StreamParseError,
    SyncIdempotentProducer,
)
from durable_streams.protocol.changes import StateMessage
from durable_streams.protocol.materialized import Materializer, MemoryRows
from durable_streams.state import (
    ChangesLostError,
    Collection,
    StateSchema,
    StateTimeoutError,
    StreamDB,
    control_message,
)


def caught_up(db: Any, handle: DurableStream) -> Any:
    """Return the StreamDB once it has all of the stream."""
    db.wait_offset(handle.head().offset, timeout=30)
    return db


def test_rows_that_are_there_and_rows_that_come_go_and_change(
    side: Side, handle: DurableStream, path: Path | None
) -> None:
    handle.append(schema.users.insert(User("1", "Ada")))
    handle.append(schema.messages.insert({"messageId": 7, "text": "流\r\n"}))
    db = side.db(handle.url, schema, path=path)
    db.preload()
    assert db.users["1"] == User("1", "Ada")
    assert dict(db.messages.items()) == {"7": Message(7, "流\r\n")}
    txid = uuid.uuid4().hex
    handle.append(schema.users.upsert(User("2", "Bob")))
    handle.append(schema.users.update(User("1", "Ada L."), old=User("1", "Ada")))
    handle.append(schema.messages.delete("7"))
    handle.append(schema.users.insert(User("3", "Cy"), txid=txid))
    db.wait_txid(txid, timeout=30)
    users = db.table(schema.users)
    assert list(users.values()) == [User("1", "Ada L."), User("2", "Bob"), User("3", "Cy")]
    assert (len(users), list(users), "2" in users, "9" in users) == (3, ["1", "2", "3"], True, False)
    assert (users.get("9"), db.types, len(db.collections["messages"])) == (None, ["user"], 0)
    with pytest.raises(KeyError):
        users["9"]
    with pytest.raises(ValueError, match="no collection of the type 'other'"):
        db.table("other")
    with pytest.raises(AttributeError, match="nothing"):
        _ = db.nothing
    assert db.invalid == 0
    assert db.error is None


def test_a_producer_writes_what_a_handle_does(side: Side, handle: DurableStream) -> None:
    with SyncIdempotentProducer(handle.url, "writer") as producer:
        for number in range(1000):
            producer.append(schema.users.upsert(User(str(number % 100), f"name {number}")))
    db = side.db(handle, schema)
    db.preload()
    assert len(db.users) == 100
    assert db.users["99"] == User("99", "name 999")


class Named(TypedDict):
    id: str


@dataclasses.dataclass
class Counted:
    id: str
    count: int = 0


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, populate_by_name=True)
    id: str
    since: pydantic.AwareDatetime = pydantic.Field(alias="memberSince")


MEMBER = {"id": "1", "memberSince": "2026-01-31T12:00:00Z"}


@pytest.mark.parametrize(
    ("model", "row", "value"),
    [
        (Named, {"id": "1"}, {"id": "1"}),
        (Counted, Counted("1", 2), {"id": "1", "count": 2}),
        (Strict, Strict.model_validate_json(msgspec.json.encode(MEMBER)), MEMBER),
        (None, {"id": "1", "any": [1, None]}, {"id": "1", "any": [1, None]}),
    ],
)
def test_a_row_is_a_value_of_its_model(
    handle: DurableStream, path: Path | None, model: Any, row: Any, value: dict[str, Any]
) -> None:
    own = StateSchema(rows=Collection(model, type="row"))
    assert own.rows.insert(row)["value"] == value
    assert own.rows.insert(value) == own.rows.insert(row)
    handle.append(own.rows.insert(row))
    with StreamDB(handle, own, path=path) as db:
        db.preload()
        assert db.rows["1"] == row
        assert type(db.rows["1"]) is type(row)


def test_without_a_schema_everything_is_kept_as_it_is(
    side: Side, handle: DurableStream, path: Path | None
) -> None:
    strange = {"id": "1", "half": "\ud800", "long": 10**100, "beyond": float("inf"), "deep": [[[]]] * 2}
    handle.append(b'{"type":"t","key":"k","headers":{"operation":"insert"},"value":{"id":"1","half":"\\ud800",'
                  b'"long":1%b,"beyond":1e400,"deep":[[[]],[[]]]}}' % (b"0" * 100))  # fmt: skip
    handle.append({"type": "t", "key": "日本", "value": None, "headers": {"operation": "upsert"}})
    db = side.db(handle, path=path)
    db.preload()
    assert db.table("t")["k"] == strange
    assert "日本" in db.table("t")
    assert db.table("t")["日本"] is None


@pytest.mark.parametrize("live", [True, "sse", "long-poll", False])
def test_every_way_to_follow(side: Side, handle: DurableStream, live: Any) -> None:
    handle.append(schema.users.insert(User("1", "Ada")))
    db = side.db(handle.url, schema, live=live)
    db.preload()
    assert len(db.users) == 1
    if live is not False:
        handle.append(schema.users.insert(User("2", "Bob"), txid="t"))
        db.wait_txid("t", timeout=30)
        assert len(db.users) == 2


def test_how_a_read_is_cut_does_not_matter(small_server: Any, stream: str) -> None:
    handle = DurableStream.create(f"{small_server.root}/{stream}", content_type="application/json")
    with SyncIdempotentProducer(handle.url, "writer", max_batch_bytes=1024) as producer:
        for number in range(500):
            if number % 97 == 50:
                producer.append(control_message("snapshot-start"))
            if number % 97 == 60:
                producer.append(control_message("snapshot-end"))
            user = User(str(number * 7 % 30), f"name {number}")
            producer.append(schema.users.delete(user.id) if number % 5 == 0 else schema.users.upsert(user))
    rows = MemoryRows()
    with handle.stream(live=False) as response:
        messages = response.read_json(StateMessage)
    Materializer(rows, {"user": schema.users.model.load}, lambda *_: None).apply(messages, "-1")
    seen: list[int] = []
    with StreamDB(handle, schema, live=False, on_change=lambda changes: seen.append(len(changes))) as db:
        db.preload()
        assert dict(db.users.items()) == rows.tables["user"]
    assert len(seen) > 10


# -- changes


def test_changes_come_after_their_batch(side: Side, handle: DurableStream, path: Path | None) -> None:
    db = side.db(handle, schema, path=path)
    db.preload()
    changes = db.changes()
    handle.append(schema.users.insert(User("1", "Ada")))
    handle.append(schema.users.update(User("1", "Ada L."), txid="t"))
    handle.append(schema.users.delete("1"))
    handle.append(control_message("reset"))
    found = [next(changes) for _ in range(4)]
    assert [(change.operation, change.key, change.old, change.new) for change in found] == [
        ("insert", "1", None, User("1", "Ada")),
        ("update", "1", User("1", "Ada"), User("1", "Ada L.")),
        ("delete", "1", User("1", "Ada L."), None),
        ("reset", "", None, None),
    ]
    assert [change.txid for change in found[:3]] == [None, "t", None]
    handle.close_stream()
    assert list(changes) == []
    with pytest.raises(DurableStreamError, match="cannot come any more") as raised:
        db.wait_txid("u")
    assert raised.value.code == "CLOSED"


def test_a_consumer_that_does_not_keep_up_loses_changes_and_nobody_else_does(
    side: Side, handle: DurableStream
) -> None:
    db = side.db(handle, schema)
    db.preload()
    slow, other = db.changes(max_pending=2), db.changes()
    for number in range(4):
        caught_up(db, handle)
        handle.append(schema.users.insert(User(str(number), "")))
    caught_up(db, handle)
    assert [next(slow).key, next(slow).key] == ["0", "1"]
    with pytest.raises(ChangesLostError, match="More than 2 changes"):
        next(slow)
    assert [next(other).key for _ in range(4)] == ["0", "1", "2", "3"]
    with pytest.raises(ValueError, match="max_pending"):
        db.changes(max_pending=0)


def test_a_callback_sees_each_batch_and_its_error_ends_the_following(
    side: Side, handle: DurableStream, path: Path | None
) -> None:
    handle.append(schema.users.insert(User("1", "Ada")))
    seen: list[str] = []

    def note(changes: list[Any]) -> None:
        seen.extend(change.key for change in changes)
        if "2" in seen:
            raise RuntimeError("no more")

    db = side.db(handle, schema, path=path, on_change=note)
    db.preload()
    handle.append(schema.users.insert(User("2", "Bob"), txid="t"))
    with pytest.raises(RuntimeError, match="no more"):
        list(db.changes())
    assert seen == ["1", "2"]
    assert isinstance(db.error, RuntimeError)
    assert len(db.users) == 2


def test_a_callback_may_close(side: Side, handle: DurableStream, path: Path | None) -> None:
    seen: list[int] = []

    def note(changes: list[Any]) -> Any:
        seen.append(len(changes))
        return held[0]() if side.is_sync else held[1]()

    db = side.db(handle, schema, path=path, on_change=note)
    held = [db.close, getattr(getattr(db, "_inner", None), "aclose", None)]
    db.preload()
    handle.append(schema.users.insert(User("1", "Ada"), txid="t"))
    assert [change.key for change in db.changes()] in (["1"], [])
    handle.append(schema.users.insert(User("2", "Bob")))
    with pytest.raises(DurableStreamError, match="cannot come any more"):
        db.wait_txid("u", timeout=30)
    assert seen == [1]


# -- waiting


def test_the_last_transactions_are_known(side: Side, handle: DurableStream) -> None:
    for txid in ("a", "b", "a", "c"):
        handle.append(schema.users.upsert(User("1", txid), txid=txid))
    db = side.db(handle, schema, max_txids=2)
    db.preload()
    db.wait_txid("a")
    db.wait_txid("c")
    with pytest.raises(StateTimeoutError, match="'b' did not arrive within"):
        db.wait_txid("b", timeout=0.05)
    with pytest.raises(TimeoutError):
        db.wait_offset("9", timeout=0.05)


def test_what_cannot_be_followed(side: Side, handle: DurableStream, shared_memory_server: Any) -> None:
    with pytest.raises(StreamNotFoundError):
        side.db(handle.url + "-missing", schema).preload()
    text = DurableStream.create(handle.url + "-text", content_type="text/plain", body="text")
    with pytest.raises(DurableStreamError, match="rows are in streams of JSON") as raised:
        side.db(text.url, schema).preload()
    assert raised.value.code == "BAD_CONTENT_TYPE"
    for options in ({"on_invalid": "ignore"}, {"on_trimmed": "ignore"}, {"max_txids": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            side.db(handle.url, schema, **options)


def test_a_server_that_does_not_answer_keeps_nobody_from_closing(
    side: Side, scripted: ScriptedServer, tmp_path: Path
) -> None:
    scripted.replies = [scripted.stall()]
    db = side.db(f"{scripted.root}/rows", schema, path=tmp_path / "state.db")
    with pytest.raises(StateTimeoutError, match="The tail did not arrive"):
        db.preload(timeout=0.2)
    db.close()
    with pytest.raises(DurableStreamError, match="cannot come any more"):
        db.wait_txid("t", timeout=30)


# -- messages that are left out


def in_order(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def test_invalid_messages_are_left_out_and_counted(
    side: Side, handle: DurableStream, path: Path | None
) -> None:
    taken: list[tuple[bytes, str]] = []
    bad: list[Any] = [
        17,
        {"no": "headers"},
        {"headers": {}},
        {"type": "user", "key": "1", "value": {"id": 1}, "headers": {"operation": "insert"}},
        {"type": "user", "key": 1, "value": {"id": "1", "name": ""}, "headers": {"operation": "insert"}},
    ]
    handle.append(schema.users.insert(User("0", "Ada")))
    for message in bad:
        handle.append(message)
    handle.append(schema.users.insert(User("2", "Bob")))
    handle.append({"type": "other", "key": "1", "value": 1, "headers": {"operation": "insert"}})
    db = side.db(handle, schema, path=path, on_invalid=lambda raw, error: taken.append((raw, error.message)))
    db.preload()
    assert list(db.users) == ["0", "2"]
    assert db.invalid == 5
    assert {in_order(msgspec.json.decode(raw)) for raw, _ in taken} == set(map(in_order, bad))
    assert any("is not a valid user: Expected `str`, got `int`" in message for _, message in taken)


def test_an_invalid_message_ends_the_following_where_that_is_asked_for(
    side: Side, handle: DurableStream, path: Path | None
) -> None:
    handle.append(schema.users.insert(User("1", "Ada")))
    handle.append({"type": "user", "key": "", "value": 1, "headers": {"operation": "insert"}})
    db = side.db(handle, schema, path=path, on_invalid="raise")
    with pytest.raises(StreamParseError, match="its key is missing or empty"):
        db.preload()


@pytest.fixture
def scripted() -> Any:
    server = ScriptedServer()
    yield server
    server.stop()
