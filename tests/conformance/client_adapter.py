#!/usr/bin/env python3
"""The client behind the adapter protocol of the public client conformance suite.

    tests/conformance/client_adapter.py [--api sync|async]

The suite (`@durable-streams/client-conformance-tests`) starts an adapter as a process, writes one command as a line of
JSON to its standard input, and reads one result as a line of JSON from its standard output. Only the public API is
used, and both of its sides by the same code: `settled` awaits what the async side returns and passes on what the sync
side returns. Beside the suite's commands there are `close`, `idempotent-close`, `idempotent-detach` and `fork`.

    $ echo '{"type": "init", "serverUrl": "http://127.0.0.1:4437"}' | tests/conformance/client_adapter.py
    {"type": "init", "success": true, "clientName": "durable-streams (sync)", ...}
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import inspect
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import durable_streams
from durable_streams import (
    AsyncDurableStream,
    DurableStream,
    DurableStreamError,
    FetchError,
    IdempotentProducer,
    RetryPolicy,
    StreamParseError,
    SyncIdempotentProducer,
    astream,
    stream,
)

Command = dict[str, Any]
Result = dict[str, Any]

BINARY = "application/octet-stream"
# Seconds a read lasts, and chunks it takes, where the command does not say.
READ_LIMIT = 5.0
MOST_CHUNKS = 100
# What the suite calls an error; other codes are passed on as they are.
CODES = {
    "CONFLICT_EXISTS": "CONFLICT",
    "CONFLICT_SEQ": "SEQUENCE_CONFLICT",
    "SSE_ENCODING_ERROR": "PARSE_ERROR",
}
# The suite looks for its own spelling of a setting in the message that refuses it.
SPELLINGS = {
    "max_batch_bytes": "maxBatchBytes",
    "max_retries": "maxRetries",
    "initial_delay": "initialDelayMs",
    "max_delay": "maxDelayMs",
}
FEATURES = dict.fromkeys(
    ("batching", "sse", "longPoll", "auto", "streaming", "dynamicHeaders", "strictZeroValidation"), True
)


@dataclass(frozen=True)
class Api:
    """One side of the public API."""

    name: str
    handle: Any
    open: Callable[..., Any]
    producer: Any


APIS = {
    "sync": Api("sync", DurableStream, stream, SyncIdempotentProducer),
    "async": Api("async", AsyncDurableStream, astream, IdempotentProducer),
}


async def settled(value: Any) -> Any:
    """Return what a call of either side returns in the end."""
    return await value if inspect.isawaitable(value) else value


async def each(items: Any) -> AsyncIterator[Any]:
    """Iterate over what either side iterates over."""
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def close(response: Any) -> None:
    """Close a response of either side."""
    await settled(response.aclose() if hasattr(response, "aclose") else response.close())


@dataclass
class Dynamic:
    """Headers or parameters whose values are made for each request, and the values that were made last."""

    makers: dict[str, Callable[[], str]] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, kind: str, initial: str = "") -> None:
        """Define one: a `counter` from 1, a `timestamp` in milliseconds, or a `token`, which is constant."""
        numbers = count(1)
        value: Callable[[], str] = {
            "counter": lambda: str(next(numbers)),
            "timestamp": lambda: str(time.time_ns() // 1_000_000),
            "token": lambda: initial,
        }[kind]

        def make() -> str:
            self.sent[name] = value()
            return self.sent[name]

        self.makers[name] = make

    def clear(self) -> None:
        """Forget all of them."""
        self.makers.clear()
        self.sent.clear()


@dataclass
class Reading:
    """A read with its limits, and what came of it so far."""

    open: Callable[[], Any]
    mode: str
    most: int
    until_up_to_date: bool
    chunks: list[Result] = field(default_factory=list)
    response: Any = None

    async def run(self) -> None:
        """Read until the stream, or a limit other than time, ends it."""
        self.response = await settled(self.open())
        async for event in each(self.response.iter_events(self.mode)):
            if event.data:
                self.chunks.append({**_chunk(event.data), "offset": event.next_offset})
            if len(self.chunks) >= self.most or (self.until_up_to_date and event.up_to_date):
                return


def _chunk(data: Any) -> Result:
    """Return data as the suite writes it: JSON and text as text, what is not UTF-8 as base64."""
    if isinstance(data, list):
        return {"data": json.dumps(data, separators=(",", ":"), ensure_ascii=False)}
    try:
        return {"data": data.decode()}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode(), "binary": True}


def _data(command: Command) -> str | bytes | None:
    data: str | None = command.get("data")
    return base64.b64decode(data) if data is not None and command.get("binary") else data


def _seconds(milliseconds: float | None, default: float | None = None) -> float | None:
    return default if milliseconds is None else milliseconds / 1000


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def failure(kind: str, error: Exception) -> Result:
    """Return the result for a command that failed."""
    result = {"type": "error", "success": False, "commandType": kind, "message": str(error)}
    if isinstance(error, DurableStreamError):
        code = CODES.get(error.code, error.code)
        if isinstance(error, FetchError):
            code = "TIMEOUT" if code == "TIMEOUT" else "NETWORK_ERROR"
        elif isinstance(error, StreamParseError):
            code = "PARSE_ERROR"
        elif kind == "read" and error.status == 400:
            code = "INVALID_OFFSET"
        elif code.startswith("HTTP"):
            code = "UNEXPECTED_STATUS"
        details = {
            name: getattr(error, name, None) for name in ("current_epoch", "expected_seq", "received_seq")
        }
        return {
            **result,
            **_without_none(status=error.status),
            "errorCode": code,
            "details": _without_none(**details),
        }
    return {
        **result,
        "errorCode": "INVALID_ARGUMENT" if isinstance(error, (TypeError, ValueError)) else "INTERNAL_ERROR",
    }


class Adapter:
    """Answers commands, one at a time."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._root = ""
        self._timeout: float | None = None
        self._types: dict[str, str] = {}
        self._headers, self._params = Dynamic(), Dynamic()
        self._producers: dict[tuple[Any, ...], Any] = {}
        self.running = True

    async def answer(self, command: Command) -> Result:
        """Return the result of a command, whatever becomes of it."""
        kind = command.get("type", "")
        handler = getattr(self, f"_do_{kind.replace('-', '_')}", None)
        if handler is None:
            known = f"{kind!r} is not a command of this adapter."
            return {**failure(kind, ValueError(known)), "errorCode": "NOT_SUPPORTED"}
        try:
            return {"type": kind, "success": True, **await handler(command)}
        except Exception as error:  # noqa: BLE001 - every failure is a result
            return failure(kind, error)

    # -- what every command needs

    def _url(self, command: Command) -> str:
        path: str = command["path"]
        return f"{self._root}{path}"

    def _request_options(self, command: Command) -> dict[str, Any]:
        self._headers.sent.clear()
        self._params.sent.clear()
        return {
            "headers": {**self._headers.makers, **(command.get("headers") or {})},
            "params": dict(self._params.makers),
            "timeout": self._timeout,
        }

    def _sent(self) -> Result:
        return _without_none(
            headersSent=dict(self._headers.sent) or None, paramsSent=dict(self._params.sent) or None
        )

    def _handle(self, command: Command) -> Any:
        return self._api.handle(
            self._url(command),
            content_type=command.get("contentType") or self._types.get(command["path"]),
            retry_appends=True,  # the suite expects an append to survive a failure that it injects
            **self._request_options(command),
        )

    def _note(self, command: Command, content_type: str | None) -> None:
        if content_type is not None:
            self._types[command["path"]] = content_type

    # -- the adapter itself

    async def _do_init(self, command: Command) -> Result:
        await self._forget_producers()
        self._root = command["serverUrl"].rstrip("/")
        self._timeout = _seconds(command.get("timeoutMs"))
        self._types.clear()
        await self._do_clear_dynamic(command)
        return {
            "clientName": f"durable-streams ({self._api.name})",
            "clientVersion": durable_streams.__version__,
            "features": FEATURES,
        }

    async def _do_shutdown(self, _: Command) -> Result:
        await self._forget_producers()
        self.running = False
        return {}

    async def _do_set_dynamic_header(self, command: Command) -> Result:
        self._headers.set(command["name"], command["valueType"], command.get("initialValue") or "")
        return {}

    async def _do_set_dynamic_param(self, command: Command) -> Result:
        self._params.set(command["name"], command["valueType"], command.get("initialValue") or "")
        return {}

    async def _do_clear_dynamic(self, _: Command) -> Result:
        self._headers.clear()
        self._params.clear()
        return {}

    async def _do_validate(self, command: Command) -> Result:
        try:
            await self._validate(command["target"])
        except ValueError as error:
            message = str(error)
            for ours, name in SPELLINGS.items():
                message = message.replace(ours, name)
            raise ValueError(message) from error
        return {}

    async def _validate(self, target: Command) -> None:
        if target["target"] == "retry-options":
            RetryPolicy(
                **_without_none(
                    max_retries=target.get("maxRetries"),
                    initial_delay=_seconds(target.get("initialDelayMs")),
                    max_delay=_seconds(target.get("maxDelayMs")),
                    multiplier=target.get("multiplier"),
                )
            )
            return
        settings = _without_none(epoch=target.get("epoch"), max_batch_bytes=target.get("maxBatchBytes"))
        producer = self._api.producer("http://127.0.0.1/s", target.get("producerId", ""), **settings)
        await settled(producer.close())

    # -- streams

    async def _do_create(self, command: Command) -> Result:
        handle = self._handle(command)
        result = await settled(
            handle.create_stream(
                content_type=command.get("contentType") or BINARY,
                ttl_seconds=command.get("ttlSeconds"),
                expires_at=command.get("expiresAt"),
                body=_data(command),
                closed=bool(command.get("closed")),
            )
        )
        self._note(command, result.content_type)
        return {"status": 201 if result.created else 200, **_without_none(offset=result.offset)}

    async def _do_connect(self, command: Command) -> Result:
        handle = await settled(self._api.handle.connect(self._url(command), **self._request_options(command)))
        self._note(command, handle.content_type)
        return {"status": 200, **_without_none(offset=(await settled(handle.head())).offset)}

    async def _do_head(self, command: Command) -> Result:
        head = await settled(self._handle(command).head())
        self._note(command, head.content_type)
        found = _without_none(
            offset=head.offset,
            contentType=head.content_type,
            ttlSeconds=head.ttl_seconds,
            expiresAt=head.expires_at,
        )
        return {"status": 200, **found, "streamClosed": head.stream_closed}

    async def _do_delete(self, command: Command) -> Result:
        await settled(self._handle(command).delete())
        self._types.pop(command["path"], None)
        return {"status": 200}

    async def _do_close(self, command: Command) -> Result:
        result = await settled(self._handle(command).close_stream(_data(command)))
        return {"status": 200, "finalOffset": result.final_offset}

    async def _do_fork(self, command: Command) -> Result:
        fork = await settled(
            self._handle(command).fork(f"{self._root}{command['newPath']}", offset=command.get("offset"))
        )
        return {"status": 201 if fork.created else 200}

    async def _do_append(self, command: Command) -> Result:
        sequence = command.get("seq")
        appended = await settled(
            self._handle(command).append(_data(command), seq=None if sequence is None else str(sequence))
        )
        return {"status": 200, "offset": appended.next_offset, **self._sent()}

    async def _do_read(self, command: Command) -> Result:
        live = command.get("live") or False
        options = self._request_options(command)
        reading = Reading(
            lambda: self._api.open(
                self._url(command),
                offset=command.get("offset"),
                live=True if live == "auto" else live,
                **options,
            ),
            "json" if "json" in self._types.get(command["path"], "") else "bytes",
            command.get("maxChunks") or MOST_CHUNKS,
            bool(live and command.get("waitForUpToDate")),
        )
        await self._limited(reading, _seconds(command.get("timeoutMs"), READ_LIMIT) or READ_LIMIT)
        return {**_read_result(reading, command), **self._sent()}

    async def _limited(self, reading: Reading, seconds: float) -> None:
        """Run a read for at most this long, and close it, which wakes one that blocks in its thread."""
        run = reading.run() if self._api.name == "async" else _in_thread(reading.run())
        task = asyncio.create_task(run)
        await asyncio.wait({task}, timeout=seconds)
        late = not task.done()
        if late and self._api.name == "async":
            task.cancel()
        if reading.response is not None:
            await close(reading.response)
            await asyncio.wait({task}, timeout=seconds)
        if not late:
            task.result()

    # -- producers

    async def _producer(self, command: Command, **settings: Any) -> Any:
        """Return the producer of these settings, which keeps its sequence from command to command."""
        epoch, claims = command.get("epoch") or 0, bool(command.get("autoClaim"))
        key = (command["path"], command["producerId"], epoch, claims)
        if key not in self._producers:
            self._producers[key] = self._api.producer(
                self._url(command),
                command["producerId"],
                epoch=epoch,
                auto_claim=claims,
                content_type=self._types.get(command["path"]),
                **self._request_options(command),
                **settings,
            )
        return self._producers[key]

    async def _produced(self, producer: Any, result: Any) -> Result:
        """Return a producer's result; a producer that failed is forgotten."""
        try:
            outcome = await settled(result())
        except Exception:
            self._producers = {key: one for key, one in self._producers.items() if one is not producer}
            with suppress(DurableStreamError):
                await settled(producer.close())
            raise
        return {"status": 200, "producerSeq": producer.next_seq - 1, **_outcome(outcome)}

    async def _do_idempotent_append(self, command: Command) -> Result:
        producer = await self._producer(command)

        def append() -> Any:
            receipt = producer.submit(_data(command))
            return receipt if self._api.name == "async" else receipt.result()

        return await self._produced(producer, append)

    async def _do_idempotent_append_batch(self, command: Command) -> Result:
        producer = await self._producer(command, max_in_flight=command.get("maxInFlight") or 1)

        def append() -> Any:
            for item in command["items"]:
                producer.append(item)
            return producer.flush()

        return await self._produced(producer, append)

    async def _do_idempotent_close(self, command: Command) -> Result:
        producer = await self._producer(command)
        return await self._produced(producer, lambda: producer.close_stream(_data(command)))

    async def _do_idempotent_detach(self, command: Command) -> Result:
        producer = await self._producer(command)
        result = await self._produced(producer, producer.close)
        self._producers = {key: one for key, one in self._producers.items() if one is not producer}
        return result

    async def _forget_producers(self) -> None:
        producers, self._producers = self._producers, {}
        for producer in producers.values():
            with suppress(DurableStreamError):
                await settled(producer.close())

    # -- benchmarks

    async def _do_benchmark(self, command: Command) -> Result:
        operation = command["operation"]
        run = getattr(self, f"_measure_{operation['op']}")
        started = time.perf_counter_ns()
        metrics = await run(operation)
        return {
            "iterationId": command["iterationId"],
            "durationNs": str(time.perf_counter_ns() - started),
            **_without_none(metrics=metrics),
        }

    async def _measure_create(self, operation: Command) -> None:
        await self._do_create(operation)

    async def _measure_append(self, operation: Command) -> None:
        await settled(self._handle(operation).append(bytes(operation["size"])))

    async def _measure_read(self, operation: Command) -> Result:
        response = await settled(
            self._api.open(self._url(operation), offset=operation.get("offset"), live=False)
        )
        return {"bytesTransferred": len(await settled(response.read_bytes()))}

    async def _measure_roundtrip(self, operation: Command) -> None:
        await self._do_create({"contentType": "text/plain", **operation})
        await settled(self._handle(operation).append("x" * operation["size"]))
        reading = Reading(
            lambda: self._api.open(self._url(operation), live=operation.get("live") or "long-poll"),
            "bytes",
            1,
            until_up_to_date=True,
        )
        await self._limited(reading, READ_LIMIT)

    async def _measure_throughput_append(self, operation: Command) -> Result:
        message = bytes(operation["size"])
        producer = self._api.producer(
            self._url(operation),
            "benchmark",
            auto_claim=True,
            max_in_flight=operation["concurrency"],
            content_type=self._types.get(operation["path"]),
        )
        for _ in range(operation["count"]):
            await settled(producer.put(message))
        await settled(producer.close())
        return {
            "bytesTransferred": len(message) * operation["count"],
            "messagesProcessed": operation["count"],
        }

    async def _measure_throughput_read(self, operation: Command) -> Result:
        response = await settled(self._api.open(self._url(operation), live=False))
        return {"messagesProcessed": len(await settled(response.read_json()))}


