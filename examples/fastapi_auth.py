"""Durable streams behind the users of a FastAPI application: a dependency says who asks, a function what they may do.

pip install . fastapi "uvicorn[standard]"    # in a checkout
uvicorn fastapi_auth:app --app-dir examples

curl -u alice:wonderland -X PUT http://127.0.0.1:8000/streams/v1/stream/users/alice/notes
curl -u bob:builder http://127.0.0.1:8000/streams/v1/stream/users/alice/notes       # 403
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.types import Receive, Scope, Send

from durable_streams.server import Grant, Operation, ServerRequest, asgi_app

PASSWORDS = {"alice": b"wonderland", "bob": b"builder"}  # in a real application, hashes in a database


async def current_user(credentials: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> str:
    """Return the name of the user; any dependency that an application has for this will do."""
    password = PASSWORDS.get(credentials.username, b"")
    if not password or not secrets.compare_digest(password, credentials.password.encode()):
        raise HTTPException(401, "no such user", {"WWW-Authenticate": "Basic"})
    return credentials.username


async def authorize(_operation: Operation, _path: str, request: ServerRequest) -> Grant:
    """Return what the user may do: everything below their own folder, and read what is public."""
    user = request.scope["state"]["user"]
    return Grant.of(f"*:users/{user}/**", "read:public/**", subject=user)


streams = asgi_app(authorize=authorize)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open and close the streams with the application."""
    await streams.startup()
    yield
    await streams.shutdown()


app = FastAPI(lifespan=lifespan)


class Streams(Response):
    """Lets the streams answer: a response is an ASGI application itself."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request below /streams."""
        await streams({**scope, "root_path": scope.get("root_path", "") + "/streams"}, receive, send)


@app.api_route("/streams/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
async def serve_streams(request: Request, user: Annotated[str, Depends(current_user)]) -> Response:
    """Hand a request over, with its user."""
    request.state.user = user
    return Streams()
