"""Ends, errors, statuses, and what is waited for."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any

from observe import Trace
from probes import FATAL, probe
from wire import Reply, answer, feed, record, records

GROUP = "Failures and retries"
REFUSED = "http://127.0.0.1:1/"
BUSY = b'{"title":"Too Many Requests"}'
TOO_MANY = b'{"title":"ConnectionException","connection_issue":"TooManyConnections"}'


@probe(GROUP, "a clean end", feed(record(1)), feed(record(2)), FATAL)
def regular_end(t: Trace) -> None:
    t.run(config=t.loud())


@probe(
    GROUP, "a connection that breaks", feed(record(1), ending="cut"), feed(record(2), ending="reset"), FATAL
)
def breaks(t: Trace) -> None:
    t.run(config=t.loud())


@probe(GROUP, "a refused connection")
def refused(t: Trace) -> None:
    t.run(url=REFUSED, config=t.loud())


@probe(GROUP, "`max_retries=0`", feed(record(1), ending="cut"), FATAL)
def no_retries(t: Trace) -> None:
    t.run(config=t.config(max_retries=0))


@probe(GROUP, "`max_retries=-1`", *[answer(503)] * 5, feed(record(1)), FATAL)
def endless_retries(t: Trace) -> None:
    t.run(1, config=t.config(max_retries=-1, initial_backoff=0.05, max_backoff=0.05))


@probe(GROUP, "delays: initial 0.05, multiplier 2, maximum 0.4", *[answer(503)] * 5, FATAL)
def delays(t: Trace) -> None:
    t.run(config=t.config(max_retries=9))


@probe(GROUP, "jitter at the maximum", *[answer(503)] * 12, FATAL)
def jitter(t: Trace) -> None:
    waits: list[float] = []
    config = t.quiet(
        jitter=True,
        initial_backoff=0.01,
        max_backoff=0.01,
        max_retries=20,
        on_reconnect=lambda _, delay: waits.append(delay),
    )
    t.run(config=config)
    t.note("never above max_backoff" if max(waits) <= 0.01 else "above max_backoff")


@probe(GROUP, "a thousand failed attempts")
def overflow(t: Trace) -> None:
    config = t.quiet(max_retries=1100, initial_backoff=1e-6, max_backoff=1e-5)
    t.run(url=REFUSED, config=config)


@probe(
    GROUP,
    "a server that accepts and closes connections, `max_retries=3`",
    *[feed(ending="cut")] * 4,
    FATAL,
)
def accepts_and_drops(t: Trace) -> None:
    t.run(config=t.config(max_retries=3))


@probe(
    GROUP,
    "delays after data has arrived",
    answer(503),
    answer(503),
    feed(record(1), ending="cut"),
    feed(record(2)),
    FATAL,
)
def reset_by_data(t: Trace) -> None:
    t.run(2)


@probe(GROUP, "retries exhausted: contents of the last error", answer(503, b"busy", x_served_by="a"))
def exhausted(t: Trace) -> None:
    error = t.run(config=t.quiet(max_retries=1))
    t.note("status", getattr(error, "status_code", None))
    t.note("body", getattr(error, "response_body", None))
    t.note(
        "a cause"
        if error is not None and (error.__cause__ or getattr(error, "original_exception", None))
        else "no cause"
    )


@probe(GROUP, "the exception behind a 404", answer(404, b"none"))
def original_of_a_refusal(t: Trace) -> None:
    error: Any = t.run(config=t.quiet())
    original = error.original_exception
    t.note(type(original).__name__, original.response.status_code, original.response.text)


@probe(GROUP, "the exceptions behind a broken and a refused connection", feed(record(1), ending="cut"), FATAL)
def originals_of_breaks(t: Trace) -> None:
    found: list[Any] = []
    t.run(config=t.quiet(on_error=found.append))
    t.run(url=REFUSED, config=t.quiet(max_retries=0, on_error=found.append))
    t.note(", ".join(type(error.original_exception).__name__ for error in found))


@probe(GROUP, "headers of the answer in the error", answer(404, b"none", x_request_id="abc"))
def error_headers(t: Trace) -> None:
    error = t.run(config=t.quiet())
    t.note(dict(getattr(error, "headers", None) or {}).get("x-request-id", "not there"))


def _status(status: int) -> Reply:
    return answer(status, b'{"title":"no"}')


@probe(GROUP, "400, 403, 404, 410", *(_status(status) for status in (400, 403, 404, 410)))
def fatal_statuses(t: Trace) -> None:
    for _ in range(4):
        t.run(config=t.quiet())


@probe(
    GROUP, "500, 502, 503, 504", *(_status(status) for status in (500, 502, 503, 504)), feed(record(1)), FATAL
)
def server_errors(t: Trace) -> None:
    t.run(1, config=t.config(max_retries=9))


@probe(GROUP, "401, at the start", _status(401))
def status_401(t: Trace) -> None:
    error = t.run()
    t.note("body", getattr(error, "response_body", None))


@probe(GROUP, "401, after records", feed(record(1), ending="cut"), _status(401), feed(record(2)), FATAL)
def status_401_later(t: Trace) -> None:
    t.run(2)


@probe(GROUP, "408", _status(408), feed(record(1)), FATAL)
def status_408(t: Trace) -> None:
    t.run(1)


@probe(GROUP, "503 with `Retry-After: 1`", answer(503, Retry_After="1"), feed(record(1)), FATAL)
def retry_after_503(t: Trace) -> None:
    t.run(1)


@probe(GROUP, "429", answer(429, BUSY), feed(record(1)), FATAL)
def status_429(t: Trace) -> None:
    t.run(1)


@probe(GROUP, "429 with `Retry-After: 1`", answer(429, BUSY, Retry_After="1"), feed(record(1)), FATAL)
def retry_after_429(t: Trace) -> None:
    t.run(1)


def _until_reset() -> list[Reply]:
    def reply(connection: Any) -> None:
        refusal = answer(429, BUSY, x_rate_limit_reset=str(int(time.time()) + 3), x_rate_limit_remaining="0")
        refusal(connection)

    return [reply, feed(record(1)), FATAL]


@probe(GROUP, "429 with `x-rate-limit-reset` in 3 s", fresh=_until_reset)
def rate_limit_reset(t: Trace) -> None:
    begin = time.monotonic()
    t.run(1, config=t.quiet())
    t.took(time.monotonic() - begin, 1.5, "long before the reset", "after the reset")


@probe(
    GROUP,
    "429 for too many connections, with the rate limit not exhausted",
    fresh=lambda: [
        answer(429, TOO_MANY, x_rate_limit_remaining="40", x_rate_limit_reset=str(int(time.time()) + 900)),
        feed(record(1)),
        FATAL,
    ],
)
def connection_limit(t: Trace) -> None:
    t.run(1)


@probe(GROUP, "silence longer than `timeout`, after a record", feed(record(1), ending="hold"), FATAL)
def read_timeout(t: Trace) -> None:
    t.run(config=t.config(timeout=0.5))


@probe(GROUP, "silence before the answer", feed(ending="hold"), FATAL)
def silence(t: Trace) -> None:
    t.run(config=t.config(timeout=0.5))


@probe(GROUP, "TLS to a server without TLS")
def tls(t: Trace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_speak_plainly, args=(listener,), daemon=True).start()
        t.run(url=f"https://127.0.0.1:{listener.getsockname()[1]}/")


def _speak_plainly(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(65536)


@probe(GROUP, "a proxy that refuses the connection")
def proxy(t: Trace) -> None:
    import requests

    session = requests.Session()
    session.proxies = {"http": REFUSED}
    t.run(session=session, url="http://example.invalid/")


@probe(GROUP, "a URL without a scheme")
def bad_url(t: Trace) -> None:
    t.run(url="example")


@probe(GROUP, "a redirect", answer(302, Location="/elsewhere"), feed(records(1)), FATAL)
def redirect(t: Trace) -> None:
    t.run(1)


@probe(GROUP, "an empty 200", answer(200), feed(record(1)), FATAL)
def empty(t: Trace) -> None:
    t.run(1)
