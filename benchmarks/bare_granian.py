"""Granian as our server runs it, with a handler that reads the body, answers 204 and stores nothing.

The ceiling for appends: same interface, event loop and settings as ``durable_streams.server.run``, and the
response headers of a real append, given as a JSON list of pairs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server

from durable_streams.server.run import run_to_end


async def main(headers: list[tuple[str, str]]) -> None:
    async def answer(_scope: Any, protocol: Any) -> None:
        await protocol()
        protocol.response_empty(204, headers)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(
        answer,
        address="127.0.0.1",
        port=port,
        interface=Interfaces.RSGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=1024,
        log_enabled=False,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    serving = asyncio.ensure_future(server.serve())
    while not serving.done():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            break
        await asyncio.sleep(0.002)
    print(f"bare: serving http://127.0.0.1:{port}", flush=True)
    await serving


if __name__ == "__main__":
    sys.setswitchinterval(0.0005)
    run_to_end(main([(name, value) for name, value in json.loads(sys.argv[1])]))
