"""What gateways answer while NATS is not whole, and that they recover by themselves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from local_cluster import gateway_command
from proof_load import Listener, Worker, subscriptions

from durable_streams.testing import NatsCluster
from durable_streams.testing.nats import NatsServer
from durable_streams.testing.ports import free_ports
from durable_streams.testing.program import wait_until

TEXT = "text/plain"
ANSWERS_WITHIN = 5.0  # seconds
RECOVERS_WITHIN = 60.0
PRODUCER = {"producer_id": "p", "producer_epoch": "0"}


def refused(answer: Any) -> bool:
    """Whether an answer says that nothing was done and when to come back."""
    return answer.status == 503 and "retry-after" in answer.headers


def unknown(answer: Any) -> bool:
    """Whether an answer says that the outcome is unknown; it does not ask for a retry."""
    if answer.status != 503 or "retry-after" in answer.headers:
        return False
    assert json.loads(answer.body)["error"]["code"] == "OUTCOME_UNKNOWN"
    return True


def asked(server: Any, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
    """Return an answer that came in time."""
    began = time.monotonic()
    answer = server.request(method, path, body, **headers)
    assert time.monotonic() - began < ANSWERS_WITHIN, (method, path, answer)
    return answer


@pytest.mark.timeout(300)
@pytest.mark.parametrize("gone", [(0, 1), (1, 2), (0, 1, 2)], ids=["leader and follower", "followers", "all"])
def test_without_a_quorum_nothing_is_stored_and_what_is_known_is_read(
    make_cluster: Callable[..., NatsCluster], gateway: Callable[..., Any], bucket: str, gone: tuple[int, ...]
) -> None:
    cluster = make_cluster()
    here, there = (gateway(cluster, "--chunk-size", "50000") for _ in range(2))
    pieces = [b"%02d" % number * 10_000 for number in range(10)]
    here.create("s", TEXT)
    for piece in pieces:
        assert here.append("s", piece, TEXT).status == 204
    tail = here.request("HEAD", "s").next_offset
    leader = cluster.leader_of(f"KV_{bucket}")
    away = [cluster.servers[(leader + place) % 3] for place in gone]
    for server in away:
        server.kill()
    plain = [asked(server, "POST", "s", b"plain", content_type=TEXT) for server in (here, there)]
    for server in (here, there):
        stamp = {**PRODUCER, "producer_seq": "0", "content_type": TEXT}
        assert refused(asked(server, "POST", "s", b"stamped", **stamp))
        if 0 in gone:  # a leader that is alone still knows what is current
            assert refused(asked(server, "PUT", "another", content_type=TEXT))
            assert refused(asked(server, "GET", f"s?offset={tail}"))
            assert refused(asked(server, "GET", "s?offset=now"))
            assert refused(asked(server, "GET", "s?offset=-1&live=sse"))
            assert refused(asked(server, "HEAD", "s"))
            content = as_far_as_it_goes(server)
            assert b"".join(pieces).startswith(content)
            assert len(gone) == 3 or content == b"".join(pieces)
    for server in away:
        server.start()
    stamp = {**PRODUCER, "producer_seq": "0", "content_type": TEXT}
    for server in (here, there):
        assert wait_until(
            lambda server=server: server.append("s", b"stamped", **stamp).status in {200, 204},
            RECOVERS_WITHIN,
        )
    assert here.alive
    assert there.alive
    content = here.read_all("s", patience=RECOVERS_WITHIN)
    assert there.read_all("s", patience=RECOVERS_WITHIN) == content
    written = content.removeprefix(b"".join(pieces))
    assert written.count(b"stamped") == 1
    assert written.count(b"plain") <= sum(map(unknown, plain))
    assert not written.replace(b"stamped", b"").replace(b"plain", b"")
    assert all(unknown(answer) or refused(answer) for answer in plain)


def as_far_as_it_goes(server: Any) -> bytes:
    """Read from the beginning until that is refused; nothing says that the end is reached."""
    content, offset = b"", "-1"
    while (answer := asked(server, "GET", f"s?offset={offset}")).status == 200:
        assert "stream-up-to-date" not in answer.headers
        content += answer.body
        offset = answer.next_offset
    assert refused(answer)
    return content


@pytest.mark.timeout(300)
def test_an_append_of_which_nothing_was_heard_is_not_called_refused(
    make_cluster: Callable[..., NatsCluster], gateway: Callable[..., Any], bucket: str
) -> None:
    cluster = make_cluster()
    serving = [gateway(cluster) for _ in range(2)]
    for number in range(4):
        serving[0].create(f"s{number}", TEXT)
    over, unheard = threading.Event(), threading.Event()

    def write(name: int) -> dict[int, Any]:
        answers = {}
        server = serving[name % 2]
        for number in count():
            if over.is_set():
                return answers
            answers[number] = server.append(f"s{name % 4}", b"%d.%d\n" % (name, number), TEXT)
            if unknown(answers[number]):
                unheard.set()
        raise AssertionError

    writers = [Worker(f"writer {name}", lambda name=name: write(name)) for name in range(8)]
    leader = cluster.servers[cluster.leader_of(f"KV_{bucket}")]
    leader.suspend()
    heard_nothing = unheard.wait(RECOVERS_WITHIN)
    leader.resume()
    cluster.wait_ready()
    over.set()
    answers = [writer.finish() for writer in writers]
    assert heard_nothing, "no append was in doubt"
    for stream in range(4):
        content = serving[1].read_all(f"s{stream}", patience=RECOVERS_WITHIN)
        lines = [line.split(".") for line in content.decode().splitlines()]
        for name in (stream, stream + 4):
            there = [int(number) for writer, number in lines if int(writer) == name]
            certain = {number for number, answer in answers[name].items() if answer.status == 204}
            in_doubt = {number for number, answer in answers[name].items() if unknown(answer)}
            assert all(
                number in certain | in_doubt or refused(answer) for number, answer in answers[name].items()
            )
            assert there == sorted(set(there))
            assert certain <= set(there) <= certain | in_doubt


def heard_through(cluster: NatsCluster, bucket: str) -> list[NatsServer]:
    """Return the NATS servers through which gateways receive live records."""
    return [server for server in cluster.servers if subscriptions(server, bucket)]


@pytest.mark.timeout(300)
def test_readers_learn_of_what_was_stored_while_nats_was_away_from_their_gateway(
    make_cluster: Callable[..., NatsCluster], gateway: Callable[..., Any], bucket: str
) -> None:
    cluster = make_cluster()
    # Live reads do not end by themselves, and nothing follows that would tell them of a gap.
    here, there = (gateway(cluster, "--sse-max-age", "600", "--long-poll-timeout", "600") for _ in range(2))
    here.create("s", TEXT)
    here.append("s", b"first", TEXT)
    listeners = [Listener(there, "s", mode) for mode in ("sse", "long-poll", "sse", "long-poll")]
    assert all(listener.received.get(timeout=RECOVERS_WITHIN) == b"first" for listener in listeners)
    for number in range(4):
        assert wait_until(lambda: len(heard_through(cluster, bucket)) == 1, RECOVERS_WITHIN)
        (server,) = heard_through(cluster, bucket)
        (server.suspend if number % 2 else server.kill)()
        stamp = {**PRODUCER, "producer_seq": str(number), "content_type": TEXT}
        assert wait_until(
            lambda stamp=stamp, number=number: here.append("s", b"%d" % number, **stamp).status in {200, 204},
            RECOVERS_WITHIN,
        )
        for listener in listeners:
            assert listener.received.get(timeout=RECOVERS_WITHIN) == b"%d" % number
        server.resume()
        server.start()
        cluster.wait_ready()
    for listener in listeners:
        listener.leave()


def test_a_gateway_does_not_start_without_nats(run_server: Callable[..., Any]) -> None:
    nowhere, port = free_ports(2)
    server = run_server(gateway_command(f"nats://127.0.0.1:{nowhere}", port))
    assert server.wait(30) == 1
    said = server.error_output.decode()
    assert f"127.0.0.1:{nowhere}" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.timeout(300)
def test_a_gateway_does_not_start_without_a_quorum(
    make_cluster: Callable[..., NatsCluster], gateway: Callable[..., Any], run_server: Callable[..., Any]
) -> None:
    cluster = make_cluster()
    for server in cluster.servers[1:]:
        server.kill()
    late = run_server(gateway_command(cluster.store, free_ports(1)[0]))
    assert late.wait(30) == 1
    assert len(late.error_output.decode().strip().splitlines()) == 1
    for server in cluster.servers[1:]:
        server.start()
    cluster.wait_ready()
    assert gateway(cluster).create("s").status == 201
