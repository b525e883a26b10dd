"""What requests are logged: a share of all of them, and everything that changes which streams there are.

Invariants: no header, no query and no content of a request is logged, so that no secret is; a request that is not
logged costs a comparison, and nothing where neither log is wanted: then nothing is in its way.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable

from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ServerRequest, ServerResponse

__all__ = ["ACCESS", "AUDIT", "FIELDS", "logged"]

ACCESS = "durable_streams.access"
"""The logger of requests."""
AUDIT = "durable_streams.audit"
"""The logger of creations, deletions and refused credentials."""
FIELDS = "fields"
"""The attribute of a log record with its values by name."""

Handle = Callable[[ServerRequest], Awaitable[ServerResponse]]

_access, _audit = logging.getLogger(ACCESS), logging.getLogger(AUDIT)
_CHANGES = {("PUT", 201): "created", ("DELETE", 204): "deleted"}
_REFUSED = frozenset({401, 403})
_random = random.random


def logged(handle: Handle, config: ServerConfig) -> Handle:
    """Return a handler of requests that logs what a configuration asks for; the same one if it asks for nothing.

    Args:
        handle: Answers a request.
        config: The share of requests in ``access_log``, and ``audit_log``.
    """
    if not (config.access_log or config.audit_log):
        return handle
    share, audits = config.access_log, config.audit_log

    async def handle_and_log(request: ServerRequest) -> ServerResponse:
        began = time.perf_counter()
        response = await handle(request)
        status = response.status
        if share and (status >= 500 or share >= 1 or _random() < share):
            _note(_access, "request", request, status, seconds=round(time.perf_counter() - began, 6))
        if audits:
            event = _CHANGES.get((request.method, status)) or ("refused" if status in _REFUSED else None)
            if event is not None:
                _note(_audit, event, request, status)
        return response

    return handle_and_log


def _note(log: logging.Logger, event: str, request: ServerRequest, status: int, **more: float) -> None:
    fields = {
        "event": event,
        "method": request.method,
        "path": request.path,
        "status": status,
        "peer": request.peer(),
        **more,
    }
    said = " ".join(f"{name}={value!r}" for name, value in fields.items() if name != "event")
    log.info("%s %s", event, said, extra={FIELDS: fields})
