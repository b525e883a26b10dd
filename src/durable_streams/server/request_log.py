"""What requests are logged: a share of all of them, and who did what that an operator is asked about later.

Invariants: no header, no query and no content of a request is logged, so that no secret is; a request that is not
logged costs a comparison, and nothing where neither log is wanted: then nothing is in its way; what is remembered of
callers is bounded.

| event | when |
| --- | --- |
| created, deleted | a stream, or a subscription, was |
| trimmed, retention | a stream was trimmed, or got another policy |
| refused | the caller is not known, or may not do this, even where the answer says that there is no such stream |
| used | a caller asked for something from an address, for the first time in ten minutes |
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Awaitable, Callable

from durable_streams.protocol import headers as names
from durable_streams.protocol.headers import RESERVED, STREAM_ROOT
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ServerRequest, ServerResponse

__all__ = ["ACCESS", "AUDIT", "FIELDS", "logged"]

ACCESS = "durable_streams.access"
"""The logger of requests."""
AUDIT = "durable_streams.audit"
"""The logger of who did what."""
FIELDS = "fields"
"""The attribute of a log record with its values by name."""

Handle = Callable[[ServerRequest], Awaitable[ServerResponse]]

_access, _audit = logging.getLogger(ACCESS), logging.getLogger(AUDIT)
_CHANGES = {("PUT", 201): "created", ("DELETE", 204): "deleted"}
_ACTIONS = {"trim": "trimmed", "retention": "retention"}
_STREAMS = f"{STREAM_ROOT}{RESERVED}/streams/"
_REFUSED = frozenset({401, 403})
_FENCE = names.PRODUCER_EPOCH  # a header of the 403 of a producer that another one replaced
_USED_EVERY = 600.0  # seconds
_MAX_USES = 10_000  # callers and addresses that are remembered
_random = random.random


def logged(handle: Handle, config: ServerConfig) -> Handle:
    """Return a handler of requests that logs what a configuration asks for; the same one if it asks for nothing.

    Args:
        handle: Answers a request.
        config: The share of requests in ``access_log``, and ``audit_log``.
    """
    if not (config.access_log or config.audit_log):
        return handle
    share = config.access_log
    audit = _Audit() if config.audit_log else None

    async def handle_and_log(request: ServerRequest) -> ServerResponse:
        began = time.perf_counter()
        response = await handle(request)
        status = response.status
        if share and (status >= 500 or share >= 1 or _random() < share):
            _note(_access, "request", request, status, seconds=round(time.perf_counter() - began, 6))
        if audit is not None:
            audit.note(request, response)
        return response

    return handle_and_log


class _Audit:
    """The log of who did what."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, str], float] = {}

    def note(self, request: ServerRequest, response: ServerResponse) -> None:
        """Log what a request did, if that is to be known."""
        caller = None if request.grant is None else request.grant.subject
        by = {} if caller is None else {"by": caller}
        event = _event(request, response)
        if event is not None:
            _note(_audit, event, request, response.status, **by)
        if caller is not None and event != "refused" and self._is_first(caller, request.peer()):
            _note(_audit, "used", request, response.status, **by)

    def _is_first(self, caller: str, peer: str) -> bool:
        now, use = time.monotonic(), (caller, peer)
        if now - self._uses.get(use, -math.inf) < _USED_EVERY:
            return False
        if len(self._uses) >= _MAX_USES:
            self._uses.clear()
        self._uses[use] = now
        return True


def _event(request: ServerRequest, response: ServerResponse) -> str | None:
    status = response.status
    if response.refused or (status in _REFUSED and all(name != _FENCE for name, _ in response.headers)):
        return "refused"
    if request.method == "POST" and status == 200 and request.path.startswith(_STREAMS):
        return _ACTIONS.get(request.path.rpartition("/")[2])
    return _CHANGES.get((request.method, status))


def _note(log: logging.Logger, event: str, request: ServerRequest, status: int, **more: float | str) -> None:
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
