"""The requirements on a bucket, and the refusal of one that does not meet them."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
from elections import PatientBus

from durable_streams.protocol.commands import Create
from durable_streams.server.app import App
from durable_streams.server.config import ServerConfig
from durable_streams.stores.base import StoreError
from durable_streams.stores.jetstream.config import JetStreamConfig, parse_servers
from durable_streams.stores.jetstream.layout import EXPECT
from durable_streams.stores.jetstream.nats.bus import Bus, Message
from durable_streams.stores.jetstream.store import JetStreamStore
from durable_streams.testing import NatsCluster

ACCOUNTS = """
accounts {
  STREAMS { jetstream: { max_file: 1MB, max_mem: 1MB }, users: [ { user: writer, password: "p%40ss" } ] }
  PLAIN { users: [ { user: plain, password: secret } ] }
  NARROW {
    jetstream: enabled
    users: [
      { user: narrow, password: secret, permissions: { publish: "_INBOX.>" } }
      { user: mute, password: secret, permissions: { publish: [ "_INBOX.>", "$JS.API.>" ] } }
    ]
  }
}
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    with NatsCluster(tmp_path_factory.mktemp("guarded"), 1, config=ACCOUNTS) as cluster:
        yield cluster


@pytest.fixture
def config(nats_server: NatsCluster, bucket: str) -> JetStreamConfig:
    return JetStreamConfig(parse_servers(nats_server.store), bucket, replicas=1)


def as_user(server: NatsCluster, user: str) -> JetStreamConfig:
    url = server.store.replace("nats://", f"nats://{user}@")
    return JetStreamConfig(parse_servers(url), f"b{uuid4().hex}", replicas=1)


async def opened(config: JetStreamConfig) -> dict[str, Any]:
    """Open a bucket, write to it, close it; what it is then like."""
    bus = PatientBus(config)
    await bus.open()
    try:
        await bus.publish([Message(bus.layout.probe)])
        return {"replicas": (await bus.info()).replicas, "storage": (await bus.info()).storage}
    finally:
        await bus.close()


def refusal(config: JetStreamConfig) -> str:
    with pytest.raises(StoreError) as refused:
        asyncio.run(asyncio.wait_for(opened(config), 30))
    said = str(refused.value)
    assert "\n" not in said
    assert "nats:" not in said.replace("nats://", "")
    return said


def make_stream(server: NatsCluster, stream: dict[str, Any]) -> None:
    async def make() -> None:
        client = await nats.connect(server.urls)
        try:
            subject = f"$JS.API.STREAM.CREATE.{stream['name']}"
            answer = json.loads((await client.request(subject, json.dumps(stream).encode(), timeout=10)).data)
            assert "error" not in answer, answer
        finally:
            await client.close()

    asyncio.run(make())


