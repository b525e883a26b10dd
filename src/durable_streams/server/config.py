"""The settings of a server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from durable_streams.protocol.globs import Glob
from durable_streams.server import hosts

__all__ = ["RetentionRule", "ServerConfig"]

_ALL_BODIES = 256 << 20
_LONGEST_DRAIN = 3600  # seconds
_MAX_LEEWAY = 600
_MOST_PREFIXES = 32
_LONGEST_PREFIX = 200
_DURATIONS = (
    "long_poll_timeout",
    "sse_max_age",
    "sse_heartbeat",
    "keep_alive",
    "send_timeout",
    "body_timeout",
    "disk_timeout",
)
_SIZES = (
    "sse_max_bytes",
    "max_body",
    "chunk_size",
    "max_streams_in_memory",
    "send_budget",
    "max_queued_bytes",
    "max_queued_appends",
    "max_unsorted_bytes",
)

_PATHS = (
    "data_dir",
    "nats_credentials",
    "nats_tls_ca",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "auth",
    "jwt_key",
    "limits",
)

_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9.*_\[\]:-]+")
_HOST = re.compile(r"[A-Za-z0-9._*-]+|\[[0-9A-Fa-f:.]+\]")


class RetentionRule(NamedTuple):
    """How much of themselves the streams of a pattern keep that have no retention of their own.

    Attributes:
        pattern: Paths: ``*`` is one segment, ``**`` any number of them.
        max_age: In seconds; None for any age.
        max_bytes: In bytes; None for any size.
    """

    pattern: str
    max_age: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True)
class ServerConfig:
    """Settings of a server.

    Args:
        host: The address to listen on (`serve` only).
        port: The port to listen on, 0 for a free one (`serve` only).
        uds: The Unix socket to listen at, instead of host and port (`serve` only).
        uds_mode: The permissions of its file: who may open it may ask.
        admin_host: The address for operators to listen on (`serve` only).
        admin_port: Its port, 0 for a free one; None for no such address (`serve` only).
        data_dir: The folder of the SQLite store; with neither it nor ``store``, streams are kept in memory.
        store: A NATS cluster, ``nats://a:4222,b:4222,c:4222``.
        nats_name: The name of the bucket and its subjects on NATS; see ``stores.jetstream.JetStreamConfig``.
        nats_replicas: How many servers of the cluster keep a copy.
        nats_storage: Where NATS keeps a new bucket.
        nats_max_bytes: The most bytes of a new bucket.
        nats_credentials: The file with credentials for NATS.
        nats_tls_ca: The file with the certificate authority of the NATS servers.
        long_poll_timeout: Seconds that a long-poll waits for data.
        sse_max_age: Seconds after which an event stream ends, for the client to reconnect.
        sse_max_bytes: Bytes after which an event stream ends, for the client to reconnect.
        sse_heartbeat: Seconds between two heartbeats of an idle event stream.
        send_budget: The most bytes held for clients that have not taken them yet, in all.
        send_timeout: Seconds after which a client that takes nothing loses its connection.
        max_body: The most bytes of a request's body.
        body_budget: The most bytes of request bodies in memory, in all; by default 256 MiB, or twice ``max_body`` if
            that is more.
        body_timeout: Seconds without progress after which a request's body is refused.
        chunk_size: Bytes that are read from the store at once, and that an event or a long-poll brings.
        max_streams_in_memory: About how many streams have their state in memory.
        disk_timeout: Seconds that the disk may take for a commit or a read before requests are refused.
        disk_reserve: Bytes of the disk that a data folder keeps free for deletions, closures and trims; on a disk with
            little room less, 0 for none.
        max_queued_bytes: The most bytes that wait to be stored, over all streams.
        max_queued_appends: The most requests that wait to be stored, over all streams.
        max_unsorted_bytes: About how many bytes of memory the part of the commit log takes that is not in the tables
            of a data folder yet; what comes while there is no room goes to the tables at once.
        retention: How much streams keep that have no retention of their own: the first rule that matches a path counts.
        cache: The scope of ``Cache-Control``: public, or private where shared caches must keep nothing.
        drain: Seconds between the signal to end and the end, in which the server answers everything but says that it is
            not ready (`serve` only).
        metrics_prefix: Beginnings of paths whose streams the metrics count apart, at most 32; a stream counts for the
            first one that its path begins with.
        tracing: Whether each request is a span of OpenTelemetry, with the tracer provider that the process has.
        access_log: The share of requests that is logged, from 0 to 1; of a part of them all that are answered with 500
            or more are logged.
        audit_log: Whether it is logged who creates, deletes and trims streams, who is refused, and which callers there
            are.
        keep_alive: Seconds that a connection may be silent between two requests, or within the head of one (`serve`
            only).
        public_url: The address that clients use (``https://example.com/streams``), where a proxy changes it.
        trusted_proxies: Addresses and networks whose ``X-Forwarded-Proto``, ``-Host`` and ``-Prefix`` give that
            address instead.
        cors_origins: The origins whose web pages may read and write, ``*`` for all. By default all, but only local
            ones for requests to a local name or address.
        cors_credentials: Whether those pages may send cookies.
        allowed_hosts: The host names that the server answers to, besides addresses and localhost; a ``*`` stands for
            any part of a name. By default all, but those without a dot only if `serve` listens on a loopback address.
        ui: Whether ``/`` shows the inspector, a page to look at the streams. None lets `serve` show it where it listens
            on a loopback address or something says who may do what; elsewhere it is not shown.
        webhook_hosts: The host names that webhooks may go to; a ``*`` stands for any part of a name. By default all.
        webhook_allow_http_localhost: Whether webhooks may go to this machine over plain http, for development.
        tls_cert: The file with the certificate and its chain (PEM); `serve` speaks HTTPS with it.
        tls_key: The file with its private key (PEM).
        tls_client_ca: The file with the authorities (PEM) of which every client needs a certificate.
        auth: The file with the keys of callers (``durable-streams key create``). None lets everyone do everything.
        no_auth: Whether `serve` may listen on an address that other machines reach though everyone may do everything.
        jwks: The file or ``https`` URL of the JWK set that verifies JSON Web Tokens of callers.
        jwt_key: The file with the one key that does: a public key or certificate (PEM), or a secret.
        jwt_issuer: The ``iss`` that tokens have to have.
        jwt_audience: The ``aud`` that tokens have to have; without it, none may have one.
        jwt_leeway: Seconds by which clocks may differ.
        jwt_claim: The claim with the grants of a token.
        hide_forbidden: Whether a stream that its caller may neither read nor list is answered 404, like one that does
            not exist, instead of 403. It matters where something says who may do what.
        limits: The file with how much each caller may do (`quotas`).
        bind_producers: Whether each caller has producer ids of its own, so that none can write, or fence, as the
            producer of another.

    Raises:
        ValueError: A setting makes no sense.
    """

    host: str = "127.0.0.1"
    port: int = 4437
    uds: Path | None = None
    uds_mode: int = 0o600
    admin_host: str = "127.0.0.1"
    admin_port: int | None = None
    data_dir: Path | None = None
    store: str | None = field(default=None, repr=False)  # it may contain a password
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
    send_budget: int = 64 << 20
    send_timeout: float = 30.0
    max_body: int = 64 << 20
    body_budget: int | None = None
    body_timeout: float = 30.0
    chunk_size: int = 1 << 20
    max_streams_in_memory: int = 200_000
    disk_timeout: float = 15.0
    disk_reserve: int = 64 << 20
    max_queued_bytes: int = 128 << 20
    max_queued_appends: int = 16_384
    max_unsorted_bytes: int = 96 << 20
    retention: Sequence[RetentionRule] = ()
    cache: str = "public"
    keep_alive: float = 30.0
    drain: float = 0.0
    metrics_prefix: Sequence[str] = ()
    tracing: bool = False
    access_log: float = 0.0
    audit_log: bool = False
    public_url: str | None = None
    trusted_proxies: Sequence[str] = ()
    cors_origins: Sequence[str] | None = None
    cors_credentials: bool = False
    allowed_hosts: Sequence[str] | None = None
    ui: bool | None = None
    webhook_hosts: Sequence[str] | None = None
    webhook_allow_http_localhost: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    auth: Path | None = None
    no_auth: bool = False
    jwks: str | None = None
    jwt_key: Path | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    jwt_leeway: float = 10.0
    jwt_claim: str = "ds"
    hide_forbidden: bool = False
    limits: Path | None = None
    bind_producers: bool = False

    def __post_init__(self) -> None:
        self._take_texts_for_paths()
        for name in _DURATIONS:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is a number of seconds above 0, not {getattr(self, name)}")
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a number above 0, not {getattr(self, name)}")
        if self.body_budget is not None and self.body_budget < self.max_body:
            raise ValueError(f"body_budget is at least max_body, {self.max_body}, not {self.body_budget}")
        if self.store is not None and self.data_dir is not None:
            raise ValueError("store and data_dir exclude each other: streams are on NATS or in a folder")
        if self.cache not in ("public", "private"):
            raise ValueError(f"cache is public or private, not {self.cache}")
        self._check_storage()
        if not 0 <= self.drain <= _LONGEST_DRAIN:
            raise ValueError(f"drain is a number of seconds from 0 to {_LONGEST_DRAIN}, not {self.drain}")
        if not 0 <= self.access_log <= 1:
            raise ValueError(f"access_log is a share from 0 to 1, not {self.access_log}")
        self._check_prefixes()
        self._check_callers()
        self._check_addresses()

    def _take_texts_for_paths(self) -> None:
        """Make paths of texts, which a program's own settings are."""
        for name in _PATHS:
            given = getattr(self, name)
            if isinstance(given, str):
                object.__setattr__(self, name, Path(given))

    def _check_storage(self) -> None:
        if self.disk_reserve < 0:
            raise ValueError(f"disk_reserve is a number of bytes, 0 for none, not {self.disk_reserve}")
        for rule in self.retention:
            _check_rule(RetentionRule(*rule))  # a plain tuple will do

    def _check_prefixes(self) -> None:
        if len(self.metrics_prefix) > _MOST_PREFIXES:
            raise ValueError(
                f"metrics_prefix is given {_MOST_PREFIXES} times at most: each is a set of time series"
            )
        for prefix in self.metrics_prefix:
            if not prefix or prefix.startswith("/") or len(prefix) > _LONGEST_PREFIX:
                raise ValueError(
                    f"metrics_prefix is the beginning of paths, such as jobs/, of up to {_LONGEST_PREFIX} characters, "
                    f"not {prefix[:80]!r}"
                )

    def _check_callers(self) -> None:
        if self.uds is not None and self.tls_cert is not None:
            raise ValueError("uds excludes tls_cert: what passes a Unix socket stays on this machine")
        if not 0 <= self.uds_mode <= 0o777:
            raise ValueError(f"uds_mode is like 0o660, three digits of 0 to 7, not {self.uds_mode:o}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: give both or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("tls_client_ca needs tls_cert and tls_key: it is for clients over TLS")
        if self.has_callers and self.no_auth:
            raise ValueError("no_auth excludes auth, jwks and jwt_key")
        if self.jwks is not None and self.jwt_key is not None:
            raise ValueError("jwks and jwt_key exclude each other: a set holds any number of keys")
        if not 0 <= self.jwt_leeway <= _MAX_LEEWAY:
            raise ValueError(
                f"jwt_leeway is a number of seconds from 0 to {_MAX_LEEWAY}, not {self.jwt_leeway}"
            )

    def _check_addresses(self) -> None:
        for name in ("port", "admin_port"):
            port = getattr(self, name)
            if port is not None and not 0 <= port <= 65535:
                raise ValueError(f"{name} is a number from 0 to 65535, not {port}")
        if self.public_url is not None:
            hosts.public_url(self.public_url)
        hosts.Networks(self.trusted_proxies)
        for origin in self.cors_origins or ():
            if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origins are like https://example.com, null, or *, not {origin!r}")
        for setting in ("allowed_hosts", "webhook_hosts"):
            for name in getattr(self, setting) or ():
                if not _HOST.fullmatch(name):
                    raise ValueError(f"{setting} are names like example.com or *.example.com, not {name!r}")
        if self.cors_credentials and (self.cors_origins is None or "*" in self.cors_origins):
            raise ValueError(
                "cors_credentials needs cors_origins that name the origins: * would admit every page"
            )

    @property
    def has_callers(self) -> bool:
        """Whether something says who may do what."""
        return any(one is not None for one in (self.auth, self.jwks, self.jwt_key))

    @property
    def all_bodies(self) -> int:
        """Bytes that request bodies may take in memory, in all."""
        return max(_ALL_BODIES, 2 * self.max_body) if self.body_budget is None else self.body_budget


def _check_rule(rule: RetentionRule) -> None:
    try:
        Glob(rule.pattern)
    except ValueError as error:
        raise ValueError(f"retention of {rule.pattern!r}: {error}") from error
    limits = [limit for limit in (rule.max_age, rule.max_bytes) if limit is not None]
    if not limits or min(limits) < 1:
        raise ValueError(f"retention of {rule.pattern!r} is an age or a size above 0, or both")
