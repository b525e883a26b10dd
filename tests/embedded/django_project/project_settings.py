"""The settings of a project with users, sessions and streams; its data is in the folder DATA."""

import json
import os
from pathlib import Path

DATA = Path(os.environ["DATA"])
SECRET_KEY = "of no use elsewhere"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "durable_streams.django",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": DATA / "db.sqlite3"}}
ROOT_URLCONF = "project_urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DURABLE_STREAMS = {
    "STORE": DATA / "streams",
    "PREFIX": "/live",
    "AUTHORIZE": "project_access.authorize",
    "CONFIG": {"sse_heartbeat": 5.0},
}
if "DURABLE_STREAMS" in os.environ:
    DURABLE_STREAMS = json.loads(os.environ["DURABLE_STREAMS"])
