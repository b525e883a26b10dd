"""The version of the installed distribution, and what requests name it by."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["USER_AGENT", "__version__"]

__version__ = version("durable-streams")

USER_AGENT = f"durable-streams/{__version__}"
"""The ``User-Agent`` of every request, unless the caller's headers or client name another one."""
