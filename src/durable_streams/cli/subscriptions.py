"""``subscribe``, ``subscriptions`` and ``worker``: durable cursors that wake workers."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from typing import Any, TypeVar

import click
import msgspec

from durable_streams.cli.help import Command
from durable_streams.cli.options import DEFAULT_ROOT, Settings, connection_options, emit
from durable_streams.cli.units import Duration
from durable_streams.client.base import make_options
from durable_streams.client.sync_performer import run
from durable_streams.protocol import subscription_operations as operations
from durable_streams.protocol.dead_letters import DEFAULT_FAILURES, Failures
from durable_streams.protocol.request import Op
from durable_streams.worker import AckMode, Batch, SyncWorker

__all__ = ["subscribe", "subscriptions", "worker"]

T = TypeVar("T")

_MOST_STREAMS = 256  # with a command running at once


def _root(settings: Settings) -> str:
    return (settings.root or DEFAULT_ROOT).rstrip("/")


def _ask(settings: Settings, op: Op[T]) -> T:
    return run(op, make_options(None, settings.headers, None, None, None))


@click.command(
    cls=Command,
    examples=[
        "durable-streams subscribe orders --pattern 'orders/*' --wake-stream wakes/orders",
        "durable-streams subscribe audit --stream logins --stream payments --wake-stream wakes/audit --lease 2m",
        "durable-streams subscribe bills --pattern 'bills/**' --webhook https://example.com/hook",
    ],
)
@click.argument("name")
@click.option("--pattern", metavar="GLOB", help="Streams to link: * is one segment of a path, ** any number.")
@click.option("--stream", "streams", metavar="PATH", multiple=True, help="A stream to link; may be repeated.")
@click.option(
    "--wake-stream", metavar="PATH", help="Stream of JSON that brings the wakes, for workers that claim."
)
@click.option("--webhook", metavar="URL", help="Where the server sends the wakes instead.")
@click.option(
    "--lease",
    type=Duration(above_zero=True),
    default="30s",
    show_default=True,
    help="How long a worker may be silent; then its lease is over.",
)
@click.option("--description", metavar="TEXT", help="A text for people.")
@connection_options
@click.pass_obj
def subscribe(
    settings: Settings,
    *,
    name: str,
    pattern: str | None,
    streams: tuple[str, ...],
    wake_stream: str | None,
    webhook: str | None,
    lease: float,
    description: str | None,
) -> None:
    """Create the subscription NAME: durable cursors on streams, which wake a worker when there is more.

    What the streams hold already is not handed out. Either --wake-stream or --webhook says how workers are woken.
    """
    if (wake_stream is None) is (webhook is None):
        raise click.UsageError("give either --wake-stream or --webhook: how workers are woken")
    asked: dict[str, Any] = {
        "type": "pull-wake" if webhook is None else "webhook",
        "pattern": pattern,
        "streams": list(streams),
        "lease_ttl_ms": round(lease * 1000),
        "description": description,
    }
    asked.update({"wake_stream": wake_stream} if webhook is None else {"webhook": {"url": webhook}})
    shown, new = _ask(settings, operations.create_subscription(_root(settings), name, asked))
    count = len(shown.get("streams", []))
    verb = "created" if new else "found"
    emit(settings, f"{verb} {name} ({asked['type']}, {count:,} streams now)", **shown, created=new)


@click.command(
    cls=Command,
    examples=[
        "durable-streams subscriptions ls",
        "durable-streams subscriptions show orders",
        "durable-streams subscriptions delete orders",
    ],
)
@click.argument("action", type=click.Choice(["ls", "show", "delete"]))
@click.argument("name", required=False)
@connection_options
@click.pass_obj
def subscriptions(settings: Settings, *, action: str, name: str | None) -> None:
    """List all subscriptions (ls), show one with its cursors (show NAME), or delete one (delete NAME)."""
    root = _root(settings)
    if (action == "ls") is (name is not None):
        raise click.UsageError("ls takes no name, show and delete take one")
    if name is None:
        ids = _ask(settings, operations.list_subscriptions(root))
        emit(settings, "\n".join(ids) if ids else "no subscriptions", subscriptions=ids)
    elif action == "delete":
        _ask(settings, operations.delete_subscription(root, name))
        emit(settings, f"deleted {name}", id=name)
    else:
        shown = _ask(settings, operations.read_subscription(root, name, lag=True))
        emit(settings, _described(shown), **shown)


def _described(shown: dict[str, Any]) -> str:
    links = shown.pop("streams", [])
    width = max(map(len, shown), default=0)
    lines = [f"{key:<{width}}  {_text(value)}" for key, value in shown.items()]
    lines += ["  ".join(_fields_of(link)) for link in links]
    shown["streams"] = links
    return "\n".join(lines)


def _fields_of(link: dict[str, Any]) -> list[str]:
    lag = link.get("lag_bytes")  # other servers do not say it
    behind = [] if lag is None else [f"{lag:,} bytes behind"]
    return [link["path"], link["link_type"], link["acked_offset"], *behind]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@click.command(
    cls=Command,
    examples=[
        "durable-streams worker orders --exec 'jq .total'",
        "durable-streams worker orders --name host-1 --exec ./handle-batch",
    ],
)
@click.argument("subscription")
@click.option(
    "--exec",
    "command",
    metavar="COMMAND",
    required=True,
    help="A shell command: it gets the batch on its standard input; exit code 0 acknowledges it.",
)
@click.option("--name", metavar="NAME", help="Name of this worker.  [default: the host's, and the process]")
@click.option(
    "--ack",
    type=click.Choice(["after", "before"]),
    default="after",
    show_default=True,
    help="Acknowledge a batch after its command (at least once) or before it (at most once).",
)
@click.option(
    "--max-concurrent-streams",
    metavar="COUNT",
    type=click.IntRange(1, _MOST_STREAMS),
    default=1,
    show_default=True,
    help="How many streams have a command running at once; batches of one stream stay in order.",
)
@click.option(
    "--dead-letter",
    metavar="PATH",
    help="Stream of JSON that keeps the batches whose command fails too often, with their origin.",
)
@click.option(
    "--max-failures",
    metavar="COUNT",
    type=click.IntRange(1),
    help=f"How many failures make a dead letter.  [default: {DEFAULT_FAILURES}]",
)
@connection_options
@click.pass_obj
def worker(
    settings: Settings,
    *,
    subscription: str,
    command: str,
    name: str | None,
    ack: AckMode,
    max_concurrent_streams: int,
    dead_letter: str | None,
    max_failures: int | None,
) -> None:
    """Claim SUBSCRIPTION whenever it is woken, and run a command for each batch.

    Messages of JSON come as one line each, other data as they are. The command finds the path of the stream in
    DURABLE_STREAMS_PATH and the place behind the batch in DURABLE_STREAMS_OFFSET. The lease is renewed while it runs.
    A batch whose command fails comes again, after a pause that doubles up to a minute, or becomes a dead letter.
    """
    if max_failures is not None and dead_letter is None:
        raise click.UsageError("--max-failures needs --dead-letter, the stream that keeps what is given up")
    failures = 0

    def handle(batch: Batch) -> None:
        nonlocal failures
        code = _execute(command, batch)
        if code:
            raise _CommandError(f"the command ended with exit code {code}")
        failures = 0

    with SyncWorker(
        _root(settings),
        subscription,
        name or f"{socket.gethostname()}-{os.getpid()}",
        decode=msgspec.Raw,
        headers=settings.headers,
        ack=ack,
        max_concurrent_streams=max_concurrent_streams,
        dead_letter=dead_letter,
        max_failures=max_failures or DEFAULT_FAILURES,
    ) as working:
        while True:
            try:
                working.run(handle)
            except _CommandError as error:  # the lease is given back, and the batch comes again
                failures += 1
                pause = Failures.pause(failures)
                click.echo(f"{error}; again in {pause:g} s", err=True)
                time.sleep(pause)


class _CommandError(Exception):
    """The command of a worker failed."""


def _execute(command: str, batch: Batch) -> int:
    """Run the command, and return its exit code."""
    data = b"".join(bytes(item) + b"\n" for item in batch.items) or batch.data
    environment = {
        **os.environ,
        "DURABLE_STREAMS_PATH": batch.path,
        "DURABLE_STREAMS_OFFSET": batch.offset,
    }
    return subprocess.run(  # noqa: S602 - what the user asks for is a shell's command
        command, shell=True, input=data, env=environment, check=False
    ).returncode
