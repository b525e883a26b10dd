"""The end of an ASGI server with live reads open: it comes as soon as that of ``serve``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hosting import MOUNTED, PLAIN, SERVERS, STARTED, WITHIN, Reader, hosted

from durable_streams.server import ServerConfig, asgi_app
from durable_streams.server.hosting import ServerWatch

APPLICATIONS = {"plain": PLAIN, "mounted": MOUNTED, "started by its host": STARTED}


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("name", SERVERS)
def test_f6_sigterm_ends_live_reads_cleanly(name: str, application: str, tmp_path: Path) -> None:
    """Without anybody's help they would last for five minutes."""
    with hosted(name, tmp_path, APPLICATIONS[application]) as server:
        server.until_ready()
        readers = [Reader(server, mode) for mode in ("sse", "long-poll")]
        time.sleep(1)  # until they wait
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(WITHIN)
        for reader in readers:
            reader.join(WITHIN)
        events, poll = (reader.result for reader in readers)
        assert isinstance(events, tuple), events
        assert events[0] == 200
        assert b"event: control" in events[1]
        assert poll == (204, b"")
        assert "Traceback" not in server.output


@pytest.mark.parametrize("options", [("--lifespan", "off"), ("--reload",)], ids=" ".join)
def test_f6_however_uvicorn_runs_it(options: tuple[str, ...], tmp_path: Path) -> None:
    with hosted("uvicorn", tmp_path, PLAIN, *options) as server:
        server.until_ready()
        reader = Reader(server, "sse")
        time.sleep(1)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(WITHIN)
        reader.join(WITHIN)
        assert isinstance(reader.result, tuple)


def test_f6_clients_that_do_not_read_and_bodies_that_do_not_come(tmp_path: Path) -> None:
    with hosted("uvicorn", tmp_path, PLAIN) as server:
        server.until_ready()
        for _ in range(40):
            assert (
                server.ask("POST", "s", bytes(1 << 20), **{"content-type": "application/octet-stream"})[0]
                == 204
            )
        requests = [
            b"GET /v1/stream/s?offset=-1&live=sse HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/stream/s?offset=-1 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST /v1/stream/s HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: 99\r\n\r\nhalf",
        ]
        with contextlib.ExitStack() as stack:
            for request in requests:
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", server.port))
                client.sendall(request)
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(WITHIN)


@pytest.mark.parametrize("name", ["uvicorn", "granian"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "half"])
def test_f6_a_body_that_is_on_its_way_has_a_moment(name: str, whole: bool, tmp_path: Path) -> None:
    """It is stored and acknowledged, or the answer says that it was not."""
    with hosted(name, tmp_path, PLAIN) as server:
        server.until_ready()
        poller = Reader(server, "long-poll")
        with socket.create_connection(("127.0.0.1", server.port), timeout=WITHIN) as client:
            client.sendall(
                b"POST /v1/stream/s HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
                b"Content-Length: 4\r\n\r\nha"
            )
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            poller.join(WITHIN)  # it has noticed
            if whole:
                client.sendall(b"lf")
            answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 204" if whole else b"HTTP/1.1 503"), answer
        assert whole or b"retry-after: 1" in answer.lower()
        server.process.wait(WITHIN)


def test_f6_a_server_in_a_thread_that_is_asked_to_end() -> None:
    """There is no signal."""
    uvicorn = pytest.importorskip("uvicorn")
    app = asgi_app(ServerConfig(long_poll_timeout=300, sse_max_age=300))
    for _ in range(2):  # the same application, on another event loop
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"PUT /v1/stream/s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            assert b"201" in client.recv(4096)
            client.sendall(b"GET /v1/stream/s?offset=now&live=long-poll HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.5)
            server.should_exit = True
            assert b"204" in client.recv(4096)
        thread.join(WITHIN)
        assert not thread.is_alive()


def test_f6_a_server_that_listens_again_goes_on() -> None:
    seen: list[str] = []
    watch = ServerWatch(lambda: seen.append("end"), lambda: seen.append("return"))

    async def main() -> None:
        first = socket.create_server(("127.0.0.1", 0))
        address = first.getsockname()
        watch.begun(address)
        await asyncio.sleep(0.3)
        assert seen == []
        first.close()
        await asyncio.sleep(0.5)
        watch.begun(address)
        assert seen == ["end"]
        with socket.create_server(address):
            await asyncio.sleep(1.5)
            watch.begun(address)
        watch.reset()

    asyncio.run(main())
    assert seen == ["end", "return"]


@pytest.mark.parametrize("server", [("testserver", 80), None, ("/no/such/socket", None)])
def test_f6_a_server_that_cannot_be_seen_is_served(server: Any) -> None:
    """A test client, say: no socket at all."""
    seen: list[str] = []
    watch = ServerWatch(lambda: seen.append("end"), lambda: seen.append("return"))

    async def main() -> None:
        for _ in range(3):
            watch.begun(server)
            await asyncio.sleep(0.15)
            watch.ended()

    asyncio.run(main())
    assert seen == []
