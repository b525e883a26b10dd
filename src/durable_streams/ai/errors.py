"""The error of a chat that is busy."""

from __future__ import annotations

from durable_streams.errors import DurableStreamError

__all__ = ["RunActiveError"]


class RunActiveError(DurableStreamError):
    """409: an answer is being generated in this chat, or in too many others."""

    default_code = "RUN_ACTIVE"
    default_status = 409
