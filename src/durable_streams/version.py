"""The version of the installed distribution, and what requests name it by."""

from __future__ import annotations

__all__ = ["USER_AGENT", "__version__"]

__version__ = "0.2.0"
"""What the distribution is built as. To ask the installed one instead would take a tenth of a short command's time."""

USER_AGENT = f"durable-streams/{__version__}"
"""The ``User-Agent`` of every request, unless the caller's headers or client name another one."""
