"""The requirements on a bucket: a bucket that does not meet them is refused, in one sentence with the remedy.

Invariant: an existing JetStream stream is never changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from durable_streams.stores.base import StoreError
from durable_streams.stores.jetstream.config import JetStreamConfig, without_secrets
from durable_streams.stores.jetstream.layout import Layout
from durable_streams.stores.jetstream.nats.connection import NatsConnection
from durable_streams.stores.jetstream.nats.messages import (
    ELECTING,
    ApiError,
    Config,
    Info,
    decode_info,
    encode_json,
)

__all__ = ["prepare"]

_OLDEST = (2, 12, 0)
_FORMAT = "durable-streams-format"
_VERSION = "1"
_REPLICAS = 3
_TRY_SECONDS = 2.0
_PATIENCE_SECONDS = 10.0  # for a cluster that has just been started
_PAUSE_SECONDS = 0.05
_LEAST_PAYLOAD = 64 << 10

_NO_STREAM = 10059
_OTHER_STREAM = 10060
_NAME_TAKEN = 10058
_TOO_FEW = frozenset({10005, 10074})
_NO_ROOM = frozenset({10002, 10023, 10026, 10027, 10028, 10047})
_NOBODY = Info(error=ApiError(err_code=ELECTING, description="no server takes messages"))


async def prepare(connection: NatsConnection, config: JetStreamConfig, layout: Layout, *, make: bool) -> None:
    """Check that the bucket exists, or ``make`` it, and that it meets the requirements; raises StoreError."""
    where = without_secrets(config.servers)
    if connection.version < _OLDEST:
        version, oldest = (".".join(map(str, numbers)) for numbers in (connection.version, _OLDEST))
        raise StoreError(f"NATS at {where} is version {version}, too old: this needs {oldest} or later")
    if connection.max_payload < _LEAST_PAYLOAD:
        raise StoreError(
            f"NATS at {where} takes at most {connection.max_payload} bytes: set max_payload to 1MB"
        )
    account = await _ask(connection, "$JS.API.INFO", where)
    if account.error is not None:
        raise StoreError(f"NATS at {where} has no JetStream for this account: {account.error.description}")
    info = await _look(connection, layout, where)
    if make and info.error is not None and info.error.err_code == _NO_STREAM:
        info = await _make(connection, config, layout, where)
    if info.error is not None:
        raise StoreError(_why_not(info.error, config, layout))
    _compare(info.config, config, layout)
    if make:
        await _await_leader(connection, layout, where)


async def _look(connection: NatsConnection, layout: Layout, where: str) -> Info:
    return await _ask(connection, f"$JS.API.STREAM.INFO.{layout.stream}", where)


async def _make(connection: NatsConnection, config: JetStreamConfig, layout: Layout, where: str) -> Info:
    wanted = {"num_replicas": _REPLICAS, "storage": "file"} | _wanted(config, layout)
    info = await _ask(connection, f"$JS.API.STREAM.CREATE.{layout.stream}", where, encode_json(wanted))
    if info.error is not None and info.error.err_code == _NAME_TAKEN:
        return await _look(connection, layout, where)  # a server that started at the same time created it
    return info


async def _await_leader(connection: NatsConnection, layout: Layout, where: str) -> None:
    """Publish a message that the leader refuses: the other servers know the leader of a new bucket a moment later."""
    subject = layout.log(0)

    async def publish() -> Info:
        headers = {"Nats-Expected-Stream": f"not {layout.stream}"}
        answer = await connection.request(subject, b"", _TRY_SECONDS, headers=headers)
        return _NOBODY if answer.status else decode_info(answer.data)

    said = (await _when_ready(connection, subject, where, publish)).error
    if said is None or said.err_code != _OTHER_STREAM:
        reason = "" if said is None else f": {said.description}"
        raise StoreError(f"NATS at {where} does not take messages for {layout.stream}{reason}")


async def _ask(connection: NatsConnection, subject: str, where: str, data: bytes = b"") -> Info:
    """Return the answer of the JetStream API."""

    async def ask() -> Info:
        answer = await connection.request(subject, data, _TRY_SECONDS)
        if answer.status:
            raise StoreError(
                f"NATS at {where} has no JetStream: start it with -js, or jetstream {{}} in its file"
            )
        return decode_info(answer.data)

    return await _when_ready(connection, subject, where, ask)


async def _when_ready(
    connection: NatsConnection, subject: str, where: str, ask: Callable[[], Awaitable[Info]]
) -> Info:
    """Return the answer to a request, after a wait for a cluster that is about to be ready."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + _PATIENCE_SECONDS
    while True:
        trouble = connection.trouble
        try:
            info = await ask()
            if info.error is None or not _about_to_change(info.error):
                return info
            trouble = info.error.description
        except TimeoutError:
            if connection.trouble != trouble:  # NATS refuses a publish on the connection, not in an answer
                raise StoreError(
                    f"NATS at {where} does not allow what the store needs: {connection.trouble}"
                ) from None
            trouble = f"no answer from {subject}"
        if clock() > deadline:
            raise StoreError(f"JetStream at {where} is not ready: {trouble}")
        await asyncio.sleep(_PAUSE_SECONDS)


