"""``manage.py runstreams``: the streams in a process of their own, of which the workers of a project are clients."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import replace
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from durable_streams.django.settings import ProjectSettings
from durable_streams.embedded.streams import with_store
from durable_streams.server.run import ServerFailedError, ServerStartError, serve

__all__ = ["Command"]

_ADDRESS = "127.0.0.1:4437"


class _RunStreams(BaseCommand):  # type: ignore[misc]  # Django ships no types
    """The command."""

    help = "Serves the streams of DURABLE_STREAMS in a process of their own, without Django's views."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take the address."""
        parser.add_argument(
            "addrport", nargs="?", default=_ADDRESS, help=f"port, or address:port (default: {_ADDRESS})"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        del args
        host, port = _address(options["addrport"])
        try:
            found = ProjectSettings.of_project()
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        if found.authorize is not None:
            raise CommandError(
                "AUTHORIZE needs Django beside the streams; keys and tokens (auth, jwks in CONFIG) work in a process "
                "of their own, too."
            )
        config = found.config if found.store is None else with_store(found.config, found.store)
        try:
            serve(replace(config, host=host, port=port), self._say)
        except (ServerStartError, ServerFailedError) as error:
            raise CommandError(str(error)) from error

    def _say(self, root: str) -> None:
        self.stdout.write(f"durable-streams: serving {root}; Ctrl-C ends it")
        self.stdout.flush()


Command = _RunStreams
"""The name that Django looks for."""


def _address(given: str) -> tuple[str, int]:
    host, _, port = given.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise CommandError(f"{given!r} is no address: write a port, or address:port.")
    return host.strip("[]") or _ADDRESS.partition(":")[0], int(port)
