"""The inspector: a page at ``/`` that shows what the server has, over its public HTTP interface.

Invariants: the page holds no data, so that it may be read without credentials; whatever streams contain, it runs only
scripts that come with it (its Content-Security-Policy).
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import NamedTuple

from durable_streams.server.http import ServerRequest, ServerResponse

__all__ = ["Inspector"]

_FOLDER = "page"
_PREFIX = f"/{_FOLDER}/"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


class _File(NamedTuple):
    body: bytes
    content_type: str
    etag: str


class Inspector:
    """The files of the page, by their paths."""

    def __init__(self) -> None:
        self._files = dict(_load())

    def has(self, path: str) -> bool:
        """Whether a path is one of the page's."""
        return path in self._files

    async def read(self, request: ServerRequest, path: str) -> ServerResponse:
        """GET: one of the files."""
        file = self._files[path]
        headers = [
            ("x-content-type-options", "nosniff"),
            ("cross-origin-resource-policy", "same-origin"),
            ("content-security-policy", _POLICY),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
            ("etag", file.etag),
        ]
        if request.header("if-none-match") == file.etag:
            return ServerResponse(304, headers)
        return ServerResponse(200, [*headers, ("content-type", file.content_type)], file.body)


def _load() -> list[tuple[str, _File]]:
    found = []
    for entry in files("durable_streams.server").joinpath(_FOLDER).iterdir():
        content_type = _TYPES.get(entry.name[entry.name.rfind(".") :])
        if content_type is not None:
            body = entry.read_bytes()
            path = "/" if entry.name == "index.html" else _PREFIX + entry.name
            found.append((path, _File(body, content_type, f'"{sha256(body).hexdigest()[:20]}"')))
    return found
