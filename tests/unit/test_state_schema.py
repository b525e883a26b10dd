"""Collections make the messages of the State Protocol, and refuse what is none."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from durable_streams.protocol.changes import RowChange
from durable_streams.state import REGISTRY, Collection, RegisteredStream, StateSchema
from durable_streams.state.base import Inbox


class User(msgspec.Struct):
    id: int | str
    name: str = ""


users: Collection[User] = Collection(User, type="user")


def test_the_key_is_text() -> None:
    assert users.insert(User(7))["key"] == "7"
    assert users.insert(User(7), key="seven")["key"] == "seven"
    assert users.delete(old=User("1"))["key"] == "1"
    assert users.delete("1", old={"id": "1"}) == {
        "type": "user",
        "key": "1",
        "old_value": {"id": "1", "name": ""},
        "headers": {"operation": "delete"},
    }


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: users.insert({"id": ""}), "'id' is ''"),
        (lambda: Collection(type="t").insert({}), "'id' is None"),
        (lambda: Collection(type="t").insert({"id": True}), "'id' is True"),
        (lambda: Collection(list[int], type="t").insert([1]), "A row is a JSON object"),
        (lambda: Collection(list[int], type="t").delete(old=[1]), "'id' is None"),
        (lambda: users.insert({"name": "Ada"}), "not a valid User: Object missing required field `id`"),
        (lambda: users.insert(User(1, 2)), "not a valid User: Expected `str`, got `int`"),
        (lambda: users.update(User(1), old={"id": None}), "not a valid User"),
        (lambda: users.insert({"id": "x" * 200, "name": 1}), "xxx… is not a valid User"),
        (users.delete, "needs the key of the row"),
        (lambda: Collection(User, type=""), "needs the type"),
        (lambda: StateSchema(a=users, b=Collection(type="user")), "'a' and 'b' have the same type"),
        (lambda: StateSchema(close=users), "cannot be named 'close'"),
        (lambda: StateSchema(_a=users), "cannot be named '_a'"),
    ],
)
def test_what_is_no_row_or_no_schema_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("model", [int, lambda value: value])
def test_a_model_is_a_type_of_data(model: Any) -> None:
    with pytest.raises(TypeError, match="A collection holds a msgspec Struct"):
        Collection(model, type="t")


def test_a_schema_has_its_collections_as_attributes() -> None:
    schema = StateSchema(users=users)
    assert schema.users is schema.collections["users"] is users
    assert repr(users) == "Collection(User, type='user', key='id')"
    with pytest.raises(AttributeError, match="'others'"):
        _ = schema.others


def test_the_registry_is_written_as_the_test_interface_reads_it() -> None:
    row = RegisteredStream("chat/1", "application/json", 1_769_860_800_000)
    assert REGISTRY.streams.insert(row) == {
        "type": "stream",
        "key": "chat/1",
        "value": {"path": "chat/1", "contentType": "application/json", "createdAt": 1_769_860_800_000},
        "headers": {"operation": "insert"},
    }


def test_changes_are_counted_while_threads_put_and_take() -> None:
    inbox, change, taken = Inbox(1_000_000), RowChange("t", "k", "delete", 1, None, {}), 0

    def put() -> None:
        for _ in range(20_000):
            inbox.put([change])

    threads = [threading.Thread(target=put) for _ in range(2)]
    for thread in threads:
        thread.start()
    while taken < 40_000:
        taken += len(inbox.take()) if len(inbox) else 0
    for thread in threads:
        thread.join()
    assert (taken, len(inbox)) == (40_000, 0)


def test_a_batch_that_is_larger_than_the_limit_is_taken_where_nothing_waits() -> None:
    inbox = Inbox(2)
    change = RowChange("t", "k", "delete", 1, None, {})
    assert inbox.put([change] * 3)
    assert not inbox.put([change])
    assert len(inbox.take()) == 3
    assert len(inbox)
