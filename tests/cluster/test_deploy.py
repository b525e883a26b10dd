"""What `deploy/` holds is what NATS takes and what a gateway can work with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from local_cluster import gateway_command

from durable_streams.testing.nats import NatsServer, Ports
from durable_streams.testing.ports import free_ports
from durable_streams.testing.program import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
NAMES = ("n0", "n1", "n2")
PASSWORD = "a-password"


def configuration(name: str, ports: dict[str, Ports], data: Path) -> str:
    """Return nats.conf for this machine: its own ports and folder, and nothing else changed."""
    text = (DEPLOY / "nats.conf").read_text()
    mine = ports[name]
    places = {
        '"0.0.0.0:4222"': f'"127.0.0.1:{mine.client}"',
        '"0.0.0.0:8222"': f'"127.0.0.1:{mine.monitor}"',
        '"0.0.0.0:6222"': f'"127.0.0.1:{mine.route}"',
        '"/data"': f'"{data}"',
        "100GB": "1GB",
        "$NATS_NAME": name,
        "$NATS_PASSWORD": PASSWORD,
        **{f"nats://{other}:6222": f"nats://127.0.0.1:{ports[other].route}" for other in NAMES},
    }
    for old, new in places.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[list[NatsServer]]:
    chosen = iter(free_ports(9))
    ports = {name: Ports(next(chosen), next(chosen), next(chosen)) for name in NAMES}
    servers = [NatsServer(name, tmp_path / name) for name in NAMES]
    with ExitStack() as stack:
        for server in servers:
            text = configuration(server.name, ports, server.folder / "data")
            server.configure(ports[server.name], text)
            stack.callback(server.stop)
            server.start()
        assert wait_until(lambda: all(server.healthy for server in servers), 30), servers[0].log
        yield servers


def test_a_gateway_works_on_servers_with_this_configuration(
    deployed: list[NatsServer], run_server: Callable
) -> None:
    assert deployed[0].monitor("jsz")["config"]["sync_always"] is True
    hosts = ",".join(server.url.removeprefix("nats://") for server in deployed)
    store = f"nats://gateway:{PASSWORD}@{hosts}"
    gateway = run_server(gateway_command(store, free_ports(1)[0], ["--nats-replicas", "3"]))
    gateway.wait_until_ready()
    gateway.create("x", "text/plain")
    assert gateway.append("x", b"kept", "text/plain").status == 204
    assert gateway.read_all("x") == b"kept"


def test_the_containers_name_what_there_is() -> None:
    compose = (DEPLOY / "compose.yaml").read_text()
    for name in NAMES:
        assert f"NATS_NAME: {name}," in compose
        assert f'"nats://{name}:6222"' in (DEPLOY / "nats.conf").read_text()
    for mounted in re.findall(r'"\./([^:]+):', compose):
        assert (DEPLOY / mounted).is_file()
    for gateway in re.findall(r"(\S+):4437", (DEPLOY / "Caddyfile").read_text()):
        assert re.search(rf"^  {gateway}: \*gateway$", compose, re.MULTILINE)


def test_a_gateway_says_who_may_do_what() -> None:
    """The image listens on every address, where a server does not start without."""
    assert "DURABLE_STREAMS_HOST=0.0.0.0" in (DEPLOY / "Dockerfile").read_text()
    compose = (DEPLOY / "compose.yaml").read_text()
    assert 'DURABLE_STREAMS_NO_AUTH: "1"' in compose
    assert 'ports: ["127.0.0.1:4437:80"]' in compose
