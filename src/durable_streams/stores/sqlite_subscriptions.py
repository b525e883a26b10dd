"""Subscriptions in the file of the streams: tables of their own, made when the first subscription is.

Invariants: everything is written by the writer's thread, in transactions that are synced before they are reported;
what waits during a transaction is in the next one; the revisions in memory are those of the file, or of a transaction
under way, which is taken back if it fails.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from durable_streams.protocol.subscription import Link, Subscription
from durable_streams.stores.base import StoreDamagedError, StoreError, StoreUncertainError
from durable_streams.stores.commits import copied
from durable_streams.stores.subscriptions import Changed, Kept, RevisionError

__all__ = ["SqliteSubscriptions"]

T = TypeVar("T")
Statements = list[tuple[str, Any]]

_TABLES = (
    """
CREATE TABLE IF NOT EXISTS subscription (
    id TEXT PRIMARY KEY, revision INTEGER NOT NULL, state TEXT NOT NULL
) WITHOUT ROWID""",
    """
CREATE TABLE IF NOT EXISTS subscription_link (
    subscription TEXT NOT NULL, path TEXT NOT NULL, link TEXT NOT NULL, PRIMARY KEY (subscription, path)
) WITHOUT ROWID""",
    """
CREATE TABLE IF NOT EXISTS subscription_secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID""",
)
_EXISTS = "SELECT 1 FROM sqlite_master WHERE name = 'subscription'"
_SAVE = "INSERT OR REPLACE INTO subscription VALUES (?, ?, ?)"
_LINK = """
INSERT OR REPLACE INTO subscription_link
SELECT ?1, json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?2)"""
_UNLINK = """
DELETE FROM subscription_link WHERE subscription = ?1 AND path IN (SELECT value FROM json_each(?2))"""
_LOAD = "SELECT json_group_array(json_array(revision, json(state))) FROM subscription"
_LINKS = "SELECT json_group_array(json_array(subscription, path, json(link))) FROM subscription_link"
_PATHS = "SELECT path FROM stream WHERE path > ? ORDER BY path LIMIT ?"

_encode = msgspec.json.Encoder().encode
_decode_kept = msgspec.json.Decoder(list[tuple[int, Subscription]]).decode
_decode_links = msgspec.json.Decoder(list[tuple[str, str, Link]]).decode


class SqliteSubscriptions:
    """The SubscriptionStore of a data folder.

    Args:
        write: Runs statements as one transaction in the writer's thread, then calls back on the event loop.
        read: Runs a query on a connection that only reads.
        timeout: Seconds that a transaction may take.
    """

    shared = False

    def __init__(
        self,
        write: Callable[[Statements, Callable[[StoreError | None], None]], None],
        read: Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]],
        timeout: float,
    ) -> None:
        self._write = write
        self._read = read
        self._timeout = timeout
        self.begin()

    def begin(self) -> None:
        """Forget everything, for a folder that is opened again."""
        self._revisions: dict[str, int] = {}
        self._waiting: list[tuple[Statements, asyncio.Future[None]]] = []
        self._writing = False
        self._has_tables = False

    # -- reading

    async def load(self) -> list[Kept]:
        """Return all subscriptions."""
        found = await self._find("", ())
        self._revisions = {kept.subscription.id: kept.revision for kept in found}
        return found

    async def find(self, name: str) -> Kept | None:
        """Return the present subscription of an id."""
        found = await self._find(" WHERE {} = ?", (name,))
        if not found:
            self._revisions.pop(name, None)
            return None
        self._revisions[name] = found[0].revision
        return found[0]

    async def _find(self, where: str, values: tuple[str, ...]) -> list[Kept]:
        def query(connection: sqlite3.Connection) -> tuple[str, str]:
            if connection.execute(_EXISTS).fetchone() is None:
                return "[]", "[]"
            connection.execute("BEGIN")  # both queries see one state
            try:
                kept = connection.execute(_LOAD + where.format("id"), values).fetchone()[0]
                return kept, connection.execute(_LINKS + where.format("subscription"), values).fetchone()[0]
            finally:
                connection.rollback()

        rows, link_rows = await self._read(query)
        links: dict[str, dict[str, Link]] = {}
        try:
            for name, path, link in _decode_links(link_rows):
                links.setdefault(name, {})[path] = link
            kept = _decode_kept(rows)
        except msgspec.DecodeError as error:
            raise StoreDamagedError(
                f"the subscriptions are damaged: {error}; durable-streams verify shows what is whole"
            ) from error
        return [
            Kept(replace(subscription, links=links.get(subscription.id, {})), revision)
            for revision, subscription in kept
        ]

    async def paths(self, after: str, limit: int) -> Sequence[str]:
        """Return paths of streams, in order."""

        def query(connection: sqlite3.Connection) -> list[str]:
            return [row[0] for row in connection.execute(_PATHS, (after, limit))]

        found: list[str] = await self._read(query)
        return found

    # -- writing

    async def save(self, after: Subscription, before: Kept | None) -> int:
        """Store a subscription with its links; rows of links that did not change are not written."""
        old = {} if before is None else before.subscription.links
        revision = 1 if before is None else before.revision + 1
        state = _encode(replace(after, links={})).decode()
        statements: Statements = [(_SAVE, (after.id, revision, state))]
        if after.links is not old:
            changed = [
                (path, _encode(link).decode()) for path, link in after.links.items() if old.get(path) != link
            ]
            gone = [path for path in old if path not in after.links]
            if gone:
                statements.append((_UNLINK, (after.id, _encode(gone).decode())))
            if changed:
                statements.append((_LINK, (after.id, _encode(changed).decode())))
        await self._replace(after.id, before, revision, statements)
        return revision

    async def remove(self, before: Kept) -> None:
        """Remove a subscription with its links."""
        name = before.subscription.id
        statements: Statements = [
            ("DELETE FROM subscription WHERE id = ?", (name,)),
            ("DELETE FROM subscription_link WHERE subscription = ?", (name,)),
        ]
        await self._replace(name, before, None, statements)

    async def _replace(
        self, name: str, before: Kept | None, revision: int | None, statements: Statements
    ) -> None:
        present = self._revisions.get(name)
        if present != (None if before is None else before.revision):
            raise RevisionError
        self._set(name, revision)
        try:
            await self._transact(statements)
        except StoreUncertainError:
            raise
        except StoreError:
            self._set(name, present)
            raise

    def _set(self, name: str, revision: int | None) -> None:
        if revision is None:
            self._revisions.pop(name, None)
        else:
            self._revisions[name] = revision

    async def _transact(self, statements: Statements) -> None:
        if not self._has_tables:
            statements = [*((table, ()) for table in _TABLES), *statements]
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((statements, written))
        if not self._writing:
            self._writing = True
            # What is asked for in the same iteration of the event loop shares the transaction.
            asyncio.get_running_loop().call_soon(self._next)
        try:
            await asyncio.wait_for(asyncio.shield(written), self._timeout)
        except asyncio.TimeoutError:
            raise StoreUncertainError("the disk does not answer: the change may have been stored") from None
        self._has_tables = True

    def _next(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            self._writing = False
            return

        def written(error: StoreError | None) -> None:
            self._next()
            for _, future in waiting:
                if future.done():
                    continue
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(copied(error))
                    future.exception()  # retrieved, in case nothing waits any more

        try:
            self._write([one for statements, _ in waiting for one in statements], written)
        except StoreError as error:
            written(error)

    # -- secrets

    async def secret(self, name: str, made: bytes | None) -> bytes | None:
        """Return a secret of the server."""
        if made is not None:
            insert = "INSERT INTO subscription_secret VALUES (?, ?) ON CONFLICT DO NOTHING"
            await self._transact([(insert, (name, made))])

        def query(connection: sqlite3.Connection) -> bytes | None:
            if connection.execute(_EXISTS).fetchone() is None:
                return None
            sql = "SELECT value FROM subscription_secret WHERE name = ?"
            row = connection.execute(sql, (name,)).fetchone()
            return None if row is None else bytes(row[0])

        found: bytes | None = await self._read(query)
        return found

    async def replace_secret(self, name: str, before: bytes, after: bytes) -> bool:
        """Replace a secret."""
        update = "UPDATE subscription_secret SET value = ? WHERE name = ? AND value = ?"
        await self._transact([(update, (after, name, before))])
        return await self.secret(name, None) == after

    async def changed(self) -> list[Changed]:
        """Return nothing: no other server changes anything."""
        raise NotImplementedError

    async def leads(self) -> bool:
        """Return True: the folder belongs to this server alone."""
        return True
