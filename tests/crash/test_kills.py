"""A server that is killed at random moments and started again, under writers and readers that never give up.

What was acknowledged is there: once, in order, at the offset that was acknowledged. What a reader saw stays true.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durable_streams.protocol.offsets import parse_offset

BYTES = "application/octet-stream"
JSON = "application/json"
PAUSE = 0.01  # seconds between attempts while there is no server
WAITS = 10.0  # seconds for one answer


class Place:
    """Where the server is now; no port while it is down."""

    def __init__(self) -> None:
        self.port: int | None = None
        self.stopping = threading.Event()


class Worker(threading.Thread):
    """A thread that talks to a server that comes and goes; what it raises fails the test."""

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(daemon=True)
        self.place = place
        self.random = random.Random(seed)
        self.error: BaseException | None = None
        self.interruptions = 0
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001 - shown by ``finish``
            self.error = error
        finally:
            self._disconnect()

    def work(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        self.join(60)
        assert not self.is_alive(), f"{self} does not end"
        if self.error is not None:
            raise AssertionError(f"{self} failed: {self.error!r}") from self.error

    def attempt(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict, bytes]:
        """Send one request once; OSError or HTTPException if the server went away."""
        port = self.place.port
        if port is None:
            time.sleep(PAUSE)
            raise ConnectionRefusedError
        if self._connection is None or self._connection.port != port:
            self._disconnect()
            self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAITS)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            self._connection.request(method, f"/v1/stream/{path}", body, names)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self.interruptions += 1
            self._disconnect()
            time.sleep(PAUSE)
            raise
        return response.status, {k.lower(): v for k, v in response.getheaders()}, content

    def insist(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict, bytes]:
        """Send one request until it is answered."""
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.attempt(method, path, body, **headers)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Producer(Worker):
    """An idempotent producer: repeats every request until it is acknowledged."""

    def __init__(self, place: Place, seed: int, stream: str, content_type: str) -> None:
        super().__init__(place, seed)
        self.stream = stream
        self.content_type = content_type
        self.identity = f"producer-{seed}"
        self.sent: list[bytes] = []
        self.acknowledged: dict[
            int, str
        ] = {}  # sequence number to offset, where the first attempt was answered
        self.duplicates = 0

    def work(self) -> None:
        while not self.place.stopping.is_set():
            seq = len(self.sent)
            padding = "x" * self.random.choice([0, 10, 100, 3000, 20_000])
            body = json.dumps([self.identity, seq, padding]).encode()
            if self.content_type == JSON:
                body = b"[" + body + b"]"  # one message, itself an array
            self.sent.append(body)
            status, headers, content = self.insist(
                "POST",
                self.stream,
                body,
                content_type=self.content_type,
                producer_id=self.identity,
                producer_epoch="0",
                producer_seq=str(seq),
            )
            assert status in {200, 204}, (status, content)
            assert headers["producer-seq"] == str(seq)
            if status == 200:
                self.acknowledged[seq] = headers["stream-next-offset"]
            else:
                self.duplicates += 1


class Appender(Worker):
    """Plain appends: what was answered is there once, what was not may be."""

    def __init__(self, place: Place, seed: int, stream: str) -> None:
        super().__init__(place, seed)
        self.stream = stream
        self.acknowledged: dict[int, str] = {}
        self.sent = 0

    def work(self) -> None:
        while not self.place.stopping.is_set():
            number = self.sent
            self.sent += 1
            body = b"<%06d%s>" % (number, b"." * self.random.choice([0, 50, 5000]))
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, headers, content = self.attempt("POST", self.stream, body, content_type=BYTES)
                assert status == 204, (status, content)
                self.acknowledged[number] = headers["stream-next-offset"]


class Lives(Worker):
    """Creates, closes, forks and deletes streams, and remembers what was acknowledged."""

    def __init__(self, place: Place, seed: int) -> None:
        super().__init__(place, seed)
        self.expected: dict[str, bytes | None] = {}  # None: deleted

    def work(self) -> None:
        number = 0
        while not self.place.stopping.is_set():
            name, fork = f"life/{number}", f"life/{number}/fork"
            content = b"first %d." % number
            number += 1
            status, _, _ = self.insist("PUT", name, content, content_type=BYTES)
            assert status in {200, 201}  # 200: the first attempt was stored, its answer lost
            self.expected[name] = content
            status, _, _ = self.insist("POST", name, None, stream_closed="true")
            assert status == 204
            if number % 2:
                status, _, answer = self.insist("PUT", fork, None, stream_forked_from=f"/v1/stream/{name}")
                assert status in {200, 201}, (status, answer)
                self.expected[fork] = content
            if number % 3 == 0:
                status, _, _ = self.insist("DELETE", name)
                assert status in {204, 404, 410}
                del self.expected[name]
                if number % 2 == 0:
                    self.expected[name] = None


class Follower(Worker):
    """Reads a stream by long-poll from the beginning, through every restart."""

    def __init__(self, place: Place, seed: int, stream: str) -> None:
        super().__init__(place, seed)
        self.stream = stream
        self.seen = b""

    def work(self) -> None:
        offset = "-1"
        while True:
            stopping = self.place.stopping.is_set()
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, headers, body = self.attempt("GET", f"{self.stream}?live=long-poll&offset={offset}")
                assert status in {200, 204}, (status, body)
                offset = headers["stream-next-offset"]
                self.seen += body
                if stopping and headers.get("stream-up-to-date") == "true":
                    return


class EventFollower(Worker):
    """Reads a JSON stream by server-sent events, from control event to control event."""

    def __init__(self, place: Place, seed: int, stream: str) -> None:
        super().__init__(place, seed)
        self.stream = stream
        self.seen: list[object] = []

    def work(self) -> None:
        offset = "-1"
        while not self.place.stopping.is_set():
            port = self.place.port
            if port is None:
                time.sleep(PAUSE)
                continue
            with contextlib.suppress(OSError, http.client.HTTPException):
                for messages, control in events(port, f"{self.stream}?live=sse&offset={offset}"):
                    self.seen.extend(messages)
                    offset = control["streamNextOffset"]
                    if self.place.stopping.is_set():
                        return


def events(port: int, path: str) -> Iterator[tuple[list[object], dict[str, str]]]:
    """Yield the messages that each control event commits, and that event."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAITS)) as connection:
        connection.request("GET", f"/v1/stream/{path}")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        kind, data, messages = "", b"", []
        for line in response:
            field, _, value = line.rstrip(b"\n").partition(b":")
            if field == b"event":
                kind = value.strip().decode()
            elif field == b"data":
                data += value
            elif not line.strip() and data:
                content = json.loads(data)
                data = b""
                if kind == "control":
                    yield messages, content
                    messages = []
                else:
                    messages.extend(content)


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    run_server: Callable,
    start_server: Callable,
    server_command: Callable,
) -> None:
    kills: int = request.config.getoption("--crash-kills")
    seed: int | None = request.config.getoption("--crash-seed")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"\n{kills} kills with --crash-seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    folder = tmp_path / "data"
    settings = {"long_poll_timeout": 1.0}
    place = Place()
    server = start_server(folder, **settings)
    for stream, content_type in (("bytes", BYTES), ("messages", JSON), ("plain", BYTES)):
        server.create(stream, content_type)
    place.port = server.port
    producers = [
        Producer(place, number, *(("bytes", BYTES), ("messages", JSON))[number % 2]) for number in range(4)
    ]
    appender, lives = Appender(place, 10, "plain"), Lives(place, 11)
    follower, listener = Follower(place, 12, "bytes"), EventFollower(place, 13, "messages")
    workers = [*producers, appender, lives, follower, listener]
    for worker in workers:
        worker.start()
    for number in range(kills):
        time.sleep(chance.uniform(0.01, 0.3))
        server.kill()
        place.port = None
        if number % 5 == 4:  # and once more before it is up
            server = run_server(server_command(folder, **settings))
            time.sleep(chance.uniform(0.0, 0.4))
            server.kill()
        server = start_server(folder, **settings)
        place.port = server.port
    time.sleep(0.3)
    place.stopping.set()
    for worker in workers:
        worker.finish()
    for restarted in (False, True):
        if restarted:
            assert server.terminate() == 0
            server = start_server(folder, **settings)
        check_bytes(server, producers, follower)
        check_messages(server, producers, listener)
        check_plain(server, appender)
        check_lives(server, lives)
    total = sum(len(producer.sent) for producer in producers)
    duplicates = sum(producer.duplicates for producer in producers)
    print(f"{total} requests by producers, {duplicates} answered as duplicates after a kill")  # noqa: T201
    assert total > kills
    assert sum(worker.interruptions for worker in workers) > 0


