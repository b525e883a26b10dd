"""Serve the project with Uvicorn on a free port."""

import asyncio
import os
import socket

import uvicorn

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project_settings")


async def main() -> None:
    """Serve, and say where."""
    from durable_streams.django import asgi_application

    # Named as TCP: asyncio turns off Nagle's algorithm only where it knows that it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(asgi_application(), log_level="error", lifespan="on"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(f"durable-streams: serving http://127.0.0.1:{listener.getsockname()[1]}/v1/stream", flush=True)  # noqa: T201
    await serving


asyncio.run(main())
