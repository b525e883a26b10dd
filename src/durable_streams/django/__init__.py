"""Streams in a Django project: an app, whose settings are ``DURABLE_STREAMS``.

INSTALLED_APPS = [..., "durable_streams.django"]
DURABLE_STREAMS = {"STORE": BASE_DIR / "streams"}

# asgi.py
from durable_streams.django import asgi_application

application = asgi_application()

# a view
from durable_streams.django import streams

await streams().stream("jobs/42").append({"state": "done"})
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from durable_streams.lazy import lazy_names

if TYPE_CHECKING:
    from durable_streams.django.project import asgi_application, streams, user_of

__all__ = ["asgi_application", "streams", "user_of"]

# At first use: Django imports this package before its apps are there.
__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(__all__, "django.project"))
