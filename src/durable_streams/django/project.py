"""What a project's code uses: the streams, the ASGI application, and the user of a request for a stream."""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import aget_user
from django.core.asgi import get_asgi_application
from django.core.handlers.asgi import ASGIRequest

from durable_streams.django.settings import ProjectSettings
from durable_streams.embedded import DurableStreams
from durable_streams.embedded.streams import AsgiCallable
from durable_streams.server.http import ServerRequest

__all__ = ["asgi_application", "streams", "user_of"]


def streams() -> DurableStreams:
    """Return the streams of the project, which its views use.

    Raises:
        ImproperlyConfigured: ``DURABLE_STREAMS`` makes no sense.
        LookupError: ``durable_streams.django`` is not in ``INSTALLED_APPS``.
    """
    found: DurableStreams = apps.get_app_config("durable_streams").streams
    return found


def asgi_application() -> AsgiCallable:
    """Return the ASGI application of the project with the streams beside it, for ``asgi.py``.

    The server that runs it opens and closes the streams (its lifespan), as Uvicorn, Hypercorn and Granian do.

    Raises:
        ImproperlyConfigured: ``DURABLE_STREAMS`` makes no sense.
        LookupError: ``durable_streams.django`` is not in ``INSTALLED_APPS``.
    """
    application = get_asgi_application()  # it sets Django up
    return streams().beside(application, ProjectSettings.of_project().prefix)


async def user_of(request: ServerRequest) -> Any:
    """Return the user of a request for a stream, by its session's cookie: for ``AUTHORIZE``.

    Requests for streams do not pass Django's middleware. A request without a session has the anonymous user.

    Args:
        request: What ``AUTHORIZE`` is called with.
    """
    asked = ASGIRequest({**request.scope, "path": request.scope["path"]}, BytesIO())
    engine = import_module(settings.SESSION_ENGINE)
    asked.session = engine.SessionStore(asked.COOKIES.get(settings.SESSION_COOKIE_NAME))
    return await aget_user(asked)
