"""Two gateways and three NATS servers, of which any may go at any moment: nothing is lost, doubled or torn."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from proof_load import ENDS_WITHIN, Load, Place

from durable_streams.testing import NatsCluster
from durable_streams.testing.program import wait_until

PACE = 500.0  # records a second
SOME = 200  # records
SUSPENDED = 10.0  # seconds
# Live reads do not end by themselves, so that a read that is not woken cannot recover by a restart.
SETTINGS = ("--sse-max-age", "600", "--long-poll-timeout", "600", "--chunk-size", "200000")


@pytest.mark.timeout(600)
def test_exactly_once_whatever_is_killed(
    request: pytest.FixtureRequest,
    make_cluster: Callable[..., NatsCluster],
    gateway: Callable[..., Any],
    round_robin: Callable[..., Any],
    bucket: str,
) -> None:
    total: int = request.config.getoption("--proof-appends")
    cluster = make_cluster(max_payload="256KB")
    serving = [gateway(cluster, *SETTINGS) for _ in range(2)]
    places = [Place(f"proof/{number}", as_json=number % 2 == 1) for number in range(4)]
    balancer = f"{round_robin(serving).url}/v1/stream"
    load = Load(places, [*(one.root for one in serving), balancer], total, PACE)
    stream = f"KV_{bucket}"

    def goes_on(until: float = 0) -> None:
        """Wait until enough later writes were acknowledged, or a part of all writes if that is more."""
        enough = max(load.acknowledged + SOME, until * total)

        def enough_acknowledged() -> bool:
            load.fail_early()
            return load.acknowledged >= enough

        assert wait_until(enough_acknowledged, ENDS_WITHIN), f"stuck after {load.acknowledged} records"

    def report(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s {load.acknowledged:7d} acknowledged: {what}")  # noqa: T201

    began = time.monotonic()
    goes_on()
    leader = cluster.leader_of(stream)
    for step, index in enumerate((leader, (leader + 1) % 3, (leader + 2) % 3)):
        cluster.servers[index].kill()
        goes_on()
        cluster.servers[index].start()
        cluster.wait_ready()
        report(f"NATS server {index} was killed and started again")
        goes_on(until=0.15 * (step + 1))
    leader = cluster.leader_of(stream)
    cluster.servers[leader].suspend()
    time.sleep(SUSPENDED)
    goes_on()
    cluster.servers[leader].resume()
    cluster.wait_ready()
    report("the leader was suspended")
    for step, killed in enumerate(list(serving)):
        goes_on(until=0.6 + 0.2 * step)
        killed.kill()
        goes_on()
        serving[step] = gateway(cluster, *SETTINGS, port=killed.port)
        report(f"gateway {step} was killed and started again")
    goes_on()
    read = load.finish()
    report("all written and read")
    check(load, read)
    assert load.acknowledged >= total


def check(load: Load, read: dict[Place, list[Any]]) -> None:
    for place in load.places:
        contents = [place.read(root, keep=True) for root in load.roots]
        sums = {content.sha256 for content in [*contents, *read[place]]}
        assert len(sums) == 1, f"readers of {place.path} saw different things"
        records = sorted(
            contents[0].records(), key=lambda entry: entry[0]
        )  # stable: in order for each writer
        there = {
            name: [(number, end) for _, number, end in group]
            for name, group in groupby(records, key=lambda entry: entry[0])
        }
        writers = [writer for writer in [*load.producers, *load.plain] if writer.place is place]
        for writer in writers:
            writer.check(there.pop(writer.name, []))
        assert not there
