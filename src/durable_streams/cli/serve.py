"""``serve``: the durable server, in this process."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from durable_streams.cli.help import Command
from durable_streams.cli.logs import LEVELS, Format, logging_to_stderr
from durable_streams.cli.options import DEFAULT_ROOT, PROGRAM, Settings, emit, json_option
from durable_streams.cli.retention import RetentionRuleType
from durable_streams.cli.units import Duration, Mode, Size, show_duration, show_mode, show_size
from durable_streams.server import ServerConfig, ServerStartError, tracing
from durable_streams.server import serve as run_server
from durable_streams.server.run import ServerFailedError, jetstream_config

__all__ = ["serve"]

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = ServerConfig()
_SECONDS = Duration(above_zero=True)
_BYTES = Size()


_SHOWN: dict[type, Callable[[Any], str]] = {Duration: show_duration, Size: show_size, Mode: show_mode}
_PATH = click.Path(path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _several(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Return values with commas, or blanks, between them."""
    return None if value is None else tuple(value.replace(",", " ").split())


def _setting(
    flag: str, text: str, kind: Any = None, *, name: str | None = None, **more: Any
) -> Callable[[F], F]:
    """Return an option that an environment variable sets too, with the default of `ServerConfig`.

    Args:
        flag: The option, ``--log-level``; its variable is ``DURABLE_STREAMS_LOG_LEVEL``. Or two that exclude each
            other, ``--ui/--no-ui``.
        text: Its help.
        kind: Its type; None for text, ``bool`` for a flag without a value.
        name: The setting; None where it is called as the option is.
        **more: What else Click's option takes.

    Returns:
        A decorator for a command.
    """
    called = flag.partition("/")[0].removeprefix("--").replace("-", "_")
    if kind is bool:
        more["is_flag"] = True
    elif "/" in flag:
        more["default"] = None  # neither of the two
    else:
        default = more.pop("default", getattr(_DEFAULTS, name or called, None))
        show = _SHOWN.get(type(kind))
        if default is not None and default != ():
            more = {"default": show(default) if show else default, "show_default": True} | more
        more["type"] = kind
    variable = f"DURABLE_STREAMS_{called.upper()}"
    return click.option(flag, name or called, envvar=variable, show_envvar=True, help=text, **more)


