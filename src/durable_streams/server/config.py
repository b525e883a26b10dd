"""What an operator can set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["ServerConfig"]


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server; times in seconds, sizes in bytes.

    ``data_dir`` is the folder of the SQLite store; with neither it nor ``store``, streams are kept in memory.
    ``store`` is a NATS cluster, ``nats://a:4222,b:4222,c:4222``: what ``nats_name`` to ``nats_tls_ca`` say of it is
    explained at ``stores.jetstream.JetStreamConfig``. ``port`` 0 picks a free one. ``chunk_size`` is about how much a
    read answers at once; ``sse_max_bytes`` ends an event stream early, which bounds what a reader that does not keep
    up can make the server hold: it reconnects where it was. ``cache`` is the scope of ``Cache-Control``.
    """

    host: str = "127.0.0.1"
    port: int = 4437
    data_dir: Path | None = None
    store: str | None = field(default=None, repr=False)  # there may be a password in it
    nats_name: str = "durable-streams"
    nats_replicas: int | None = None
    nats_storage: Literal["file", "memory"] | None = None
    nats_max_bytes: int | None = None
    nats_credentials: Path | None = None
    nats_tls_ca: Path | None = None
    long_poll_timeout: float = 30.0
    sse_max_age: float = 60.0
    sse_max_bytes: int = 8 << 20
    sse_heartbeat: float = 15.0
    max_body: int = 64 << 20
    chunk_size: int = 1 << 20
    max_streams_in_memory: int = 200_000
    cache: str = "public"

    def __post_init__(self) -> None:
        for name in ("long_poll_timeout", "sse_max_age", "sse_heartbeat"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is a number of seconds above 0, not {getattr(self, name)}")
        for name in ("sse_max_bytes", "max_body", "chunk_size", "max_streams_in_memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a number above 0, not {getattr(self, name)}")
        if self.store is not None and self.data_dir is not None:
            raise ValueError("store and data_dir exclude each other: streams are on NATS or in a folder")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is a number from 0 to 65535, not {self.port}")
        if self.cache not in ("public", "private"):
            raise ValueError(f"cache is public or private, not {self.cache}")
