"""The application under Uvicorn on a free port, with the same ready line as ``durable-streams serve``."""

from __future__ import annotations

import argparse
import asyncio
import socket
from pathlib import Path

import uvicorn

from durable_streams.server import ServerConfig, asgi_app


async def main() -> None:
    parser = argparse.ArgumentParser()
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-dir", type=Path)
    where.add_argument("--memory", action="store_true")
    parser.add_argument("--long-poll-timeout", type=float, default=30.0)
    parser.add_argument("--webhook-allow-http-localhost", action="store_true")
    args = parser.parse_args()
    config = ServerConfig(
        data_dir=args.data_dir,
        long_poll_timeout=args.long_poll_timeout,
        webhook_allow_http_localhost=args.webhook_allow_http_localhost,
    )
    app = asgi_app(config)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=3,
            # One test compares for longer than Uvicorn's 5 seconds, and its client does not see the end of a connection
            # meanwhile: the next request would go out on it.
            timeout_keep_alive=60,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
        await asyncio.sleep(0.01)
    if server.started:
        port = listener.getsockname()[1]
        print(f"durable-streams: serving http://127.0.0.1:{port}/v1/stream", flush=True)  # noqa: T201
    await serving


if __name__ == "__main__":
    asyncio.run(main())
