"""Subscriptions on a server that is killed: what was answered for is there, and no wake is lost."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from servers import ServerProcess
from subscribing import ACCEPTED, DONE, Api, Claim, Delivery, Reply, Subscribed, eventually, parsed, receiving

INTERRUPTED = (OSError, http.client.HTTPException)
CHAOS_WORKERS = 3  # of each subscription
CHAOS_SECONDS = 0.7  # between two kills
ENDS_WITHIN = 60.0


class Killed:
    """A server that is killed and started again on the same folder."""

    def __init__(self, start: Callable[..., ServerProcess], folder: Path) -> None:
        self._start, self._folder = start, folder
        self.server = self._started()
        self.api = Api(lambda: self.server.port)

    def _started(self) -> ServerProcess:
        return self._start(self._folder, webhook_allow_http_localhost=True)

    def again(self) -> None:
        self.server.kill()
        self.server = self._started()


@pytest.fixture
def killed(start_server, tmp_path) -> Killed:
    return Killed(start_server, tmp_path / "data")


def test_a_lease_survives(killed) -> None:
    api = killed.api
    one = api.pull("events/*")
    api.append("events/a", 1)
    held = one.claim("first")
    assert held.ack(events__a=api.tail("events/a")).status == 200
    api.append("events/b", 1)
    killed.again()
    assert one.refusal()["current_holder"] == "first"
    assert one.links()["events/a"] == api.tail("events/a")
    assert held.send("ack", done=True).json == {"ok": True, "next_wake": True}
    after = one.claim("second")
    assert after.generation == held.generation + 1
    killed.again()
    assert after.ack_all().json == {"ok": True, "next_wake": False}
    killed.again()
    assert one.refusal()["code"] == "NO_PENDING_WORK"


def test_a_lease_that_ended_meanwhile_is_over(killed) -> None:
    api = killed.api
    one = api.pull("events/*", lease_ttl_ms=1000)
    api.append("events/a", 1)
    held = one.claim()
    killed.server.kill()
    time.sleep(1.0)
    killed.again()
    assert [wake["generation"] for wake in one.wakes(2)] == [1, 2]
    assert held.ack_all().json["error"]["code"] == "FENCED"


def test_an_append_just_before_the_end_wakes(killed) -> None:
    api = killed.api
    named, globbed = api.pull(streams=["events/named"]), api.pull("events/*")
    for number in range(3):
        for path in ("events/named", f"events/new-{number}"):
            api.append(path, number)
        killed.again()
        for one in (named, globbed):
            assert len(one.wakes(number + 1)) >= number + 1
            held = one.claim()
            assert held.generation == number + 1
            assert held.ack_all().json == {"ok": True, "next_wake": False}


def test_a_back_off_survives_and_the_same_wake_is_delivered(killed) -> None:
    api = killed.api
    replies: list[Reply] = [(500, b"")]
    with receiving(lambda _: replies.pop(0) if replies else DONE) as receiver:
        one = api.webhook(receiver.url, "events/*")
        api.append("events/a", 1)
        first = receiver.next()
        eventually(one.shown, lambda shown: shown["status"] == "failed")
        killed.again()
        assert one.shown()["status"] == "failed"
        second = receiver.next()
        assert second.at - first.at > 0.75, "the pause goes on"
        for name in ("wake_id", "generation", "callback_token"):
            assert first.body[name] == second.body[name]
        eventually(one.links, lambda links: links == {"events/a": api.tail("events/a")})


def test_a_delivery_under_way_is_made_again(killed) -> None:
    api = killed.api
    going_on = threading.Event()

    def answer(delivery: Delivery) -> Reply:
        going_on.wait(20)
        return ACCEPTED

    with receiving(answer) as receiver:
        one = api.webhook(receiver.url, "events/*")
        api.append("events/a", 1)
        first = receiver.next()
        killed.again()
        second = receiver.next()
        going_on.set()
        assert first.body["wake_id"] == second.body["wake_id"]
        assert Claim(one, first.body).ack_all().json == {"ok": True, "next_wake": False}
        killed.again()
        assert one.links() == {"events/a": api.tail("events/a")}


# -- everything at once


class Chaos:
    """Appends, workers and webhooks, while the server is killed; what was handled, and by which lease."""

    def __init__(self, killed: Killed, seed: int) -> None:
        self.killed, self.random = killed, random.Random(seed)
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.appended: dict[str, list[int]] = {}
        self.handled: dict[str, set[tuple[str, int]]] = {}
        self.leases: dict[tuple[str, int], str] = {}
        self.errors: list[BaseException] = []

    @contextlib.contextmanager
    def running(self, *work: Callable[[], None]) -> Iterator[None]:
        threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in work]
        for thread in threads:
            thread.start()
        yield
        self.stopping.set()
        for thread in threads:
            thread.join(ENDS_WITHIN)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]

    def _run(self, work: Callable[[], None]) -> None:
        try:
            while not self.stopping.is_set():
                with contextlib.suppress(*INTERRUPTED):
                    work()
                time.sleep(0.005)
        except BaseException as error:  # noqa: BLE001 - raised by ``running``
            self.errors.append(error)

    def append(self, path: str, numbers: Iterator[int]) -> Callable[[], None]:
        def work() -> None:
            number = next(numbers)
            api = self.killed.api
            answer = api.call("POST", path, [number])
            if answer.status == 404:
                answer = api.call("PUT", path, [number])
            assert answer.status in {200, 201, 204}, answer
            if answer.status != 200:  # a repeated creation stored nothing
                self.appended.setdefault(path, []).append(number)

        return work

    def handle(self, name: str, claim: dict[str, Any]) -> list[dict[str, str]]:
        """Read what is pending, and return the acknowledgements."""
        acks = []
        for stream in claim["streams"]:
            if stream["has_pending"]:
                path = stream["path"]
                read = self.killed.api.call("GET", f"{path}?offset={stream['acked_offset']}")
                assert read.status == 200, read
                with self.lock:
                    self.handled.setdefault(name, set()).update((path, number) for number in read.json)
                acks.append({"stream": path, "offset": read.next_offset})
        return acks

    def holds(self, name: str, generation: int, holder: str) -> None:
        with self.lock:
            known = self.leases.setdefault((name, generation), holder)
            assert known == holder, f"{known} and {holder} hold generation {generation} of {name}"

    def pull(self, one: Subscribed, worker: str) -> Callable[[], None]:
        chance = random.Random(worker)

        def work() -> None:
            claimed = self.killed.api.call("POST", f"{one.path}/claim", {"worker": worker})
            if claimed.status == 409:
                return
            assert claimed.status == 200, claimed
            held = Claim(one, parsed(claimed))
            self.holds(one.name, held.generation, worker)
            if chance.random() < 0.1:
                return  # it dies
            acks = self.handle(one.name, held.got)
            if chance.random() < 0.2:
                held.send("ack")
            report = held.send("ack", acks=acks, done=True)
            assert report.status in {200, 409}, report

        return work

    def deliver(self, delivery: Delivery) -> Reply:
        body = delivery.body
        chance = self.random.random()
        if chance < 0.2:
            return 500, b""
        try:
            self.holds(body["subscription_id"], body["generation"], body["wake_id"])
            self.handle(body["subscription_id"], body)
        except INTERRUPTED:
            return 503, b""
        except BaseException as error:  # noqa: BLE001 - raised by ``running``
            self.errors.append(error)
        return DONE


@pytest.mark.timeout(600)
def test_every_record_is_handled_through_all_kills(killed, pytestconfig) -> None:
    kills = pytestconfig.getoption("--subscription-kills")
    each = pytestconfig.getoption("--subscription-count")
    chaos = Chaos(killed, 1)
    paths = [f"events/{letter}" for letter in "abc"]
    with receiving(chaos.deliver) as receiver:
        pulled = [killed.api.pull("events/*", lease_ttl_ms=1000) for _ in range(each)]
        hooked = [killed.api.webhook(receiver.url, "events/*", lease_ttl_ms=1000) for _ in range(each)]
        appends = [chaos.append(path, count()) for path in paths]
        workers = [chaos.pull(one, f"{one.name}-{n}") for one in pulled for n in range(CHAOS_WORKERS)]
        cursors: dict[str, dict[str, str]] = {}
        with chaos.running(*workers):
            with contextlib.ExitStack() as appending:
                writers = Chaos(killed, 2)
                writers.appended = chaos.appended
                appending.enter_context(writers.running(*appends))
                for _ in range(kills):
                    time.sleep(CHAOS_SECONDS)
                    killed.again()
                    for one in (*pulled, *hooked):
                        links = one.links()
                        before = cursors.get(one.name, {})
                        assert all(_key(links[path]) >= _key(offset) for path, offset in before.items())
                        cursors[one.name] = links
            tails = {path: killed.api.tail(path) for path in paths}
            for one in (*pulled, *hooked):
                eventually(one.links, lambda links: links == tails)
        expected = {(path, number) for path, numbers in chaos.appended.items() for number in numbers}
        assert expected
        for one in (*pulled, *hooked):
            assert expected <= chaos.handled[one.name]


def _key(offset: str) -> str:
    return "" if offset == "-1" else offset
