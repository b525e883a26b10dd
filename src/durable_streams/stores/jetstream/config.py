"""The settings of ``JetStreamStore``: the NATS cluster and the bucket."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

__all__ = ["JetStreamConfig", "parse_servers", "without_secrets"]

_DEFAULT_PORT = 4222
_MOST_REPLICAS = 5  # of a JetStream stream
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class JetStreamConfig:
    """A NATS cluster, and the bucket on it that holds the streams.

    Args:
        servers: URLs, as ``parse_servers`` returns them.
        name: The name of the bucket; servers with the same bucket serve the same streams.
        replicas: The number of NATS servers that hold the bucket. None accepts any number, and creates it with 3.
        storage: Where NATS keeps the bucket. None accepts either, and creates it in files.
        max_bytes: The largest size of the bucket, in bytes; None for no limit of its own.
        credentials: A ``.creds`` file.
        tls_ca: Certificates (PEM) of the authority that signed those of the servers, if the system lacks it.

    Raises:
        ValueError: A value is impossible; one sentence names it.
    """

    servers: tuple[str, ...]
    name: str = "durable-streams"
    replicas: int | None = None
    storage: Literal["file", "memory"] | None = None
    max_bytes: int | None = None
    credentials: Path | None = None
    tls_ca: Path | None = None

    def __post_init__(self) -> None:
        """Check the values that need no NATS to check."""
        if not self.servers:
            raise ValueError("no NATS server is given: nats://HOST:PORT")
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} cannot name a bucket: 1 to 64 letters, digits, hyphens, underscores"
            )
        if self.replicas is not None and not 1 <= self.replicas <= _MOST_REPLICAS:
            raise ValueError(f"{self.replicas} replicas are not possible: 1 to {_MOST_REPLICAS}")
        if self.storage not in ("file", "memory", None):
            raise ValueError(f"the storage {self.storage!r} does not exist: file or memory")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"a bucket of {self.max_bytes} bytes holds nothing")
        for file in (self.credentials, self.tls_ca):
            if file is not None and not file.is_file():
                raise ValueError(f"there is no file {file}")


def parse_servers(text: str) -> tuple[str, ...]:
    """Return the URLs in ``nats://a:4222,b:4222``, each complete.

    Args:
        text: Servers, separated by commas. The scheme (``nats`` or ``tls``) and the ``user:password@`` (or ``token@``)
            of the first one apply to the others without their own.

    Returns:
        One URL for each server.

    Raises:
        ValueError: A server is not an address of NATS; the message hides passwords.
    """
    servers: list[str] = []
    scheme = user = ""
    for part in text.split(","):
        one = part.strip()
        url = _split(one if "://" in one else f"{scheme or 'nats'}://{one}", text)
        if scheme and url.scheme != scheme:
            raise ValueError(f"{_hidden(text)} mixes {scheme}:// and {url.scheme}://")
        scheme = url.scheme
        own, _, _ = url.netloc.rpartition("@")
        user = own or user
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        servers.append(f"{scheme}://{user + '@' if user else ''}{host}:{url.port or _DEFAULT_PORT}")
    return tuple(servers)


def _split(server: str, text: str) -> SplitResult:
    try:
        url = urlsplit(server)
        port = url.port
    except ValueError as error:
        raise ValueError(f"{_hidden(server)} is not an address of a NATS server: {error}") from None
    if url.scheme not in ("nats", "tls"):
        raise ValueError(
            f"{_hidden(server)} is not an address of a NATS server: it begins with nats:// or tls://"
        )
    if not url.hostname:
        raise ValueError(f"{_hidden(text)} names a NATS server without a host: nats://HOST:PORT,HOST:PORT")
    if port == 0 or url.path.strip("/") or url.query or url.fragment:
        raise ValueError(
            f"{_hidden(server)} is not an address of a NATS server: nats://HOST:PORT is all of it"
        )
    return url


def _hidden(text: str) -> str:
    return re.sub(r"[^/,@]*@", "", text)


def without_secrets(servers: tuple[str, ...]) -> str:
    """Return the servers for a message, without users and passwords."""
    return ", ".join(_hidden(server) for server in servers)
