"""For tests: a real server in a thread, faults on demand or at random, and the contract of every store.

The names are imported at first use: every pytest run of every user imports this package, for its plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from durable_streams.testing.chaos import ChaosProxy
    from durable_streams.testing.faults import Faults
    from durable_streams.testing.server import InMemoryStreamServer
    from durable_streams.testing.x_stream import XFilteredStream

__all__ = ["ChaosProxy", "Faults", "InMemoryStreamServer", "XFilteredStream"]

_HOMES = {
    "ChaosProxy": "chaos",
    "Faults": "faults",
    "InMemoryStreamServer": "server",
    "XFilteredStream": "x_stream",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
