"""``serve``: the durable server, in this process."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from durable_streams.cli.options import Settings, emit, json_option
from durable_streams.server import ServerConfig, ServerStartError
from durable_streams.server import serve as run_server

__all__ = ["serve"]

_DEFAULTS = ServerConfig()
_SECONDS = click.FloatRange(min=0, min_open=True)
_BYTES = click.IntRange(min=1)


@click.command()
@click.option(
    "--host",
    default=_DEFAULTS.host,
    envvar="DURABLE_STREAMS_HOST",
    show_default=True,
    show_envvar=True,
    help="Address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=_DEFAULTS.port,
    envvar="DURABLE_STREAMS_PORT",
    show_default=True,
    show_envvar=True,
    help="Port to listen on; 0 picks a free one.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    default=Path("durable-streams-data"),
    envvar="DURABLE_STREAMS_DATA_DIR",
    show_default=True,
    show_envvar=True,
    help="Folder of the SQLite store; created if it is missing.",
)
@click.option(
    "--memory",
    is_flag=True,
    envvar="DURABLE_STREAMS_MEMORY",
    show_envvar=True,
    help="Keep streams in memory only; they end with the process.",
)
@click.option(
    "--long-poll-timeout",
    type=_SECONDS,
    default=_DEFAULTS.long_poll_timeout,
    envvar="DURABLE_STREAMS_LONG_POLL_TIMEOUT",
    metavar="SECONDS",
    show_default=True,
    show_envvar=True,
    help="How long a long-poll waits for data.",
)
@click.option(
    "--sse-max-age",
    type=_SECONDS,
    default=_DEFAULTS.sse_max_age,
    envvar="DURABLE_STREAMS_SSE_MAX_AGE",
    metavar="SECONDS",
    show_default=True,
    show_envvar=True,
    help="When an SSE connection is ended, for the client to reconnect.",
)
@click.option(
    "--max-body",
    type=_BYTES,
    default=_DEFAULTS.max_body,
    envvar="DURABLE_STREAMS_MAX_BODY",
    metavar="BYTES",
    show_default=True,
    show_envvar=True,
    help="Largest request body; more is answered 413.",
)
@click.option(
    "--chunk-size",
    type=_BYTES,
    default=_DEFAULTS.chunk_size,
    envvar="DURABLE_STREAMS_CHUNK_SIZE",
    metavar="BYTES",
    show_default=True,
    show_envvar=True,
    help="About how much one read answers at once.",
)
@json_option
@click.pass_context
def serve(
    ctx: click.Context,
    *,
    host: str,
    port: int,
    data_dir: Path,
    memory: bool,
    long_poll_timeout: float,
    sse_max_age: float,
    max_body: int,
    chunk_size: int,
) -> None:
    """Run the durable server until SIGTERM or Ctrl-C; both end it cleanly, with exit code 0.

    When it is ready it prints one line with its stream root URL.
    """
    config = ServerConfig(
        host=host,
        port=port,
        data_dir=None if _in_memory(ctx, memory) else data_dir,
        long_poll_timeout=long_poll_timeout,
        sse_max_age=sse_max_age,
        max_body=max_body,
        chunk_size=chunk_size,
    )
    settings = ctx.ensure_object(Settings)
    try:
        run_server(config, lambda root: _announce(settings, root, config.data_dir))
    except ServerStartError as error:
        raise click.ClickException(str(error)) from error


def _in_memory(ctx: click.Context, memory: bool) -> bool:
    """Return which store was asked for; an option outranks the environment."""
    folder_given = ctx.get_parameter_source("data_dir")
    memory_given = ctx.get_parameter_source("memory")
    if memory and folder_given is memory_given:
        raise click.UsageError("--memory and --data-dir exclude each other; give one of them")
    return memory and folder_given is not ParameterSource.COMMANDLINE


def _announce(settings: Settings, root: str, data_dir: Path | None) -> None:
    place = str(data_dir.resolve()) if data_dir is not None else None
    emit(settings, f"durable-streams: serving {root} ({place or 'in memory'})", url=root, data_dir=place)
