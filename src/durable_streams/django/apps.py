"""The app, as ``INSTALLED_APPS`` names it."""

from __future__ import annotations

from functools import cached_property

from django.apps import AppConfig
from django.core.checks import register

from durable_streams.django.settings import ProjectSettings, check_settings
from durable_streams.embedded import DurableStreams

__all__ = ["StreamsConfig"]


class StreamsConfig(AppConfig):  # type: ignore[misc]  # Django ships no types
    """The app of the streams: it has no models, and one `DurableStreams`."""

    name = "durable_streams.django"
    label = "durable_streams"
    verbose_name = "Durable streams"

    def ready(self) -> None:
        """Have ``manage.py check`` look at the settings."""
        register(check_settings)

    @cached_property
    def streams(self) -> DurableStreams:
        """The streams, made at the first use: a command that needs none opens none."""
        return ProjectSettings.of_project().streams()