@contextmanager
def a_server_that_says(info: dict[str, Any]) -> Iterator[str]:
    """Something that speaks the first words of a NATS server, of a version that is not at hand."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            try:
                while True:
                    peer, _ = listener.accept()
                    with peer:
                        peer.sendall(b"INFO " + json.dumps({"port": port} | info).encode() + b"\r\n")
                        echo_messages(peer)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def echo_messages(peer: socket.socket) -> None:
    lines = peer.makefile("rb")
    while line := lines.readline():
        if line == b"PING\r\n":
            peer.sendall(b"PONG\r\n")
        elif line.startswith(b"PUB"):
            peer.sendall(b"MSG %b 1 0\r\n\r\n" % line.split()[1])


# what opens


def test_a_bucket_is_made_once_and_opened_by_everybody(config: JetStreamConfig) -> None:
    async def all_at_once() -> list[dict[str, Any]]:
        return await asyncio.gather(*(opened(config) for _ in range(5)))

    assert asyncio.run(all_at_once()) == [{"replicas": 1, "storage": "file"}] * 5
    assert asyncio.run(opened(replace(config, replicas=None))) == {"replicas": 1, "storage": "file"}


def test_a_bucket_in_memory(config: JetStreamConfig) -> None:
    assert asyncio.run(opened(replace(config, storage="memory", max_bytes=1 << 20)))["storage"] == "memory"


def test_key_value_clients_work_on_it(config: JetStreamConfig) -> None:
    async def use() -> None:
        bus = Bus(config)
        await bus.open()
        client = await nats.connect(list(config.servers))
        try:
            bucket = await client.jetstream().key_value(config.name)
            await bus.publish([Message(bus.layout.meta("a/b"), b"one", {EXPECT: "0"})])
            [key] = await bucket.keys()
            assert (await bucket.get(key)).value == b"one"
            revision = await bucket.put(key, b"two")
            found = await bus.last(bus.layout.meta("a/b"))
            assert found is not None
            assert (found.seq, found.data) == (revision, b"two")
        finally:
            await client.close()
            await bus.close()

    asyncio.run(use())


def test_credentials_in_the_url(guarded: NatsCluster) -> None:
    config = as_user(guarded, "writer:p%2540ss")  # the password itself has a percent sign
    assert asyncio.run(opened(config))["replicas"] == 1


def test_what_is_written_to_a_new_bucket_at_once(nats_cluster: NatsCluster) -> None:
    """A server that does not lead it may not know it yet."""

    async def write() -> None:
        for number in range(12):
            url = nats_cluster.urls[number % 3]
            await opened(JetStreamConfig((url,), f"b{uuid4().hex}", replicas=3))

    asyncio.run(write())


def test_a_bus_may_be_opened_again(config: JetStreamConfig) -> None:
    async def twice() -> None:
        bus = Bus(config)
        for _ in range(2):
            await bus.open()
            await bus.publish([Message(bus.layout.probe)])
            await bus.close()
        with pytest.raises(StoreError, match="closed"):
            await bus.publish([Message(bus.layout.probe)])

    asyncio.run(twice())


# what does not


def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    servers = parse_servers(f"nats://someone:secret@127.0.0.1:{port},localhost:{port}")
    said = refusal(JetStreamConfig(servers))
    assert "cannot be reached" in said
    assert f"nats://127.0.0.1:{port}, nats://localhost:{port}" in said
    assert "secret" not in said


def test_something_that_is_not_nats() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        assert "cannot be reached" in refusal(
            JetStreamConfig((f"nats://127.0.0.1:{silent.getsockname()[1]}",))
        )


def test_without_jetstream(tmp_path: Path) -> None:
    with NatsCluster(tmp_path, 1, jetstream=False) as plain:
        assert "has no JetStream: " in refusal(JetStreamConfig(tuple(plain.urls)))


def test_too_old() -> None:
    with a_server_that_says({"version": "2.11.9", "max_payload": 1 << 20, "headers": True}) as url:
        said = refusal(JetStreamConfig((url,)))
    assert "version 2.11." in said
    assert "2.12.0" in said


def test_messages_too_small() -> None:
    with a_server_that_says({"version": "2.12.0", "max_payload": 4096, "headers": True}) as url:
        assert "max_payload" in refusal(JetStreamConfig((url,)))


def test_fewer_servers_than_replicas(config: JetStreamConfig) -> None:
    assert "fewer servers than the 3 replicas" in refusal(replace(config, replicas=3))
    assert "fewer servers than the 3 replicas" in refusal(replace(config, replicas=None))


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_no_room_in_the_account(guarded: NatsCluster, storage: Any) -> None:
    config = as_user(guarded, "writer:p%2540ss")
    assert "has no room" in refusal(replace(config, max_bytes=2 << 20, storage=storage))


def test_an_account_without_jetstream(guarded: NatsCluster) -> None:
    assert "has no JetStream for this account" in refusal(as_user(guarded, "plain:secret"))


@pytest.mark.parametrize("user", ["writer:wrong", "nobody:secret", "a-token"])
def test_wrong_credentials(guarded: NatsCluster, user: str) -> None:
    said = refusal(as_user(guarded, user))
    assert "authorization violation" in said.lower()
    assert user not in said


@pytest.mark.parametrize("user", ["narrow", "mute"])
def test_not_allowed_to_use_jetstream_or_to_write(guarded: NatsCluster, user: str) -> None:
    assert "permissions violation" in refusal(as_user(guarded, f"{user}:secret")).lower()


def test_tls_wanted_and_not_had(nats_server: NatsCluster) -> None:
    servers = parse_servers(nats_server.store.replace("nats://", "tls://"))
    assert "secure connection not available" in refusal(JetStreamConfig(servers))


def test_credentials_that_are_none(config: JetStreamConfig, tmp_path: Path) -> None:
    (tmp_path / "user.creds").write_text("nothing of use")
    assert "credentials" in refusal(replace(config, credentials=tmp_path / "user.creds"))


def test_certificates_that_are_none(config: JetStreamConfig, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing of use")
    assert "ca.pem" in refusal(replace(config, tls_ca=tmp_path / "ca.pem"))


def test_a_bucket_of_another_program(nats_server: NatsCluster, config: JetStreamConfig) -> None:
    make_stream(nats_server, {"name": f"KV_{config.name}", "subjects": [f"$KV.{config.name}.>"]})
    assert "choose another name" in refusal(config)


def test_a_bucket_whose_subjects_are_taken(nats_server: NatsCluster, config: JetStreamConfig) -> None:
    make_stream(nats_server, {"name": uuid4().hex, "subjects": [f"{config.name}.>"]})
    assert "overlap" in refusal(config)


def test_another_format(nats_server: NatsCluster, config: JetStreamConfig) -> None:
    metadata = {"durable-streams-format": "2"}
    make_stream(
        nats_server, {"name": f"KV_{config.name}", "subjects": [f"$KV.{config.name}.>"], "metadata": metadata}
    )
    said = refusal(config)
    assert "format 2" in said
    assert "reads 1" in said


@pytest.mark.parametrize(
    ("change", "values"),
    [({"storage": "memory"}, "storage file, not memory"), ({"max_bytes": 5000}, "max_bytes -1, not 5000")],
)
def test_settings_other_than_asked_for(config: JetStreamConfig, change: dict[str, Any], values: str) -> None:
    asyncio.run(opened(config))
    said = refusal(replace(config, **change))
    assert values in said
    assert f"nats stream edit KV_{config.name}" in said


def test_settings_that_lose_data(nats_server: NatsCluster, config: JetStreamConfig) -> None:
    asyncio.run(opened(config))

    async def edit() -> None:
        client = await nats.connect(nats_server.urls)
        try:
            info = await client.request(f"$JS.API.STREAM.INFO.KV_{config.name}", timeout=10)
            edited = json.dumps(json.loads(info.data)["config"] | {"max_age": 10**12}).encode()
            answer = await client.request(f"$JS.API.STREAM.UPDATE.KV_{config.name}", edited, timeout=10)
            assert "error" not in json.loads(answer.data)
        finally:
            await client.close()

    asyncio.run(edit())
    assert "max_age 1000000000000" in refusal(config)


def test_without_nats_py() -> None:
    program = """
