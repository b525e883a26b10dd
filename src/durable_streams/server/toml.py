"""Settings in TOML files: read as a type, and read again when they change.

Invariants: a file that cannot be used raises one sentence at the start; later it is logged, and what was read before
goes on to hold. Nothing runs in the background: a file is looked at by those who use it, every other second, and by
`look_at_all`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

if sys.version_info >= (3, 11):
    from tomllib import loads
else:
    from tomlkit.api import parse

    def loads(text: str) -> Any:
        """Return what a TOML text says."""
        return parse(text).unwrap()


__all__ = ["Watched", "look_at_all", "read_toml", "signature", "toml_as"]

T = TypeVar("T")

_MAX_FILE = 8 << 20  # bytes
_LOOK_EVERY = 2.0  # seconds
_log = logging.getLogger("durable_streams.server")


def toml_as(text: str, form: type[T]) -> T:
    """Return a TOML text as ``form``; raises ValueError with one sentence."""
    try:
        return msgspec.convert(loads(text), form)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:  # of either parser
        raise ValueError(f"it is not TOML: {error}") from None


def read_toml(path: Path, form: type[T]) -> T:
    """Return a TOML file as ``form``; raises ValueError with one sentence."""
    return toml_as(read_text(path), form)


def read_text(path: Path) -> str:
    """Return the text of a settings file; raises ValueError with one sentence."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
        if len(content) > _MAX_FILE:
            raise ValueError(f"it is larger than {_MAX_FILE} bytes")
        return content.decode()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None


class Watched(Generic[T]):
    """What was made of a file, made again when the file changes.

    Args:
        path: The file.
        load: Makes it of the file's text; raises ValueError with one sentence.

    Raises:
        ValueError: The file cannot be used; the message names it.
    """

    def __init__(self, path: Path, load: Callable[[str], T]) -> None:
        self._path = path
        self._load = load
        self._seen = signature(path)
        self._look_at = time.monotonic() + _LOOK_EVERY
        try:
            self._value = load(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        _all.add(self)

    def value(self) -> T:
        """Return what the file says, not older than two seconds."""
        if time.monotonic() >= self._look_at:
            self.look()
        return self._value

    def look(self) -> None:
        """Read the file again if it has changed."""
        self._look_at = time.monotonic() + _LOOK_EVERY
        seen = signature(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._value = self._load(read_text(self._path))
        except ValueError as error:
            _log.error("%s is not read again, what it said before still holds: %s", self._path, error)
        else:
            _log.info("%s is read again", self._path)


_all: weakref.WeakSet[Watched[Any]] = weakref.WeakSet()


def look_at_all() -> None:
    """Read every watched file of this process again that has changed: what SIGHUP asks for."""
    for watched in list(_all):
        watched.look()


def signature(path: Path) -> tuple[int, ...] | None:
    """Return what differs when a file has changed; None where there is none."""
    try:
        now = os.stat(path)  # noqa: PTH116 - the quickest look at a file
    except OSError:
        return None
    return (now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns, now.st_size)
