"""The address for operators (``--admin-port``): metrics and health, apart from what clients may ask for.

Invariants: it holds no streams and takes no bodies; it answers under names of this machine and under addresses, as the
other address does.
"""

from __future__ import annotations

from dataclasses import replace

from durable_streams.protocol.commands import Rejection
from durable_streams.server.addresses import Addresses
from durable_streams.server.app import App
from durable_streams.server.bodies import Bodies
from durable_streams.server.browsers import Browsers
from durable_streams.server.budget import MemoryBudget
from durable_streams.server.control import error_response, method_not_allowed
from durable_streams.server.http import ServerRequest, ServerResponse
from durable_streams.server.outlets import Outlets

__all__ = ["METRICS", "AdminApp"]

METRICS = "/metrics"
_BUDGET = 1 << 20  # bytes: answers are small


class AdminApp:
    """Answers at the address for operators; an adapter serves it as it serves an App.

    Args:
        app: The server that it is about.
        local: Whether it listens on a loopback address.
    """

    def __init__(self, app: App, *, local: bool) -> None:
        config = replace(app.config, host=app.config.admin_host, cors_origins=())
        self.outlets = Outlets(_BUDGET, MemoryBudget(_BUDGET), config.send_timeout)
        self.bodies = Bodies(_BUDGET, config.body_timeout)
        self._app = app
        self._metrics = app.metrics
        self._browsers = Browsers(config, Addresses(config), local=local)

    async def answer(self, request: ServerRequest) -> ServerResponse:
        """Answer a request."""
        try:
            self._browsers.admit(request)
            if request.path != METRICS:
                return await self._app.health(request)
            if request.method not in ("GET", "HEAD"):
                raise method_not_allowed("GET, HEAD")
            return await self._metrics.read(request)
        except Rejection as refusal:
            return error_response(
                refusal.status, refusal.code, refusal.message, list(refusal.headers.items())
            )
