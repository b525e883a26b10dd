"""Callbacks, and the reader: closing, throwing, interrupting."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

from observe import Trace, describe
from probes import FATAL, probe
from wire import Reply, answer, feed, record

GROUP = "Callbacks and control"


@probe(
    GROUP,
    "order of callbacks: 503, data, a broken connection, data, a clean end, 404",
    answer(503),
    feed(record(1), ending="cut"),
    feed(record(2)),
    FATAL,
)
def order(t: Trace) -> None:
    t.run(config=t.loud())


def _throwing(name: str) -> None:
    replies = [feed(record(1), ending="cut"), feed(record(2)), FATAL]

    def play(t: Trace) -> None:
        def throws(*_: object) -> None:
            t.note(f"{name} raises")
            raise RuntimeError(name)

        t.run(2, config=t.quiet(**{name: throws}))

    play.__name__ = f"throwing_{name}"
    probe(GROUP, f"an `{name}` that raises", *replies)(play)


for _name in ("on_connect", "on_disconnect", "on_reconnect", "on_error"):
    _throwing(_name)


def _noted_when_gone() -> list[Reply]:
    gone = threading.Event()

    def held(connection: socket.socket) -> None:
        try:
            feed(record(1), ending="hold")(connection)
        finally:
            gone.set()

    def tell(connection: socket.socket) -> None:
        answer(200, b"at once" if gone.wait(2) else b"not within 2 s")(connection)

    return [held, tell]


def _note_release(t: Trace) -> None:
    parts = urlsplit(t.url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", "/")
    t.note("connection released", connection.getresponse().read().decode())


@probe(GROUP, "closing the generator", fresh=_noted_when_gone)
def closing(t: Trace) -> None:
    stream = t.open(config=t.loud())
    t.got(next(stream))
    stream.close()
    _note_release(t)


@probe(GROUP, "leaving the loop with `break`, without keeping the generator", fresh=_noted_when_gone)
def leaving(t: Trace) -> None:
    t.run(1)
    _note_release(t)


TWO = feed(record(1), 0.5, record(2), ending="hold")


@probe(GROUP, "an exception thrown into the generator", TWO)
def throwing_into(t: Trace) -> None:
    _throw(t, KeyError("mine"))


@probe(GROUP, "a `requests` error thrown into the generator", TWO)
def throwing_library_error(t: Trace) -> None:
    import requests

    _throw(t, requests.ConnectionError("mine"))


def _throw(t: Trace, error: Exception) -> None:
    stream = t.open()
    t.got(next(stream))
    try:
        t.note("swallowed, goes on with record", stream.throw(error)["data"]["id"])
    except BaseException as raised:  # noqa: BLE001 - it is what is observed
        t.note("raises", describe(raised))


def _interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


@probe(GROUP, "Ctrl-C while it waits to reconnect", answer(503))
def interrupt_in_backoff(t: Trace) -> None:
    begins: list[float] = []

    def soon(*_: object) -> None:
        begins.append(time.monotonic())
        _interrupt_after(0.5)

    t.run(config=t.quiet(initial_backoff=12.0, max_backoff=12.0, on_reconnect=soon))
    t.took(time.monotonic() - begins[0], 6, "at once", "late")


@probe(GROUP, "Ctrl-C while the feed is silent", feed(record(1), ending="hold"))
def interrupt_in_silence(t: Trace) -> None:
    stream = t.open(config=t.quiet())
    t.got(next(stream))
    begin = time.monotonic()
    _interrupt_after(0.5)
    try:
        t.got(next(stream))
    except BaseException as error:  # noqa: BLE001 - it is what is observed
        t.note(f"raises {describe(error)}")
    t.took(time.monotonic() - begin, 6, "at once", "late")


@probe(GROUP, "`SystemExit` raised by a callback", feed(record(1), ending="cut"), FATAL)
def system_exit(t: Trace) -> None:
    def leave(_: object) -> None:
        raise SystemExit

    t.run(config=t.quiet(on_disconnect=leave))
