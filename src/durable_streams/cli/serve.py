"""``serve``: the durable server, in this process."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from durable_streams.cli.help import Command
from durable_streams.cli.logs import LEVELS, Format, logging_to_stderr
from durable_streams.cli.options import DEFAULT_ROOT, PROGRAM, Settings, emit, json_option
from durable_streams.cli.retention import RetentionRuleType
from durable_streams.cli.units import Duration, Size, show_duration, show_size
from durable_streams.server import ServerConfig, ServerStartError, tracing
from durable_streams.server import serve as run_server
from durable_streams.server.run import ServerFailedError, jetstream_config

__all__ = ["serve"]

_DEFAULTS = ServerConfig()
_SECONDS = Duration(above_zero=True)
_BYTES = Size()
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _several(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Return values with commas, or blanks, between them."""
    return None if value is None else tuple(value.replace(",", " ").split())


@click.command(
    cls=Command,
    short_help="Run the server, until Ctrl-C or SIGTERM.",
    examples=[
        "durable-streams serve",
        "durable-streams serve --memory --port 0",
        "durable-streams serve --data-dir /srv/streams --max-body 16MiB",
        "durable-streams serve --host 0.0.0.0 --auth keys.toml",
    ],
    groups={
        "NATS": [
            "store",
            "nats_name",
            "nats_replicas",
            "nats_storage",
            "nats_max_bytes",
            "nats_credentials",
            "nats_tls_ca",
        ],
        "Operators": [
            "admin_host",
            "admin_port",
            "drain",
            "log_format",
            "log_level",
            "access_log",
            "audit_log",
            "tracing",
        ],
        "TLS": ["tls_cert", "tls_key", "tls_client_ca"],
        "Who may do what": [
            "auth",
            "jwks",
            "jwt_key",
            "jwt_issuer",
            "jwt_audience",
            "jwt_leeway",
            "jwt_claim",
            "no_auth",
            "hide_forbidden",
            "bind_producers",
            "limits",
        ],
        "Browsers, names and proxies": [
            "public_url",
            "trusted_proxies",
            "cors_origins",
            "cors_credentials",
            "allowed_hosts",
            "cache",
        ],
        "Webhooks": ["webhook_hosts", "webhook_allow_http_localhost"],
        "Times": [
            "long_poll_timeout",
            "sse_max_age",
            "body_timeout",
            "send_timeout",
            "keep_alive",
            "disk_timeout",
        ],
        "Sizes": [
            "max_body",
            "body_budget",
            "send_budget",
            "chunk_size",
            "max_streams_in_memory",
            "max_queued_bytes",
            "max_queued_appends",
            "disk_reserve",
        ],
    },
)
@click.option(
    "--host",
    metavar="NAME",
    default=_DEFAULTS.host,
    envvar="DURABLE_STREAMS_HOST",
    show_default=True,
    show_envvar=True,
    help="Address to listen on.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=_DEFAULTS.port,
    envvar="DURABLE_STREAMS_PORT",
    show_default=True,
    show_envvar=True,
    help="Port to listen on; 0 picks a free one.",
)
@click.option(
    "--admin-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    envvar="DURABLE_STREAMS_ADMIN_PORT",
    show_envvar=True,
    help="Serve /metrics and /health on another port too; 0 picks a free one.",
)
@click.option(
    "--admin-host",
    metavar="NAME",
    default=_DEFAULTS.admin_host,
    envvar="DURABLE_STREAMS_ADMIN_HOST",
    show_default=True,
    show_envvar=True,
    help="Address to listen on with --admin-port.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="DURABLE_STREAMS_LOG_FORMAT",
    show_default=True,
    show_envvar=True,
    help="How the log is written to standard error.",
)
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="warning",
    envvar="DURABLE_STREAMS_LOG_LEVEL",
    show_default=True,
    show_envvar=True,
    help="The least that is logged.",
)
@click.option(
    "--access-log",
    type=click.FloatRange(0, 1),
    default=_DEFAULTS.access_log,
    envvar="DURABLE_STREAMS_ACCESS_LOG",
    metavar="SHARE",
    show_default=True,
    show_envvar=True,
    help="Log this share of requests, 0.01 for one in a hundred; failures of the server with them.",
)
@click.option(
    "--audit-log",
    is_flag=True,
    envvar="DURABLE_STREAMS_AUDIT_LOG",
    show_envvar=True,
    help="Log creations and deletions of streams, and refused credentials.",
)
@click.option(
    "--otel",
    "tracing",
    is_flag=True,
    envvar="DURABLE_STREAMS_OTEL",
    show_envvar=True,
    help="Send a span of each request to OpenTelemetry (OTEL_EXPORTER_OTLP_ENDPOINT); it needs an extra.",
)
@click.option(
    "--drain",
    type=Duration(),
    default=show_duration(_DEFAULTS.drain),
    envvar="DURABLE_STREAMS_DRAIN",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="How long to go on after the signal to end, while /health/ready answers 503.",
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
    "--store",
    metavar="URLS",
    envvar="DURABLE_STREAMS_STORE",
    show_envvar=True,
    help="Keep streams on NATS JetStream, nats://a:4222,b:4222,c:4222; any number of servers may share them.",
)
@click.option(
    "--nats-name",
    default=_DEFAULTS.nats_name,
    envvar="DURABLE_STREAMS_NATS_NAME",
    metavar="NAME",
    show_default=True,
    show_envvar=True,
    help="Bucket on NATS; servers with the same one serve the same streams.",
)
@click.option(
    "--nats-replicas",
    type=click.IntRange(1, 5),
    metavar="COUNT",
    envvar="DURABLE_STREAMS_NATS_REPLICAS",
    show_envvar=True,
    help="On how many NATS servers each stream is; by default as the bucket has it, 3 when it is made.",
)
@click.option(
    "--nats-storage",
    type=click.Choice(["file", "memory"]),
    envvar="DURABLE_STREAMS_NATS_STORAGE",
    show_envvar=True,
    help="Where NATS keeps the bucket; by default as it is, in files when it is made.",
)
@click.option(
    "--nats-max-bytes",
    type=_BYTES,
    envvar="DURABLE_STREAMS_NATS_MAX_BYTES",
    metavar="SIZE",
    show_envvar=True,
    help="How large the bucket may become; more is answered 507.",
)
@click.option(
    "--nats-credentials",
    type=_FILE,
    envvar="DURABLE_STREAMS_NATS_CREDENTIALS",
    metavar="PATH",
    show_envvar=True,
    help="Credentials file (.creds) for NATS.",
)
@click.option(
    "--nats-tls-ca",
    type=_FILE,
    envvar="DURABLE_STREAMS_NATS_TLS_CA",
    metavar="PATH",
    show_envvar=True,
    help="Certificates (PEM) that vouch for the NATS servers, if the system's do not.",
)
@click.option(
    "--long-poll-timeout",
    type=_SECONDS,
    default=show_duration(_DEFAULTS.long_poll_timeout),
    envvar="DURABLE_STREAMS_LONG_POLL_TIMEOUT",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="How long a long-poll waits for data.",
)
@click.option(
    "--sse-max-age",
    type=_SECONDS,
    default=show_duration(_DEFAULTS.sse_max_age),
    envvar="DURABLE_STREAMS_SSE_MAX_AGE",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="When an SSE connection is ended, for the client to reconnect.",
)
@click.option(
    "--max-body",
    type=_BYTES,
    default=show_size(_DEFAULTS.max_body),
    envvar="DURABLE_STREAMS_MAX_BODY",
    metavar="SIZE",
    show_default=True,
    show_envvar=True,
    help="Largest request body; more is answered 413.",
)
@click.option(
    "--body-budget",
    type=_BYTES,
    envvar="DURABLE_STREAMS_BODY_BUDGET",
    metavar="SIZE",
    show_envvar=True,
    help="Memory for the bodies of all requests; more is answered 503. By default 256 MiB, at least twice --max-body.",
)
@click.option(
    "--body-timeout",
    type=_SECONDS,
    default=show_duration(_DEFAULTS.body_timeout),
    envvar="DURABLE_STREAMS_BODY_TIMEOUT",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="How long a request body may not come on; then it is answered 408.",
)
@click.option(
    "--send-budget",
    type=_BYTES,
    default=show_size(_DEFAULTS.send_budget),
    envvar="DURABLE_STREAMS_SEND_BUDGET",
    metavar="SIZE",
    show_default=True,
    show_envvar=True,
    help="Memory for what all clients together have not taken yet; those that stall longest are disconnected.",
)
@click.option(
    "--send-timeout",
    type=_SECONDS,
    default=show_duration(_DEFAULTS.send_timeout),
    envvar="DURABLE_STREAMS_SEND_TIMEOUT",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="How long a client may take nothing of an answer; then it is disconnected.",
)
@click.option(
    "--chunk-size",
    type=_BYTES,
    default=show_size(_DEFAULTS.chunk_size),
    envvar="DURABLE_STREAMS_CHUNK_SIZE",
    metavar="SIZE",
    show_default=True,
    show_envvar=True,
    help="How much is read from the store at once, and about how much an event or a long-poll brings.",
)
@click.option(
    "--max-streams-in-memory",
    type=click.IntRange(min=1),
    metavar="COUNT",
    default=_DEFAULTS.max_streams_in_memory,
    envvar="DURABLE_STREAMS_MAX_STREAMS_IN_MEMORY",
    show_default=True,
    show_envvar=True,
    help="About how many streams' states are kept in memory; the others are loaded when they are asked for.",
)
@click.option(
    "--cache",
    type=click.Choice(["public", "private"]),
    default=_DEFAULTS.cache,
    envvar="DURABLE_STREAMS_CACHE",
    show_default=True,
    show_envvar=True,
    help="Who may keep what is read and cannot change: every cache, or the reader's own only.",
)
@click.option(
    "--keep-alive",
    type=_SECONDS,
    default=show_duration(_DEFAULTS.keep_alive),
    envvar="DURABLE_STREAMS_KEEP_ALIVE",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="How long a connection may be silent between two requests, or in the head of one.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    envvar="DURABLE_STREAMS_TLS_CERT",
    metavar="PATH",
    show_envvar=True,
    help="Certificate and its chain (PEM), for HTTPS; read again when it changes.",
)
@click.option(
    "--tls-key",
    type=click.Path(path_type=Path),
    envvar="DURABLE_STREAMS_TLS_KEY",
    metavar="PATH",
    show_envvar=True,
    help="Private key of --tls-cert (PEM).",
)
@click.option(
    "--tls-client-ca",
    type=click.Path(path_type=Path),
    envvar="DURABLE_STREAMS_TLS_CLIENT_CA",
    metavar="PATH",
    show_envvar=True,
    help="Authorities (PEM): clients without a certificate of one of them are not let in.",
)
@click.option(
    "--auth",
    type=click.Path(path_type=Path),
    envvar="DURABLE_STREAMS_AUTH",
    metavar="PATH",
    show_envvar=True,
    help="File with the keys of callers, as `durable-streams key create` writes it; read again when it changes.",
)
@click.option(
    "--jwks",
    envvar="DURABLE_STREAMS_JWKS",
    metavar="URL|PATH",
    show_envvar=True,
    help="JWK set whose keys verify JSON Web Tokens of callers.",
)
@click.option(
    "--jwt-key",
    type=click.Path(path_type=Path),
    envvar="DURABLE_STREAMS_JWT_KEY",
    metavar="PATH",
    show_envvar=True,
    help="The one key that does: a public key or certificate (PEM), or a secret of 32 bytes or more.",
)
@click.option(
    "--jwt-issuer",
    envvar="DURABLE_STREAMS_JWT_ISSUER",
    metavar="TEXT",
    show_envvar=True,
    help="The issuer (iss) that tokens have to have.",
)
@click.option(
    "--jwt-audience",
    envvar="DURABLE_STREAMS_JWT_AUDIENCE",
    metavar="TEXT",
    show_envvar=True,
    help="The audience (aud) that tokens have to have; without it, none may have one.",
)
@click.option(
    "--jwt-leeway",
    type=Duration(),
    default=show_duration(_DEFAULTS.jwt_leeway),
    envvar="DURABLE_STREAMS_JWT_LEEWAY",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="By how much clocks may differ.",
)
@click.option(
    "--jwt-claim",
    default=_DEFAULTS.jwt_claim,
    envvar="DURABLE_STREAMS_JWT_CLAIM",
    metavar="NAME",
    show_default=True,
    show_envvar=True,
    help="The claim with the grants of a token; without it, the words NAME:GRANT of its scope.",
)
@click.option(
    "--no-auth",
    is_flag=True,
    envvar="DURABLE_STREAMS_NO_AUTH",
    show_envvar=True,
    help="Let everyone do everything, also on an address that other machines reach.",
)
@click.option(
    "--hide-forbidden",
    is_flag=True,
    envvar="DURABLE_STREAMS_HIDE_FORBIDDEN",
    show_envvar=True,
    help="Answer 404 instead of 403 for streams that the caller may not see.",
)
@click.option(
    "--limits",
    type=click.Path(path_type=Path),
    envvar="DURABLE_STREAMS_LIMITS",
    metavar="PATH",
    show_envvar=True,
    help="File (TOML) with how much each caller may do; read again when it changes.",
)
@click.option(
    "--bind-producers",
    is_flag=True,
    envvar="DURABLE_STREAMS_BIND_PRODUCERS",
    show_envvar=True,
    help="Give each caller producer ids of its own: no other one can write, or fence, as its producer.",
)
@click.option(
    "--public-url",
    envvar="DURABLE_STREAMS_PUBLIC_URL",
    metavar="URL",
    show_envvar=True,
    help="Address that clients use, https://example.com/streams, where a proxy changes it.",
)
@click.option(
    "--trusted-proxies",
    callback=_several,
    default=",".join(_DEFAULTS.trusted_proxies),
    envvar="DURABLE_STREAMS_TRUSTED_PROXIES",
    metavar="NETWORKS",
    show_envvar=True,
    help="Addresses and networks of proxies whose X-Forwarded-Proto, -Host and -Prefix count (10.0.0.0/8).",
)
@click.option(
    "--cors-origins",
    callback=_several,
    envvar="DURABLE_STREAMS_CORS_ORIGINS",
    metavar="ORIGINS",
    show_envvar=True,
    help="Origins, with commas between them, whose web pages may read and write (https://*.example.com); * for all.  "
    "[default: all; on this machine's own names and addresses only local ones]",
)
@click.option(
    "--cors-credentials",
    is_flag=True,
    envvar="DURABLE_STREAMS_CORS_CREDENTIALS",
    show_envvar=True,
    help="Let pages of --cors-origins send cookies.",
)
@click.option(
    "--allowed-hosts",
    callback=_several,
    envvar="DURABLE_STREAMS_ALLOWED_HOSTS",
    metavar="NAMES",
    show_envvar=True,
    help="Names to answer to besides addresses and localhost, with commas between them (*.example.com); * for all.  "
    "[default: all; on a loopback address those without a dot]",
)
@click.option(
    "--webhook-hosts",
    callback=_several,
    envvar="DURABLE_STREAMS_WEBHOOK_HOSTS",
    metavar="NAMES",
    show_envvar=True,
    help="Names that webhooks may go to, with commas between them (*.example.com).  [default: all public ones]",
)
@click.option(
    "--webhook-allow-http-localhost",
    is_flag=True,
    envvar="DURABLE_STREAMS_WEBHOOK_ALLOW_HTTP_LOCALHOST",
    show_envvar=True,
    help="Let webhooks go to this machine over plain http, for development.",
)
@click.option(
    "--disk-timeout",
    type=_SECONDS,
    default=show_duration(_DEFAULTS.disk_timeout),
    envvar="DURABLE_STREAMS_DISK_TIMEOUT",
    metavar="TIME",
    show_default=True,
    show_envvar=True,
    help="How long the disk may take for a commit or a read; then requests are answered 503 until it answers again.",
)
@click.option(
    "--disk-reserve",
    type=Size(least=0),
    default=show_size(_DEFAULTS.disk_reserve),
    envvar="DURABLE_STREAMS_DISK_RESERVE",
    metavar="SIZE",
    show_default=True,
    show_envvar=True,
    help="Room in the data folder for deletions, closures and trims while the disk is full; 0 for none.",
)
@click.option(
    "--max-queued-bytes",
    type=_BYTES,
    default=show_size(_DEFAULTS.max_queued_bytes),
    envvar="DURABLE_STREAMS_MAX_QUEUED_BYTES",
    metavar="SIZE",
    show_default=True,
    show_envvar=True,
    help="How much may wait to be stored, over all streams; more is answered 503.",
)
@click.option(
    "--max-queued-appends",
    type=click.IntRange(min=1),
    metavar="COUNT",
    default=_DEFAULTS.max_queued_appends,
    envvar="DURABLE_STREAMS_MAX_QUEUED_APPENDS",
    show_default=True,
    show_envvar=True,
    help="How many requests may wait to be stored, over all streams; more are answered 503.",
)
@click.option(
    "--retention",
    multiple=True,
    type=RetentionRuleType(),
    envvar="DURABLE_STREAMS_RETENTION",
    metavar="RULE",
    show_envvar=True,
    help="What streams without a retention of their own keep, 'jobs/**=7d,1GiB'; the first rule that matches counts.",
)
@json_option
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    *,
    data_dir: Path,
    memory: bool,
    store: str | None,
    log_format: Format,
    log_level: str,
    **options: Any,
) -> None:
    """Run the durable server until SIGTERM or Ctrl-C; both end it cleanly, with exit code 0.

    Exit code 1 says that it did not start, or that at its end the data folder was gone or the disk did not answer.

    When it is ready it prints one line with its stream root URL.
    """
    given = {"store": store is not None, "memory": memory, "data_dir": True}
    chosen = _chosen(ctx, [name for name, is_given in given.items() if is_given])
    try:
        config = ServerConfig(
            data_dir=data_dir if chosen == "data_dir" else None,
            store=store if chosen == "store" else None,
            **options,
        )
    except ValueError as error:
        raise click.UsageError(f"--{str(error).replace('_', '-', 1)}") from error
    settings = ctx.ensure_object(Settings)
    try:
        place = _place(ctx, config)
        admin: list[str] = []
        with logging_to_stderr(log_format, log_level), _spans(config):
            run_server(config, lambda root: _announce(settings, root, config, place, admin), admin.append)
    except ServerFailedError as error:
        click.echo(f"Error: {error}", err=True)
        os._exit(1)  # a thread may wait for a disk that never answers
    except ServerStartError as error:
        raise click.ClickException(str(error)) from error
    except BrokenPipeError:
        pass  # the ready line has no reader
    # Everything is closed, stored and printed. A thread of the HTTP server that asks for the interpreter while it is
    # finalized would print a panic.
    os._exit(0)


