# ruff: noqa: T201 - it answers on standard output
"""What the tests of live state have our side do: `state_peer.py write|read|compact URL [TXID]`."""

from __future__ import annotations

import json
import sys

import msgspec

from durable_streams import DurableStream, SyncIdempotentProducer
from durable_streams.state import Collection, StateSchema, StreamDB, compact


class User(msgspec.Struct):
    id: str
    name: str


class Message(msgspec.Struct):
    id: str
    text: str


SCHEMA = StateSchema(users=Collection(User, type="user"), messages=Collection(Message, type="message"))


def write(url: str, txid: str) -> None:
    """Write every kind of message, by a handle and by a producer."""
    users, messages = SCHEMA.users, SCHEMA.messages
    DurableStream(url).append(messages.insert(Message("m", "first")))
    with SyncIdempotentProducer(url, "peer") as producer:
        producer.append(users.insert(User("1", "Ada"), timestamp="2026-01-31T12:00:00Z"))
        producer.append(users.insert(User("2", "Bob")))
        producer.append(users.update(User("1", "Ada L."), old=User("1", "Ada")))
        producer.append(messages.upsert(Message("m", "流\r\n")))
        producer.append(users.delete("2", old=User("2", "Bob")))
        producer.append(users.upsert({"id": "3", "name": "Cy"}, txid=txid))


def read(url: str, txid: str) -> None:
    """Print the rows once a transaction is there."""
    with StreamDB(url, SCHEMA) as db:
        db.preload()
        db.wait_txid(txid, timeout=30)
        rows = {
            name: [msgspec.to_builtins(row) for row in table.values()]
            for name, table in db.collections.items()
        }
        print(json.dumps({"rows": rows, "invalid": db.invalid}))


def main() -> None:
    """Do what the arguments say."""
    command, url, *rest = sys.argv[1:]
    if command == "compact":
        print(json.dumps(compact(url)._asdict()))
    else:
        {"write": write, "read": read}[command](url, *rest)


main()
