"""The command line, over the public API: ``durable-streams`` and ``python -m durable_streams.cli``."""

from __future__ import annotations

from durable_streams.cli.app import main

__all__ = ["main"]