def _outcome(outcome: Any) -> Result:
    if outcome is None:
        return {}
    found = _without_none(offset=getattr(outcome, "offset", None))
    return {**found, "duplicate": outcome.duplicate}


def _read_result(reading: Reading, command: Command) -> Result:
    response = reading.response
    if response is None:  # the limit passed before the first answer: there is nothing new
        return {
            "status": 200,
            "chunks": [],
            "offset": command.get("offset") or "-1",
            "upToDate": True,
            "streamClosed": False,
        }
    return {
        "status": response.status,
        "chunks": reading.chunks,
        "offset": response.offset,
        "upToDate": response.up_to_date,
        "streamClosed": response.stream_closed,
        **_without_none(cursor=response.cursor),
    }


async def _in_thread(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what blocks in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if not ended.done():
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(coroutine)
        except Exception as failed:  # noqa: BLE001 - it is raised where the result is awaited
            error = failed
        with suppress(RuntimeError):  # the loop ended first
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, daemon=True).start()
    await ended


def main() -> None:
    """Answer one line after the other."""
    parser = argparse.ArgumentParser(
        description="The client behind the conformance suite's adapter protocol."
    )
    parser.add_argument("--api", choices=sorted(APIS), default="sync", help="which side (default: sync)")
    adapter = Adapter(APIS[parser.parse_args().api])
    loop = asyncio.new_event_loop()  # one for all commands: the async side keeps its connections in it
    try:
        for line in sys.stdin:
            if not line.strip():
                continue
            sys.stdout.write(json.dumps(loop.run_until_complete(adapter.answer(json.loads(line)))) + "\n")
            sys.stdout.flush()
            if not adapter.running:
                break
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


if __name__ == "__main__":
    main()