@click.command(
    cls=Command,
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
            "metrics_prefix",
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
            "ui",
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
            "max_unsorted_bytes",
            "disk_reserve",
        ],
    },
)
@_setting("--host", "Address to listen on.", metavar="NAME")
@_setting("--port", "Port to listen on; 0 picks a free one.", click.IntRange(0, 65535), metavar="PORT")
@_setting(
    "--uds", "Unix socket to listen at, instead of --host and --port: who may open the file may ask.", _PATH
)
@_setting("--uds-mode", "Permissions of that file, such as 660.", Mode(), metavar="MODE")
@_setting(
    "--admin-port",
    "Serve /metrics and /health on another port too; 0 picks a free one.",
    click.IntRange(0, 65535),
    metavar="PORT",
)
@_setting(
    "--metrics-prefix",
    "Count the streams apart whose paths begin with this text (jobs/); may be repeated.",
    multiple=True,
    metavar="PREFIX",
)
@_setting("--admin-host", "Address to listen on with --admin-port.", metavar="NAME")
@_setting(
    "--log-format",
    "How the log is written to standard error.",
    click.Choice(["text", "json"]),
    default="text",
)
@_setting("--log-level", "The least that is logged.", click.Choice(LEVELS), default="warning")
@_setting(
    "--access-log",
    "Log this share of requests, 0.01 for one in a hundred; failures of the server with them.",
    click.FloatRange(0, 1),
    metavar="SHARE",
)
@_setting(
    "--audit-log", "Log who creates, deletes and trims streams, refusals, and which callers there are.", bool
)
@_setting(
    "--otel",
    "Send a span of each request to OpenTelemetry (OTEL_EXPORTER_OTLP_ENDPOINT); it needs an extra.",
    bool,
    name="tracing",
)
@_setting(
    "--drain", "How long to go on after the signal to end, while /health/ready answers 503.", Duration()
)
@_setting(
    "--data-dir",
    "Folder of the SQLite store; created if it is missing.",
    _PATH,
    default=Path("durable-streams-data"),
)
@_setting("--memory", "Keep streams in memory only; they end with the process.", bool)
@_setting(
    "--store",
    "Keep streams on NATS JetStream, nats://a:4222,b:4222,c:4222; any number of servers may share them.",
    metavar="URLS",
)
@_setting("--nats-name", "Bucket on NATS; servers with the same one serve the same streams.", metavar="NAME")
@_setting(
    "--nats-replicas",
    "On how many NATS servers each stream is; by default as the bucket has it, 3 when it is made.",
    click.IntRange(1, 5),
    metavar="COUNT",
)
@_setting(
    "--nats-storage",
    "Where NATS keeps the bucket; by default as it is, in files when it is made.",
    click.Choice(["file", "memory"]),
)
@_setting("--nats-max-bytes", "How large the bucket may become; more is answered 507.", _BYTES)
@_setting("--nats-credentials", "Credentials file (.creds) for NATS.", _FILE, metavar="PATH")
@_setting(
    "--nats-tls-ca",
    "Certificates (PEM) that vouch for the NATS servers, if the system's do not.",
    _FILE,
    metavar="PATH",
)
@_setting("--long-poll-timeout", "How long a long-poll waits for data.", _SECONDS)
@_setting("--sse-max-age", "When an SSE connection is ended, for the client to reconnect.", _SECONDS)
@_setting("--max-body", "Largest request body; more is answered 413.", _BYTES)
@_setting(
    "--body-budget",
    "Memory for the bodies of all requests; more is answered 503. By default 256 MiB, at least twice --max-body.",
    _BYTES,
)
@_setting("--body-timeout", "How long a request body may not come on; then it is answered 408.", _SECONDS)
@_setting(
    "--send-budget",
    "Memory for what all clients together have not taken yet; those that stall longest are disconnected.",
    _BYTES,
)
@_setting(
    "--send-timeout", "How long a client may take nothing of an answer; then it is disconnected.", _SECONDS
)
@_setting(
    "--chunk-size",
    "How much is read from the store at once, and about how much an event or a long-poll brings.",
    _BYTES,
)
@_setting(
    "--max-streams-in-memory",
    "About how many streams' states are kept in memory; the others are loaded when they are asked for.",
    click.IntRange(min=1),
    metavar="COUNT",
)
@_setting(
    "--cache",
    "Who may keep what is read and cannot change: every cache, or the reader's own only.",
    click.Choice(["public", "private"]),
)
@_setting(
    "--keep-alive",
    "How long a connection may be silent between two requests, or in the head of one.",
    _SECONDS,
)
@_setting(
    "--tls-cert",
    "Certificate and its chain (PEM), for HTTPS; read again when it changes.",
    _PATH,
)
@_setting("--tls-key", "Private key of --tls-cert (PEM).", _PATH)
@_setting(
    "--tls-client-ca",
    "Authorities (PEM): clients without a certificate of one of them are not let in.",
    _PATH,
)
@_setting(
    "--auth",
    "File with the keys of callers, as `durable-streams key create` writes it; read again when it changes.",
    _PATH,
)
@_setting("--jwks", "JWK set whose keys verify JSON Web Tokens of callers.", metavar="URL|PATH")
@_setting(
    "--jwt-key",
    "The one key that does: a public key or certificate (PEM), or a secret of 32 bytes or more.",
    _PATH,
)
@_setting("--jwt-issuer", "The issuer (iss) that tokens have to have.")
@_setting("--jwt-audience", "The audience (aud) that tokens have to have; without it, none may have one.")
@_setting("--jwt-leeway", "By how much clocks may differ.", Duration())
@_setting(
    "--jwt-claim",
    "The claim with the grants of a token; without it, the words NAME:GRANT of its scope.",
    metavar="NAME",
)
@_setting("--no-auth", "Let everyone do everything, also on an address that other machines reach.", bool)
@_setting("--hide-forbidden", "Answer 404 instead of 403 for streams that the caller may not see.", bool)
@_setting(
    "--limits",
    "File (TOML) with how much each caller may do; read again when it changes.",
    _PATH,
)
@_setting(
    "--bind-producers",
    "Give each caller producer ids of its own: no other one can write, or fence, as its producer.",
    bool,
)
@_setting(
    "--public-url",
    "Address that clients use, https://example.com/streams, where a proxy changes it.",
    metavar="URL",
)
@_setting(
    "--trusted-proxies",
    "Addresses and networks of proxies whose X-Forwarded-Proto, -Host and -Prefix count (10.0.0.0/8).",
    metavar="NETWORKS",
    default="",
    show_default=False,
    callback=_several,
)
@_setting(
    "--cors-origins",
    "Origins, with commas between them, whose web pages may read and write (https://*.example.com); * for all.  "
    "[default: all; on this machine's own names and addresses only local ones]",
    metavar="ORIGINS",
    callback=_several,
)
@_setting("--cors-credentials", "Let pages of --cors-origins send cookies.", bool)
@_setting(
    "--allowed-hosts",
    "Names to answer to besides addresses and localhost, with commas between them (*.example.com); * for all.  "
    "[default: all; on a loopback address those without a dot]",
    metavar="NAMES",
    callback=_several,
)
@_setting(
    "--webhook-hosts",
    "Names that webhooks may go to, with commas between them (*.example.com).  [default: all public ones]",
    metavar="NAMES",
    callback=_several,
)
@_setting(
    "--webhook-allow-http-localhost",
    "Let webhooks go to this machine over plain http, for development.",
    bool,
)
@_setting(
    "--disk-timeout",
    "How long the disk may take for a commit or a read; then requests are answered 503 until it answers again.",
    _SECONDS,
)
@_setting(
    "--ui/--no-ui",
    "Show the inspector, a page to look at the streams, at /.  [default: on a loopback address, or where callers "
    "have keys]",
)
@_setting(
    "--disk-reserve",
    "Room in the data folder for deletions, closures and trims while the disk is full; 0 for none.",
    Size(least=0),
)
@_setting(
    "--max-queued-bytes", "How much may wait to be stored, over all streams; more is answered 503.", _BYTES
)
@_setting(
    "--max-queued-appends",
    "How many requests may wait to be stored, over all streams; more are answered 503.",
    click.IntRange(min=1),
    metavar="COUNT",
)
@_setting(
    "--max-unsorted-bytes",
    "How much memory the part of the commit log may take that is not in the tables yet.",
    _BYTES,
)
@_setting(
    "--retention",
    "What streams without a retention of their own keep, 'jobs/**=7d,1GiB'; the first rule that matches counts.",
    RetentionRuleType(),
    metavar="RULE",
    multiple=True,
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
    if config.uds is not None:
        fields["uds"] = str(config.uds)
        text += f" at the Unix socket {config.uds}"
    if admin:
        fields["metrics"] = admin[0]
        text += f", metrics at {admin[0]}"
    emit(settings, text, url=root, **fields)
    if sys.stdout is not None and sys.stdout.isatty() and not settings.json_output and config.uds is None:
        click.echo(_next_steps(root, config))


def _next_steps(root: str, config: ServerConfig) -> str:
    """Return what to try next, for a person at a terminal: commands that can be copied as they stand."""
    program = PROGRAM if shutil.which(PROGRAM) else f"{shlex.quote(sys.executable)} -m durable_streams"
    options = "" if root == DEFAULT_ROOT else f" --url {root}"
    return (
        "\nTry it, in another terminal:\n"
        f"  {program} create hello -t text 'Hello, world'{options}\n"
        f"  {program} tail hello{options}\n"
        f"  curl {root}/hello\n"
        f"{_page(root, config)}"
        "Ctrl-C stops the server.\n"
    )


def _page(root: str, config: ServerConfig) -> str:
    """Return where the inspector is, if it is certain that it is shown."""
    shown = config.ui if config.ui is not None else not config.no_auth
    return f"Or look at it: {root.removesuffix('v1/stream')}\n" if shown else ""