def _about_to_change(error: ApiError) -> bool:
    """Whether servers that have just started, and do not all know each other yet, return this error."""
    return error.err_code == ELECTING or (error.err_code in _TOO_FEW and "offline" in error.description)


def _wanted(config: JetStreamConfig, layout: Layout) -> Config:
    """Return the required settings of the bucket; others are accepted as they are."""
    wanted: Config = {
        "name": layout.stream,
        "subjects": [f"$KV.{config.name}.>", f"{config.name}.log.>"],
        "retention": "limits",
        "discard": "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": 2**53,
        "max_age": 0,
        "max_msg_size": -1,
        "allow_atomic": True,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "deny_purge": False,
        "republish": {"src": f"{config.name}.log.>", "dest": f"{config.name}.live.>"},
        "metadata": {_FORMAT: _VERSION},
    }
    if config.replicas is not None:
        wanted["num_replicas"] = config.replicas
    if config.storage is not None:
        wanted["storage"] = config.storage
    if config.max_bytes is not None:
        wanted["max_bytes"] = config.max_bytes
    return wanted


def _why_not(error: ApiError, config: JetStreamConfig, layout: Layout) -> str:
    said = error.description
    if error.err_code == _NO_STREAM:
        return (
            f"there is no bucket {config.name} on NATS at {without_secrets(config.servers)}: check its name"
        )
    if error.err_code in _TOO_FEW:
        count = config.replicas or _REPLICAS
        return f"NATS has fewer servers than the {count} replicas of {layout.stream}: add some, or ask for 1 ({said})"
    if error.err_code in _NO_ROOM:
        return (
            f"NATS has no room for {layout.stream}: {said}; raise the limits of the account, or ask for less"
        )
    return f"NATS refuses {layout.stream}: {said}"


def _compare(found: Config, config: JetStreamConfig, layout: Layout) -> None:
    wanted = _wanted(config, layout)
    metadata = found.get("metadata")
    version = metadata.get(_FORMAT) if isinstance(metadata, dict) else None
    if version is None:
        raise StoreError(
            f"{layout.stream} in NATS exists already and is not a store of streams: choose another name"
        )
    if version != _VERSION:
        raise StoreError(
            f"{layout.stream} in NATS has format {version}, this program reads {_VERSION}: update it"
        )
    for name, value in wanted.items():
        if name != "metadata" and (found.get(name) or None) != (value or None):
            is_now = found.get(name, "nothing")
            raise StoreError(
                f"{layout.stream} in NATS has {name} {is_now}, not {value}: "
                f"ask for {is_now}, or change it with nats stream edit {layout.stream}"
            )