def _spans(config: ServerConfig) -> contextlib.AbstractContextManager[None]:
    """Return a context in which spans are sent, if that is configured."""
    if not config.tracing:
        return contextlib.nullcontext()
    if not tracing.is_available():
        raise click.ClickException(f"spans need the SDK of OpenTelemetry: {tracing.INSTALL}")
    return tracing.exporting()


def _chosen(ctx: click.Context, stores: list[str]) -> str:
    """Return which of the stores that were asked for it is; an option outranks the environment, that the default."""
    for source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        given = [name for name in stores if ctx.get_parameter_source(name) is source]
        if len(given) > 1:
            names = " and ".join("--" + name.replace("_", "-") for name in given)
            raise click.UsageError(f"{names} exclude each other; give one of them")
        if given:
            return given[0]
    return "data_dir"


def _place(ctx: click.Context, config: ServerConfig) -> str:
    """Return where the streams are, for people; refuses NATS settings that make no sense."""
    if config.store is None:
        for name in ctx.params:
            if name.startswith("nats_") and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} needs --store, which says where NATS is")
        return "in memory" if config.data_dir is None else str(config.data_dir.resolve())
    try:
        nats = jetstream_config(config)
    except ValueError as error:
        raise click.UsageError(f"--store: {error}") from error
    hosts = ",".join(server.partition("://")[2].rpartition("@")[2] for server in nats.servers)
    return f"NATS {hosts} as {nats.name}"


def _announce(settings: Settings, root: str, config: ServerConfig, place: str, admin: list[str]) -> None:
    fields = {"data_dir": place if config.data_dir else None, "store": place if config.store else None}
    text = f"durable-streams: serving {root} ({place})"
    if admin:
        fields["metrics"] = admin[0]
        text += f", metrics at {admin[0]}"
    emit(settings, text, url=root, **fields)
    if sys.stdout is not None and sys.stdout.isatty() and not settings.json_output:
        click.echo(_next_steps(root))


def _next_steps(root: str) -> str:
    """Return what to try next, for a person at a terminal: commands that can be copied as they stand."""
    program = PROGRAM if shutil.which(PROGRAM) else f"{shlex.quote(sys.executable)} -m durable_streams"
    options = "" if root == DEFAULT_ROOT else f" --url {root}"
    return (
        "\nTry it, in another terminal:\n"
        f"  {program} create hello -t text 'Hello, world'{options}\n"
        f"  {program} tail hello{options}\n"
        f"  curl {root}/hello\n"
        "Ctrl-C stops the server.\n"
    )
