"""Subscriptions on two gateways: one lease, one delivery, whichever gateway is asked, and one of them may die."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from subscribing import ACCEPTED, DONE, Api, Claim, Delivery, Reply, Subscribed, eventually, parsed, receiving

from durable_streams.protocol.commands import Append, Create
from durable_streams.protocol.subscription import configure, new_subscription
from durable_streams.server.subscriptions import engine as engines
from durable_streams.stores.jetstream import JetStreamConfig, JetStreamStore

WEBHOOKS = ("--webhook-allow-http-localhost",)
CLAIMS = 8
_folders = count()


@pytest.fixture
def gateways(nats_cluster, gateway) -> list[Any]:
    """Give two gateways on three NATS servers."""
    return [gateway(nats_cluster, *WEBHOOKS) for _ in range(2)]


@pytest.fixture
def apis(gateways) -> list[Api]:
    return [Api(lambda one=one: one.port) for one in gateways]


def through(of: Subscribed, api: Api) -> Subscribed:
    """Return the same subscription, asked for at another gateway."""
    other = object.__new__(Subscribed)
    other.api, other.name, other.asked, other.path, other.made = api, of.name, of.asked, of.path, of.made
    return other


def test_of_many_that_claim_at_both_gateways_one_gets_the_lease(apis) -> None:
    one, two = apis
    made = one.pull("events/*")
    for turn in range(3):
        apis[turn % 2].append("events/a", turn)
        with ThreadPoolExecutor(CLAIMS) as threads:
            answers = list(
                threads.map(
                    lambda n: apis[n % 2].call("POST", f"{made.path}/claim", {"worker": f"w{n}"}),
                    range(CLAIMS),
                )
            )
        assert sorted(answer.status for answer in answers) == [200] + [409] * (CLAIMS - 1)
        held = Claim(through(made, two), next(dict(a.json) for a in answers if a.status == 200))
        assert held.ack_all().json == {"ok": True, "next_wake": False}
        assert made.links() == through(made, two).links() == {"events/a": one.tail("events/a")}


def test_what_one_gateway_does_the_other_knows(apis) -> None:
    one, two = apis
    made = one.pull("events/*", lease_ttl_ms=600_000)
    assert two.call("PUT", made.path, made.asked).status == 200
    # A stream that comes at the other gateway, just after the subscription.
    two.append("events/a", 1)
    assert made.wakes()[0]["stream"] == "events/a"
    held = through(made, two).claim("first")
    one.append("events/a", 2)
    assert made.refusal()["current_holder"] == "first"
    assert held.ack_all().json == {"ok": True, "next_wake": True}
    assert made.claim("second").generation == 2
    assert parsed(held.ack_all())["error"]["code"] == "FENCED"
    through(made, two).delete()
    assert one.call("GET", made.path).status == 404
    again = one.call("PUT", made.path, made.asked)
    assert again.status == 201
    assert two.call("GET", made.path).status == 200


def test_a_wake_is_delivered_once(apis) -> None:
    with receiving(DONE) as receiver:
        made = apis[0].webhook(receiver.url, "events/*")
        for number in range(6):
            apis[number % 2].append("events/a", number)
            eventually(made.links, lambda links: links == {"events/a": apis[0].tail("events/a")})
        generations = []
        while not receiver.received.empty():
            generations.append(receiver.next().body["generation"])
        assert generations == sorted(set(generations))


def test_another_gateway_delivers_when_the_one_that_did_is_gone(gateways, apis) -> None:
    going_on = threading.Event()
    callbacks = []

    def answer(delivery: Delivery) -> Reply:
        callbacks.append(delivery.body["callback_url"])
        going_on.wait(20)
        return ACCEPTED

    with receiving(answer) as receiver:
        made = apis[0].webhook(receiver.url, "events/*", lease_ttl_ms=600_000)
        apis[0].append("events/a", 1)
        first = receiver.next()
        dead = next(n for n, one in enumerate(gateways) if f":{one.port}/" in callbacks[0])
        gateways[dead].kill()
        second = receiver.next()  # long before the lease is over
        going_on.set()
        assert second.body["wake_id"] == first.body["wake_id"]
        assert second.at - first.at < 12.0
        left = through(made, apis[1 - dead])
        assert Claim(left, second.body).ack_all().json == {"ok": True, "next_wake": False}


def test_subscriptions_migrate_there_and_back(nats_server, bucket, gateway, start_server, tmp_path) -> None:
    """A lease and its token, cursors and patterns are the same on the other side."""
    options = ["--nats-name", bucket, "--nats-replicas", "1"]

    def migrate(source: object, target: object) -> None:
        command = [
            sys.executable,
            "-m",
            "durable_streams.cli",
            "migrate",
            "--from",
            str(source),
            "--to",
            str(target),
        ]
        done = subprocess.run([*command, *options], capture_output=True, check=False)
        assert done.returncode == 0, done

    server = start_server(tmp_path / "one")
    api = Api(lambda: server.port)
    made = api.pull("events/*", lease_ttl_ms=600_000)
    api.append("events/a", 1)
    held = made.claim("first")
    shown = made.shown()
    server.terminate()
    migrate(tmp_path / "one", nats_server.store)
    server = gateway(nats_server)
    assert made.shown() == shown
    assert made.refusal()["current_holder"] == "first"
    api.append("events/b", 1)
    assert held.ack_all().json == {"ok": True, "next_wake": True}
    shown, before = made.shown(), made.links()
    server.terminate()
    migrate(nats_server.store, tmp_path / "two")
    server = start_server(tmp_path / "two")
    assert (made.shown(), made.links()) == (shown, before)
    assert made.claim("second").generation == 2
    server.terminate()
    # What has gone on is not taken back.
    with pytest.raises(AssertionError, match="has gone on in the target"):
        migrate(nats_server.store, tmp_path / "two")


def test_an_append_whose_gateway_is_gone_wakes_too(nats_server, bucket, monkeypatch) -> None:
    """The gateway that took the append died before it could wake: the one that leads finds the data."""
    monkeypatch.setattr(engines, "_LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(engines, "_LEAD_INTERVAL", 0.05)
    asked = {"type": "pull-wake", "pattern": "events/*", "streams": ["events/linked"], "wake_stream": "wakes"}

    def opened() -> JetStreamStore:
        return JetStreamStore(JetStreamConfig(tuple(nats_server.urls), name=bucket, replicas=1))

    async def main() -> None:
        leading, dying = opened(), opened()
        await leading.open()
        await dying.open()
        await leading.create(Create("wakes", "application/json"))
        await leading.create(Create("events/linked", "application/json", b"1,"))
        engine = engines.Engine(leading)
        await engine.start()
        try:
            one, _ = await engine.create(new_subscription("one", configure(asked), 0.0, "incarnation"))
            assert one.idle
            await dying.append("events/linked", Append("application/json", b"2,"))
            await dying.create(Create("events/new", "application/json", b"3,"))
            while one.idle or "events/new" not in one.links:
                await asyncio.sleep(0.01)
                one = await engine.find("one")
            assert one.generation == 1
        finally:
            await engine.stop()
            await leading.close()
            await dying.close()

    asyncio.run(asyncio.wait_for(main(), 30))
