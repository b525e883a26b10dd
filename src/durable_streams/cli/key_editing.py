"""Changes of the file of keys, for the command line: comments and order stay as they are.

Invariants: a change happens to the file as a whole, under a lock that other changes respect; the file is its owner's
only; what is written was read back first.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import tomlkit
from tomlkit.items import AoT

from durable_streams.file_lock import try_lock
from durable_streams.server.keys import KeyEntry, KeyFile, SigningEntry, parse_keys
from durable_streams.server.toml import read_text, toml_as

__all__ = ["add_key", "read_keys", "remove_keys"]

_HEAD = (
    "Keys of durable-streams. `durable-streams key create` adds one, `durable-streams key revoke` removes one; a",
    "server with --auth reads the file again when it changes.",
)
_TABLES = {"key": KeyEntry, "signing_key": SigningEntry}


def read_keys(path: Path) -> KeyFile:
    """Return what a file holds, nothing if there is none; raises ValueError with one sentence."""
    if not path.exists():
        return KeyFile()
    try:
        text = read_text(path)
        parse_keys(text)
        return toml_as(text, KeyFile)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def add_key(path: Path, entry: KeyEntry | SigningEntry) -> None:
    """Add a key to a file, which is made if it is missing; raises ValueError or OSError."""
    with _changed(path) as document:
        name = "key" if isinstance(entry, KeyEntry) else "signing_key"
        table = tomlkit.table()
        for field, value in msgspec.structs.asdict(entry).items():
            if value not in (None, ""):
                table.add(field, value)
        if name not in document:
            document.add(name, tomlkit.aot())
        tables = document[name]
        if not isinstance(tables, AoT):
            raise ValueError(f"{path}: write [[{name}]] for each key, not {name} = [...]")  # noqa: TRY004 - of the file
        tables.append(table)


def remove_keys(path: Path, given: str) -> list[KeyEntry | SigningEntry]:
    """Remove the keys of an id or a name; raises ValueError if there is none, or OSError.

    Returns:
        What was removed.
    """
    file = read_keys(path)
    entries: list[KeyEntry | SigningEntry] = [*file.key, *file.signing_key]
    found = [entry for entry in entries if given in (entry.id, entry.name)]
    if not found:
        raise ValueError(
            f"{path} has no key of the id or name {given!r}; `durable-streams key ls` lists them"
        )
    with _changed(path) as document:
        for name, kind in _TABLES.items():
            tables = document.get(name, [])
            for place in reversed(range(len(tables))):
                if msgspec.convert(tables[place].unwrap(), kind).id in {entry.id for entry in found}:
                    del tables[place]
            if name in document and not tables:
                document.remove(name)
    return found


@contextlib.contextmanager
def _changed(path: Path) -> Iterator[tomlkit.TOMLDocument]:
    """Give the document of a file to be changed, and replace the file by it."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        if not try_lock(folder):
            raise ValueError(f"another program changes files in {path.parent}; try again")
        read_keys(path)
        if path.exists():
            document = tomlkit.parse(read_text(path))
        else:
            document = tomlkit.document()
            for line in _HEAD:
                document.add(tomlkit.comment(line))
        yield document
        text = tomlkit.dumps(document)
        parse_keys(text)
        _replace(path, text)
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # its owner's only
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(made, path)  # noqa: PTH105 - both are names
    except BaseException:
        os.unlink(made)  # noqa: PTH108 - likewise
        raise
