"""Relay and server are killed at random while records flow: nothing is lost, nothing comes twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORDS = 6000


class Growing(threading.Thread):
    """A file that is written while it is relayed, a few lines at a time, some lines torn between two writes."""

    def __init__(self, path: Path, lines: list[bytes], seed: int) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.random = random.Random(seed)
        self.content = b"".join(line + b"\n" for line in lines)
        self.written = 0
        self.limit = 0
        path.touch()

    def allow(self, share: float) -> None:
        self.limit = int(len(self.content) * share)

    def run(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            while self.written < len(self.content):
                room = self.limit - self.written
                if room > 0:
                    size = min(room, self.random.randrange(1, 4000))
                    file.write(self.content[self.written : self.written + size])
                    self.written += size
                time.sleep(0.001)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> tuple[int, int]:
    """How often to kill, and the seed."""
    given = request.config.getoption("--relay-seed", None)
    seed = given if given is not None else random.randrange(1 << 32)
    print(f"--relay-seed={seed}")  # noqa: T201 - shown where a test fails
    return request.config.getoption("--relay-kills", 4), seed


def kill_at_random(
    home: Any, watch: Any, start: Callable[[], Any], more: Callable[[float], None], settings: tuple[int, int]
) -> Any:
    """Kill the relay, and every second time the server, while records arrive; return the last relay.

    ``more`` lets the source go on up to a share of its records; ``settings``: how many kills, and the seed.
    """
    kills, chance = settings[0], random.Random(settings[1])
    target = home.url("copy")
    relay = start()
    for number in range(kills):
        before = watch.tail(target)
        more((number + 1) / (kills + 1))
        watch.until(lambda before=before: watch.tail(target) > before, "progress")
        time.sleep(chance.random() * 0.05)
        relay.kill()
        if number % 2:
            home.server.kill()
            home.server.start()
        relay = start()
        if chance.random() < 0.3:  # while it looks at what is there
            time.sleep(chance.random() * 0.5)
            relay.kill()
            relay = start()
    more(1.0)
    return relay


@pytest.mark.parametrize("equal", [False, True], ids=["different records", "equal records"])
def test_a_file_that_grows(home: Any, watch: Any, settings: tuple[int, int], equal: bool) -> None:
    values = [number % 3 if equal else number for number in range(RECORDS)]
    source = Growing(home.folder / "in.ndjson", [b'{"n": %d}' % value for value in values], settings[1])
    source.start()
    target = home.url("copy")

    def start() -> Any:
        return home.relay("in.ndjson", target, "--follow", "--state", "relay.json")

    relay = kill_at_random(home, watch, start, source.allow, settings)
    source.join()
    watch.until(lambda: len(watch.messages(target)) >= RECORDS, "the end")
    relay.stop()
    assert [message["n"] for message in watch.messages(target)] == values


def test_a_server_that_is_killed(home: Any, watch: Any, settings: tuple[int, int]) -> None:
    source = Growing(home.folder / "in.ndjson", [b"%d" % number for number in range(RECORDS)], settings[1])
    source.start()
    relay = home.relay("in.ndjson", home.url("copy"), "--follow", "--state", "relay.json")
    kills, chance = settings[0], random.Random(settings[1])
    for number in range(kills):
        source.allow((number + 1) / (kills + 1))
        before = watch.tail(home.url("copy"))
        watch.until(lambda before=before: watch.tail(home.url("copy")) > before, "progress")
        time.sleep(chance.random() * 0.05)
        home.server.kill()
        home.server.start()
    source.allow(1.0)
    watch.until(lambda: len(watch.messages(home.url("copy"))) >= RECORDS, "the end")
    assert relay.stop()["records"] == RECORDS
    assert watch.messages(home.url("copy")) == list(range(RECORDS))


def test_a_durable_stream_as_source(home: Any, watch: Any, settings: tuple[int, int]) -> None:
    from durable_streams import DurableStream, SyncIdempotentProducer

    url, target = home.url("source"), home.url("copy")
    DurableStream.create(url, content_type="application/json")
    chance = random.Random(settings[1])
    written, ended = [0], threading.Event()

    def write() -> None:
        with SyncIdempotentProducer(url, "writer", auto_claim=True) as producer:
            while not ended.is_set():
                for _ in range(chance.randrange(1, 30)):
                    producer.append(written[0])
                    written[0] += 1
                time.sleep(0.003)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    relay = kill_at_random(home, watch, lambda: home.relay(url, target), lambda _share: None, settings)
    ended.set()
    writer.join()
    watch.until(lambda: len(watch.messages(target)) >= written[0], "the end")
    relay.stop()
    assert watch.messages(target) == list(range(written[0]))


def test_a_feed_that_cannot_be_resumed_but_has_ids(
    home: Any, watch: Any, flaky_feed: Any, settings: tuple[int, int]
) -> None:
    feed = flaky_feed([{"data": {"id": str(number)}} for number in range(RECORDS)], settings[1])
    target = home.url("copy")

    def start() -> Any:
        return home.relay(feed.url, target, "--id-field", "data.id", "--backoff", "0.05")

    relay = kill_at_random(home, watch, start, lambda share: feed.allow(int(RECORDS * share)), settings)
    watch.until(lambda: len(watch.messages(target)) >= RECORDS, "the end")
    relay.stop()
    counts = Counter(message["data"]["id"] for message in watch.messages(target))
    assert (len(counts), max(counts.values())) == (RECORDS, 1)
