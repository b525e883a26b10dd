"""NATS servers and gateways for tests: shared ones for tests that do them no harm, private ones to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
from local_cluster import gateway_command
from round_robin import RoundRobin

from durable_streams.testing import NatsCluster
from durable_streams.testing.ports import free_ports

PORTS_TO_TRY = 5


@contextlib.contextmanager
def cluster_in(folder: Path, size: int = 3, **settings: Any) -> Iterator[NatsCluster]:
    """Run NATS servers; what they stored is removed, their logs stay."""
    cluster = NatsCluster(folder, size, **settings)
    try:
        with cluster:
            yield cluster
    finally:
        for server in cluster.servers:
            shutil.rmtree(server.folder / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Give one NATS server, a cluster of size one, for all tests of this process that do it no harm."""
    with cluster_in(tmp_path_factory.mktemp("nats-server"), 1) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Give three NATS servers, for all tests of this process that do them no harm."""
    with cluster_in(tmp_path_factory.mktemp("nats-cluster")) as cluster:
        yield cluster


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[..., NatsCluster]]:
    """Give a function that starts NATS servers of the test's own, ``make_cluster(size=3, **settings)``."""
    numbers = count()
    with contextlib.ExitStack() as stack:

        def make(size: int = 3, **settings: Any) -> NatsCluster:
            folder = tmp_path / f"nats-{next(numbers)}"
            return stack.enter_context(cluster_in(folder, size, **settings))

        yield make


_numbers = count()


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the name of a bucket that no other test uses; on the shared servers it is removed after the test."""
    name = f"test-{next(_numbers)}"
    yield name
    for shared in ("nats_server", "nats_cluster"):
        if shared in request.fixturenames:
            remove_bucket(request.getfixturevalue(shared), name)


def remove_bucket(cluster: NatsCluster, name: str) -> None:
    """Remove a bucket if it is there."""

    async def remove() -> None:
        connection = await nats.connect(cluster.urls)
        with contextlib.suppress(nats.js.errors.NotFoundError):
            await connection.jetstream().delete_stream(f"KV_{name}")
        await connection.close()

    asyncio.run(remove())


@pytest.fixture
def gateway(run_server: Callable[..., Any], bucket: str) -> Callable[..., Any]:
    """Give a function that starts a gateway, ``gateway(cluster, *options)``; all end with the test.

    What it returns can be killed, and started again in the same place: ``gateway(cluster, port=killed.port)``.
    """

    def start(cluster: NatsCluster, *options: str, port: int | None = None, name: str = bucket) -> Any:
        replicas = str(min(3, len(cluster.servers)))
        names = ["--nats-name", name, "--nats-replicas", replicas, *options]
        for chosen in free_ports(PORTS_TO_TRY) if port is None else [port]:
            server = run_server(gateway_command(cluster.store, chosen, names))
            if server.becomes_ready():
                return server
            server.kill()
            if b"cannot listen on" not in server.error_output:
                break
        pytest.fail(f"the gateway is not ready: {server.error_output.decode()}")

    return start


@pytest.fixture
def round_robin() -> Iterator[Callable[[Sequence[Any]], RoundRobin]]:
    """Give a function that puts a load balancer before gateways: each request goes to the next one."""
    with contextlib.ExitStack() as stack:

        def balance(gateways: Sequence[Any]) -> RoundRobin:
            origins = [f"http://127.0.0.1:{gateway.port}" for gateway in gateways]
            return stack.enter_context(RoundRobin(origins))

        yield balance