import asyncio, sys
sys.modules["nats"] = None
from durable_streams.stores.base import StoreError
from durable_streams.stores.jetstream.nats.bus import Bus
from durable_streams.stores.jetstream.config import JetStreamConfig
try:
    asyncio.run(Bus(JetStreamConfig(("nats://127.0.0.1:1",))).open())
except StoreError as error:
    print(error)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert 'pip install "nats-py>=2.15,<3"' in ran.stdout


# the settings


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nats://a:4222,b:4223", ("nats://a:4222", "nats://b:4223")),
        ("nats://a, nats://b", ("nats://a:4222", "nats://b:4222")),
        ("a,b:1", ("nats://a:4222", "nats://b:1")),
        ("tls://u:p@a,b,v:q@c", ("tls://u:p@a:4222", "tls://u:p@b:4222", "tls://v:q@c:4222")),
        ("nats://token@[::1]:5/", ("nats://token@[::1]:5",)),
    ],
)
def test_servers(text: str, servers: tuple[str, ...]) -> None:
    assert parse_servers(text) == servers


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("", "without a host"),
        ("nats://", "without a host"),
        ("nats://a,,b", "without a host"),
        ("http://a:4222", "http://a:4222 is not an address"),
        ("nats://a,tls://b", "mixes nats:// and tls://"),
        ("nats://a:many", "nats://a:many is not an address"),
        ("nats://a:70000", "nats://a:70000 is not an address"),
        ("nats://a:0", "nats://a:0 is not an address"),
        ("nats://a/path", "nats://a/path is not an address"),
        ("nats://u:secret@a:4222?x", "nats://a:4222?x is not an address"),
    ],
)
def test_servers_that_are_none(text: str, flaw: str) -> None:
    with pytest.raises(ValueError, match=flaw.replace("?", r"\?")) as refused:
        parse_servers(text)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        ({"servers": ()}, "no NATS server"),
        ({"name": "a.b"}, "'a.b' cannot name a bucket"),
        ({"name": ""}, "'' cannot name a bucket"),
        ({"replicas": 0}, "0 replicas"),
        ({"replicas": 6}, "6 replicas"),
        ({"storage": "tape"}, "tape"),
        ({"max_bytes": 0}, "0 bytes"),
        ({"credentials": Path("/nowhere/user.creds")}, "/nowhere/user.creds"),
    ],
)
def test_settings_that_are_none(change: dict[str, Any], flaw: str) -> None:
    with pytest.raises(ValueError, match=flaw):
        replace(JetStreamConfig(("nats://a:4222",)), **change)


def test_g7_a_body_that_no_batch_holds(make_cluster: Callable[..., NatsCluster], bucket: str) -> None:
    """An append is one atomic batch of NATS: small messages make a small one."""
    urls = tuple(make_cluster(1, max_payload="64KB").urls)

    async def start(limit: int) -> None:
        store = JetStreamStore(JetStreamConfig(urls, name=bucket, replicas=1))
        app = App(store, ServerConfig(max_body=limit))
        await app.startup()
        try:
            await store.create(Create("s", "application/octet-stream", b"x" * limit))
            state = await store.get("s")
            assert state is not None
            assert state.tail == limit
        finally:
            await app.shutdown()

    most = 980 * ((64 << 10) - (16 << 10)) - 1
    with pytest.raises(StoreError, match=f"--max-body.*{most}"):
        asyncio.run(start(most + 1))
    asyncio.run(start(most))