def check_bytes(server, producers: list[Producer], follower: Follower) -> None:  # noqa: ANN001
    content = server.read_all("bytes")
    assert content.startswith(follower.seen), "a reader saw what is not there any more"
    assert len(follower.seen) > 0
    decoder, position, records = json.JSONDecoder(), 0, []
    text = content.decode()
    while position < len(text):
        record, end = decoder.raw_decode(text, position)
        records.append((record[0], record[1], end))
        position = end
    for producer in producers:
        if producer.stream != "bytes":
            continue
        mine = [(seq, end) for name, seq, end in records if name == producer.identity]
        assert [seq for seq, _ in mine] == list(range(len(producer.sent))), "lost, doubled or out of order"
        for seq, offset in producer.acknowledged.items():
            assert parse_offset(offset) == mine[seq][1], "not at the offset that was acknowledged"
    assert len(records) == sum(len(producer.sent) for producer in producers if producer.stream == "bytes")


def check_messages(server, producers: list[Producer], listener: EventFollower) -> None:  # noqa: ANN001
    messages, offset = [], "-1"
    while True:
        read = server.request("GET", f"messages?offset={offset}")
        assert read.status == 200
        messages += read.json
        offset = read.next_offset
        if "stream-up-to-date" in read.headers:
            break
    keys = [(name, seq) for name, seq, _ in messages]
    assert len(set(keys)) == len(keys)
    assert messages[: len(listener.seen)] == listener.seen, "a reader saw what is not there any more"
    assert len(listener.seen) > 0
    for producer in producers:
        if producer.stream != "messages":
            continue
        assert [seq for name, seq in keys if name == producer.identity] == list(range(len(producer.sent)))
        some = random.Random(0).sample(sorted(producer.acknowledged), min(15, len(producer.acknowledged)))
        for seq in some:
            rest = server.request("GET", f"messages?offset={producer.acknowledged[seq]}").json
            following = keys.index((producer.identity, seq)) + 1
            assert rest[:1] == messages[following : following + 1], "not at the offset that was acknowledged"


def check_plain(server, appender: Appender) -> None:  # noqa: ANN001
    content = server.read_all("plain")
    numbers = [int(part[:6]) for part in content.replace(b"<", b"").split(b">") if part]
    assert numbers == sorted(set(numbers)), "doubled or out of order"
    assert set(appender.acknowledged) <= set(numbers), "lost"
    for number, offset in appender.acknowledged.items():
        end = parse_offset(offset)
        assert end is not None
        start = content.rindex(b"<", 0, end)
        assert content[start : start + 7] == b"<%06d" % number, "not at the offset that was acknowledged"
        assert content[end - 1 : end] == b">"


def check_lives(server, lives: Lives) -> None:  # noqa: ANN001
    assert lives.expected
    for name, content in lives.expected.items():
        read = server.request("GET", name)
        if content is None:
            assert read.status in {404, 410}, name
        else:
            assert (read.status, read.body) == (200, content), name
            closed = read.headers.get("stream-closed") == "true"
            assert closed or name.endswith("/fork"), name
