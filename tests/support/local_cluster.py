"""A whole cluster on this machine: NATS servers with file storage, and gateways before them, on free ports.

    python tests/support/local_cluster.py [--folder FOLDER] [-- OPTIONS OF SERVE]

runs one until Ctrl-C, SIGTERM or SIGHUP; all of them end it in order and leave no process behind. A part that ends by
itself or is killed is reported and started again, so that one can watch what the others do meanwhile.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from durable_streams.file_lock import try_lock
from durable_streams.testing.nats import NatsCluster, NatsError
from durable_streams.testing.ports import free_ports
from durable_streams.testing.program import Program, wait_until

__all__ = ["ClusterError", "Gateway", "gateway_command", "local_cluster", "main"]

_READY_WITHIN = 30.0  # seconds
_READY = re.compile(r"^durable-streams: serving (http://\S+)", re.MULTILINE)
_PORT_TAKEN = "cannot listen on"
_TRIES = 5
_MOST_REPLICAS = 3
_LOOKS_EVERY = 0.1


class ClusterError(Exception):
    """The cluster cannot run; one sentence says why."""


def gateway_command(store: str, port: int, options: Sequence[str] = ()) -> list[str]:
    """Return the command that serves the streams on the NATS servers ``store`` at ``port`` of this machine."""
    serve = ["serve", "--host", "127.0.0.1", "--port", str(port), "--store", store]
    return [sys.executable, "-m", "durable_streams.cli", *serve, *options]


class Gateway(Program):
    """One ``durable-streams serve`` on a port that it keeps; ``root`` is the URL below which its streams are."""

    def __init__(self, name: str, folder: Path, store: str, options: Sequence[str] = ()) -> None:
        super().__init__(name, lambda: gateway_command(store, self.port, options), folder / "log")
        self.port = free_ports(1)[0]

    @property
    def root(self) -> str:
        """The URL of its stream root, such as ``http://127.0.0.1:14437/v1/stream``."""
        return f"http://127.0.0.1:{self.port}/v1/stream"

    @property
    def ready(self) -> bool:
        """Whether it has said since its last start that it answers requests."""
        return _READY.search(self.log) is not None

    def wait_ready(self, within: float = _READY_WITHIN) -> None:
        """Wait until it answers requests; raises ClusterError if it ends instead."""
        if not wait_until(lambda: self.ready or not self.alive, within) or not self.ready:
            raise ClusterError(f"the gateway {self.name} is not ready: {self.last_words}")

    def start_first(self) -> None:
        """Start it and wait until it is ready, on another port if its own was taken meanwhile."""
        for _ in range(_TRIES):
            self.start()
            try:
                return self.wait_ready()
            except ClusterError:
                self.stop()
                if _PORT_TAKEN not in self.log:
                    raise
            self.port = free_ports(1)[0]
        raise ClusterError(f"no free port for the gateway {self.name} was found in {_TRIES} tries")


@contextmanager
def local_cluster(
    folder: Path, servers: int = 3, gateways: int = 2, options: Sequence[str] = ()
) -> Iterator[tuple[NatsCluster, list[Gateway]]]:
    """Run NATS servers and gateways that keep everything in ``folder``; all have ended when the block is left.

    ``options`` are added to each gateway's command line. Raises ClusterError or NatsError if a part does not start or
    another cluster has the folder.
    """
    replicas = ["--nats-replicas", str(min(servers, _MOST_REPLICAS))]
    with _locked(folder), NatsCluster(folder, servers) as nats:
        names = [f"g{i}" for i in range(gateways)]
        serving = [Gateway(name, folder / name, nats.store, [*replicas, *options]) for name in names]
        try:
            for gateway in serving:
                gateway.start_first()
            yield nats, serving
        finally:
            for gateway in serving:
                gateway.stop()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        if not try_lock(lock):
            raise ClusterError(f"the folder {folder} belongs to a cluster that is running")
        yield


@click.command(context_settings={"max_content_width": 100})
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="Where everything is kept, also for the next time; without it a temporary folder.",
)
@click.option("--servers", type=click.IntRange(1, 9), default=3, show_default=True, help="NATS servers.")
@click.option("--gateways", type=click.IntRange(0, 9), default=2, show_default=True, help="Gateways.")
@click.option(
    "--restart-after",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a part that has ended stays away.",
)
@click.argument("serve_options", nargs=-1, type=click.UNPROCESSED)
def main(
    *, folder: Path | None, servers: int, gateways: int, restart_after: float, serve_options: tuple[str, ...]
) -> None:
    """Run NATS servers and gateways on this machine until Ctrl-C; SERVE_OPTIONS go to each gateway."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    with tempfile.TemporaryDirectory(prefix="durable-streams-cluster-") as temporary:
        home = folder or Path(temporary)
        try:
            with local_cluster(home, servers, gateways, serve_options) as (nats, serving):
                _announce(nats, serving, home, restart_after)
                _watch([*nats.servers, *serving], stopping, restart_after)
                click.echo("stopping")
        except (ClusterError, NatsError) as error:
            raise click.ClickException(str(error)) from error


def _announce(nats: NatsCluster, serving: list[Gateway], home: Path, restart_after: float) -> None:
    for server in nats.servers:
        click.echo(f"NATS server {server.name}: {server.url} (process {server.pid})")
    for gateway in serving:
        click.echo(f"gateway {gateway.name}: {gateway.root} (process {gateway.pid})")
    click.echo(f"all of it is in {home}; each part has its log there, such as {nats.servers[0].name}/log")
    victim = nats.servers[0]
    click.echo(
        f"`kill -9 {victim.pid}` ends {victim.name} (`-STOP` and `-CONT` suspend it);"
        f" what has ended is started again after {restart_after:g} seconds"
    )
    if serving:
        click.echo("in another terminal:")
        click.echo(f"  export DURABLE_STREAMS_URL={serving[0].root}")
        click.echo(f"  {program_name()} create hello -t text 'Hello, world'")
        click.echo(f"  {program_name()} tail hello --url {serving[-1].root}")
    click.echo("Ctrl-C stops everything")


def program_name() -> str:
    """Return how the command line is called in a terminal: the one of this interpreter, unless it is on the path."""
    on_path = shutil.which("durable-streams")
    beside = Path(sys.executable).with_name("durable-streams")
    return "durable-streams" if on_path or not beside.exists() else shlex.quote(os.path.relpath(beside))


def _watch(parts: list[Program], stopping: threading.Event, restart_after: float) -> None:
    """Report each part that ends, and start it again after a while, until ``stopping`` is set."""
    ended: dict[Program, float] = {}
    while not stopping.wait(_LOOKS_EVERY):
        for part in parts:
            if part.alive:
                continue
            if part not in ended:
                if stopping.wait(_LOOKS_EVERY):
                    return  # Ctrl-C reaches the parts too
                ended[part] = time.monotonic()
                click.echo(f"{part.name} {_how_it_ended(part)}")
            elif time.monotonic() - ended[part] >= restart_after:
                del ended[part]
                part.start()
                click.echo(f"{part.name} is started again (process {part.pid})")


def _how_it_ended(part: Program) -> str:
    code = part.exit_code or 0
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"has ended with exit code {code}: {part.last_words}"


if __name__ == "__main__":
    main()
