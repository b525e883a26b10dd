"""How many processes the ASGI server runs the application in.

ASGI does not say, and streams that live in one process cannot be served from several.

Invariants: what a server says of itself is believed (Uvicorn, Gunicorn, Hypercorn, Granian); where none does, the first
process that answers at an address has it for itself, and the others find that out with their first request.
"""

from __future__ import annotations

import os
import socket
import sys
from types import FrameType
from typing import Any

from durable_streams.stores.base import Store, StoreError
from durable_streams.stores.memory import MemoryStore
from durable_streams.stores.sqlite import SqliteStore

__all__ = ["OneProcess", "claim", "worker_count"]

_CLAIM = "\0durable-streams/{}"  # in Linux' namespace of names that are no files


_ADVICE = (
    "run one worker; or let one process serve them (durable-streams serve) and the workers be its clients; or keep the "
    "streams on NATS, where any number of servers share them"
)


class OneProcess:
    """Sees to it that streams which live in one process are served by one."""

    def __init__(self, store: Store) -> None:
        self._home = "streams in memory live in one process" if isinstance(store, MemoryStore) else None
        self._claims = self._home is not None  # a folder has a lock
        if isinstance(store, SqliteStore):
            self._home = "a data folder belongs to one process"

    def check_workers(self) -> None:
        """Raise StoreError where the ASGI server says that it runs several processes."""
        if self._home is not None and worker_count() > 1:
            raise StoreError(f"{self._home}, and this server runs several workers: {_ADVICE}")

    def check_address(self, addresses: list[str]) -> None:
        """Raise StoreError where another process answers at one of the addresses, too, with streams of its own."""
        if not self._claims:
            return
        for address in addresses:
            if not claim(address):
                raise StoreError(f"{self._home}, and another one answers at {address} too: {_ADVICE}")
            self._claims = False


def worker_count() -> int:
    """Return in how many processes the application runs, as far as the server that started them tells: else 1."""
    return max(1, _of_a_child(), _of_a_fork())


def _of_a_child() -> int:
    """Uvicorn, Hypercorn and Granian start their workers with multiprocessing, each with what it needs to know."""
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None:
        return 1
    this: Any = process.current_process()
    config = getattr(this, "_kwargs", {}).get("config")
    kind = type(config).__module__.partition(".")[0]
    if kind in {"uvicorn", "hypercorn"}:
        # Uvicorn's reloader runs one worker, however many are asked for.
        return 1 if getattr(config, "should_reload", False) else int(getattr(config, "workers", None) or 1)
    if this.name == "granian-worker":
        number = next(iter(getattr(this, "_args", ())), 1)  # counted from 1: there are at least this many
        return number if isinstance(number, int) else 1
    return 1


def _of_a_fork() -> int:
    # A worker that was forked has its maker on its stack: Gunicorn's with the configuration, Granian's with the number.
    # (Granian's first worker must be recognised too: one that gets SIGTERM while it starts never ends.)
    gunicorn, granian = (
        getattr(sys.modules.get(module), name, ())
        for module, name in (("gunicorn.workers.base", "Worker"), ("granian.server.common", "AbstractServer"))
    )
    frame: FrameType | None = sys._getframe()  # noqa: SLF001 - there is no other way to find the server
    while frame is not None:
        maker = frame.f_locals.get("self") if frame.f_code.co_argcount else None
        if isinstance(maker, gunicorn):
            return int(maker.cfg.workers)
        if isinstance(maker, granian):
            return int(maker.workers)
        frame = frame.f_back
    return 1


_claims: dict[str, socket.socket] = {}


def claim(address: str) -> bool:
    """Claim an address that this process answers at, until it ends; false if another process has it.

    Only Linux has names that end with their process: elsewhere it is always true.
    """
    if sys.platform != "linux" or address in _claims:
        return True
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(_CLAIM.format(address))
    except OSError:
        held.close()
        return False
    _claims[address] = held
    return True


def _disclaim() -> None:
    for held in _claims.values():
        held.close()
    _claims.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disclaim)  # the address is the parent's
