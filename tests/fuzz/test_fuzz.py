"""Raw requests of every kind against real servers: each is answered or its connection closed, never with a 500, and
nothing that others stored is touched.

pytest tests/fuzz --fuzz-requests 50000          more of them
pytest tests/fuzz --fuzz-seed 17                 a seed again
pytest tests/fuzz --fuzz-seed 17 --fuzz-only 42  one case of it
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fuzz_cases import Case, Sent, make_case
from fuzz_values import PATHS, Learned, stream_type
from fuzz_wire import HangError, NotHTTPError, RawAnswer, Wire

from durable_streams import DurableStreamError, stream

SERVERS = [(interface, store) for interface in ("rsgi", "asgi") for store in ("sqlite", "memory")]
AT_ONCE = 8
SHOWN = 5  # failures, before no more are looked for
WITHIN = 30.0  # seconds for all of one case; the longest takes a fraction of one on a machine at rest
MAX_BODY = 1 << 18
SETTINGS = {
    "long_poll_timeout": 0.05,
    "sse_max_age": 0.1,
    "sse_heartbeat": 0.03,
    "max_body": MAX_BODY,
    "chunk_size": 4096,
    "body_timeout": 2.0,
    "keep_alive": 2.0,
}
OURS = "x-content-type-options"  # every answer of the application has it
STATUSES = {200, 201, 204, 304, 400, 403, 404, 405, 408, 409, 410, 413, 415}
BEFORE_US = {
    400,
    404,
    405,
    408,
    411,
    413,
    414,
    417,
    421,
    431,
    501,
    505,
}  # what HTTP libraries answer by themselves
SINGLE = (
    "cache-control",
    "content-length",
    "content-type",
    "etag",
    "location",
    "stream-closed",
    "stream-next-offset",
)
ERROR_CODE = re.compile(r"[A-Z][A-Z_]+")


@pytest.mark.timeout(0)  # each case has a limit of its own
@pytest.mark.parametrize("number", range(len(SERVERS)), ids=["-".join(one) for one in SERVERS])
def test_every_request_is_answered_and_harms_nobody(
    number: int, start_server: Callable[..., Any], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    interface, store = SERVERS[number]
    folder = tmp_path / "data" if store == "sqlite" else None
    server = start_server(folder, interface=interface, **SETTINGS)
    for path in PATHS:
        server.create(path.decode(), stream_type(path).decode())
    fuzzer = Fuzzer(server.port, interface, seed_of(pytestconfig))
    with Neighbour(server) as neighbour:
        fuzzer.run(numbers_of(pytestconfig, number))
    assert server.alive
    neighbour.check(server)
    read_everything(server.root)
    if folder is not None:
        server.kill()
        neighbour.check(start_server(folder, interface=interface, **SETTINGS))
    else:
        server.terminate()
    assert not re.search(rb"Traceback|failed", server.error_output), server.error_output.decode()


def seed_of(config: pytest.Config) -> int:
    given: int | None = config.getoption("--fuzz-seed")
    return time.time_ns() % (1 << 32) if given is None else given


def numbers_of(config: pytest.Config, server: int) -> range:
    """Return the numbers of one server's cases."""
    only: int | None = config.getoption("--fuzz-only")
    if only is not None:
        return range(only, only + 1)
    share = -(-config.getoption("--fuzz-requests") // len(SERVERS))
    return range(server * share, (server + 1) * share)


class Fuzzer:
    """Sends the cases of a seed, several at a time, and judges what comes back."""

    def __init__(self, port: int, interface: str, seed: int) -> None:
        self._port = port
        self._interface = interface
        self._seed = seed
        self._learned = Learned()
        self._failures: list[str] = []
        self.statuses: Counter[int] = Counter()

    def run(self, numbers: range) -> None:
        """Send them all; the first failures say how to repeat them."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._one, numbers))
        if self._failures:
            pytest.fail("\n\n".join(self._failures))

    def _one(self, number: int) -> None:
        if len(self._failures) >= SHOWN:
            return
        case = make_case(self._seed, number, self._learned, MAX_BODY)
        try:
            self._send(case)
        except (AssertionError, HangError, NotHTTPError, OSError, ValueError) as error:
            again = f"--fuzz-seed {self._seed} --fuzz-only {number}"
            self._failures.append(f"{type(error).__name__}: {error}\n{again}\n{case}")

    def _send(self, case: Case) -> None:
        wire = Wire(self._port, WITHIN)
        try:
            for number, part in enumerate(case.parts):
                if number:
                    time.sleep(0.001)
                wire.send(part)
            if case.ending == "reset":
                wire.reset()
                return
            # Uvicorn waits for the rest of a request's head without end.
            if case.ending == "half-close" or (case.ending == "stall" and self._interface == "asgi"):
                wire.half_close()
            if case.requests:
                self._judge(wire, case)
            else:
                self._judge_broken(wire)
        finally:
            wire.close()

    def _judge_broken(self, wire: Wire) -> None:
        """Whatever is answered, it ends, and it is no failure of ours."""
        while (answer := wire.answer("GET")) is not None:
            self.statuses[answer.status] += 1
            assert answer.status < 500 or answer.status in BEFORE_US, answer

    def _judge(self, wire: Wire, case: Case) -> None:
        for number, sent in enumerate(case.requests):
            answer = wire.answer(sent.method)
            if answer is None:
                excused = any(one.odd or one.large for one in case.requests[: number + 1])
                assert excused or case.ending == "half-close", (
                    f"request {number} has no answer, and the one before it did not say that it was the last"
                )
                return
            self.statuses[answer.status] += 1
            if not answer.whole:
                excused = case.ending == "half-close" or sent.odd
                assert excused or self._is_gone(sent, answer), answer
                return
            judge_answer(sent, answer)
            self._learned.remember(answer.header("stream-next-offset"), answer.header("etag"))
            if "close" in (answer.header("connection") or "").lower():
                return

    def _is_gone(self, sent: Sent, answer: RawAnswer) -> bool:
        """Whether an answer was cut off because its stream was deleted, or expired, while it was read."""
        wire = Wire(self._port, WITHIN)
        try:
            where = sent.content.split(b" ")[1].split(b"?")[0]
            wire.send(b"HEAD " + where + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            now = wire.answer("HEAD")
        finally:
            wire.close()
        assert now is not None
        return now.status in (404, 410) or stream_of(now) != stream_of(answer)


def stream_of(answer: RawAnswer) -> str:
    """Return the part of an ETag that says which stream it is of: another one at the same path has another."""
    return (answer.header("etag") or "").rpartition(".")[0].rpartition(".")[0]


def judge_answer(sent: Sent, answer: RawAnswer) -> None:
    """Check what every answer to a request that is HTTP has to be."""
    assert not [name for name in SINGLE if len(answer.headers.get(name, [])) > 1], answer
    if OURS not in answer.headers:
        assert sent.odd, answer
        assert answer.status in BEFORE_US, answer
        return
    assert answer.status in STATUSES, answer
    if answer.status >= 400:
        judge_refusal(sent, answer)
    elif (
        sent.method == "GET" and answer.status == 200 and answer.header("content-type") == "application/json"
    ):
        assert "stream-next-offset" not in answer.headers or isinstance(loads(answer.body), list), answer


def judge_refusal(sent: Sent, answer: RawAnswer) -> None:
    """Check that an error has our small JSON body (protocol section 7)."""
    assert answer.header("content-type") == "application/json", answer
    assert "no-store" in (answer.header("cache-control") or ""), answer
    if sent.method == "HEAD":
        return
    error = json.loads(answer.body)["error"]
    assert set(error) == {"code", "message"}, answer
    assert ERROR_CODE.fullmatch(error["code"]), answer
    assert 0 < len(error["message"]) < 600, answer


def loads(content: bytes) -> object:
    """Decode JSON, numbers left as they are."""
    try:
        return json.loads(content, parse_int=str, parse_float=str)
    except ValueError as error:
        raise AssertionError(f"no JSON: {error}: {content[:300]!r} … {content[-300:]!r}") from error


def read_everything(root: str) -> None:
    """Whatever a server took, it and our client can give back."""
    for path in PATHS:
        try:
            with stream(f"{root}/{path.decode()}", live=False) as response:
                if response.content_type == "application/json":
                    response.read_json()
                else:
                    response.read_bytes()
        except DurableStreamError as error:
            if error.status not in (404, 410):
                raise


class Neighbour:
    """Writes to two streams for as long as the fuzzer runs, and knows what they have to hold."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._stop = threading.Event()
        self._messages: list[bytes] = []
        self._bytes = b""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        server.create("neighbour/json", "application/json")
        server.create("neighbour/bytes")

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self, server: Any) -> None:
        """Compare what a server has stored, byte by byte, with what was written."""
        if self._error is not None:
            raise self._error
        assert self._messages
        assert server.read_all("neighbour/bytes") == self._bytes
        stored = server.read_all("neighbour/json").replace(b"][", b",")  # one array for each answer
        assert stored == b"[" + b",".join(self._messages) + b"]"

    def _run(self) -> None:
        try:
            for number in count():
                self._write(number)
                if self._stop.wait(0.005):
                    return
        except BaseException as error:  # noqa: BLE001 - `check` raises it
            self._error = error

    def _write(self, number: int) -> None:
        message = json.dumps({"n": number, "text": "流\r\n" * (number % 5)}).encode()
        part = bytes([number % 256]) * (number % 300 + 1)
        stamp = {"producer_id": "neighbour", "producer_epoch": "0", "producer_seq": str(number)}
        for name, content, kind in (
            ("json", message, "application/json"),
            ("bytes", part, "application/octet-stream"),
        ):
            answer = self._server.append(f"neighbour/{name}", content, kind, **stamp)
            assert answer.status == 200, answer
        self._messages.append(message)
        self._bytes += part
