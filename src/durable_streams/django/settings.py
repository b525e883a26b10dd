"""``DURABLE_STREAMS`` of a project's settings.

STORE       the path of a folder, for SQLite; nats://a:4222,b:4222; without it, streams are in memory
PREFIX      the path under which clients find the streams; "/streams"
AUTHORIZE   the name, with its module, of the async function that says who may do what
CONFIG      further settings of the server: the arguments of ServerConfig
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from os import PathLike
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from durable_streams.embedded import DurableStreams
from durable_streams.server.access import Authorize
from durable_streams.server.config import ServerConfig
from durable_streams.server.run import ServerStartError

__all__ = ["ProjectSettings", "check_settings"]

_KEYS = frozenset({"STORE", "PREFIX", "AUTHORIZE", "CONFIG"})
_FIELDS = frozenset(field.name for field in dataclasses.fields(ServerConfig))
_ELSEWHERE = {"data_dir": "STORE", "store": "STORE"}


@dataclasses.dataclass(frozen=True)
class ProjectSettings:
    """The settings of the app."""

    store: str | PathLike[str] | None = None
    prefix: str = "/streams"
    authorize: str | None = None
    config: ServerConfig = dataclasses.field(default_factory=ServerConfig)

    @classmethod
    def of_project(cls) -> ProjectSettings:
        """Return what the project's settings say; raises ImproperlyConfigured with one sentence."""
        given: Any = getattr(settings, "DURABLE_STREAMS", {})
        if not isinstance(given, dict):
            raise _wrong(f"is a dictionary, not {given!r:.80}")
        if unknown := sorted(map(str, given.keys() - _KEYS)):
            raise _wrong(f"has no {unknown[0]!r}: it takes {', '.join(sorted(_KEYS))}")
        store, prefix, authorize = given.get("STORE"), given.get("PREFIX", "/streams"), given.get("AUTHORIZE")
        if not (store is None or isinstance(store, (str, PathLike))):
            raise _wrong(f"STORE is the path of a folder or a nats:// address, not {store!r:.80}")
        if not (isinstance(prefix, str) and prefix.startswith("/") and not prefix.endswith("/")):
            raise _wrong(f"PREFIX is a path such as '/streams', not {prefix!r:.80}")
        if not (authorize is None or isinstance(authorize, str)):
            raise _wrong(f"AUTHORIZE is a name such as 'project.access.authorize', not {authorize!r:.80}")
        return cls(store, prefix, authorize, _config(given.get("CONFIG", {})))

    def streams(self) -> DurableStreams:
        """Return the streams; raises ImproperlyConfigured where they can never be opened."""
        try:
            return DurableStreams(self.store, config=self.config, authorize=self.authorizer())
        except (ServerStartError, ValueError) as error:
            raise _wrong(f"cannot be used: {error}") from error

    def authorizer(self) -> Authorize | None:
        """Return the function that says who may do what; raises ImproperlyConfigured where there is none."""
        if self.authorize is None:
            return None
        try:
            found: Authorize = import_string(self.authorize)
        except ImportError as error:
            raise _wrong(f"AUTHORIZE cannot be imported: {error}") from error
        return found


def _config(given: Any) -> ServerConfig:
    if not isinstance(given, dict):
        raise _wrong(f"CONFIG is a dictionary of settings of ServerConfig, not {given!r:.80}")
    for name in given:
        if name in _ELSEWHERE:
            raise _wrong(f"CONFIG has {name!r}: name the store as {_ELSEWHERE[name]}")
        if name not in _FIELDS:
            raise _wrong(f"CONFIG has {name!r:.80}, which is no setting of ServerConfig")
    try:
        return ServerConfig(**given)
    except (TypeError, ValueError) as error:
        raise _wrong(f"CONFIG makes no sense: {error}") from error


def _wrong(what: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"DURABLE_STREAMS {what}")


def check_settings(app_configs: Sequence[Any] | None = None, **options: Any) -> list[CheckMessage]:
    """Return what is wrong with the settings, for ``manage.py check``."""
    del app_configs, options
    try:
        ProjectSettings.of_project().authorizer()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="durable_streams.E001")]
    return []
