"""``webhook-key``: a new key for the signatures of webhooks."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timezone
from pathlib import Path

import click

from durable_streams.cli.help import Command
from durable_streams.cli.options import Settings, emit, json_option
from durable_streams.server import ServerConfig, ServerStartError
from durable_streams.server.run import build_store
from durable_streams.server.subscriptions.keys import rotate
from durable_streams.stores.base import StoreError
from durable_streams.stores.subscriptions import kept_by

__all__ = ["webhook_key"]


@click.command(
    "webhook-key",
    cls=Command,
    examples=[
        "durable-streams webhook-key rotate --data-dir /srv/streams",
        "durable-streams webhook-key rotate --store nats://a:4222,b:4222",
    ],
)
@click.argument("action", type=click.Choice(["rotate"]))
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="Folder of the SQLite store; its server is stopped meanwhile.",
)
@click.option("--store", metavar="URLS", help="NATS, as for serve; its servers may run.")
@click.option(
    "--nats-name",
    metavar="NAME",
    default=ServerConfig().nats_name,
    show_default=True,
    help="Bucket on NATS.",
)
@json_option
@click.pass_obj
def webhook_key(
    settings: Settings, /, *, action: str, data_dir: Path | None, store: str | None, nats_name: str
) -> None:
    """Publish a new key, which begins to sign ten minutes later: when every receiver has seen it.

    The old key stays published for ten minutes more; it goes with the rotation after that.
    """
    _ = action  # there is one
    if (data_dir is None) is (store is None):
        raise click.UsageError("give either --data-dir or --store: where the key is")
    if data_dir is not None and not data_dir.is_dir():
        raise click.UsageError(
            f"there is no folder {data_dir}: give the one that the server keeps its streams in"
        )
    config = ServerConfig(data_dir=data_dir, store=store, nats_name=nats_name)
    try:
        since = asyncio.run(_rotate(config))
    except (StoreError, ServerStartError) as error:
        raise click.ClickException(str(error)) from error
    moment = datetime.fromtimestamp(since, timezone.utc).isoformat(timespec="seconds")
    emit(settings, f"a new key is published, and signs from {moment} on", signs_from=moment)


async def _rotate(config: ServerConfig) -> float:
    store = build_store(config)
    await store.open()
    try:
        return await rotate(kept_by(store), time.time())
    finally:
        await store.close()
