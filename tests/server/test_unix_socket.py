"""A server at a Unix socket: every client that can, live reads, its end, and who is kept out."""

from __future__ import annotations

import asyncio
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import aiohttp
import httpx
import pytest

from durable_streams import AsyncDurableStream, DurableStream
from durable_streams.server import ServerConfig, ServerStartError
from durable_streams.server.run import run_server
from durable_streams.testing.background import Background
from durable_streams.testing.program import wait_until


class Server:
    """A server at a Unix socket, in this process."""

    def __init__(self, path: Path, **options: object) -> None:
        async def main(stop: asyncio.Event, ready: Callable[[str], None]) -> None:
            await run_server(ServerConfig(uds=path, **options), stop, ready)  # type: ignore[arg-type]

        self.path = path
        self.background = Background("unix-socket-test-server", main)
        self.root = self.background.value


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder with a short path: that of a socket has about a hundred bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder / "s", sse_max_age=60.0, send_timeout=2.0, send_budget=1 << 20)
    yield server
    server.background.stop()
    assert not server.path.exists(), "it goes with its server"


def test_sync_and_async_clients_write_read_and_follow(server: Server) -> None:
    url, large = f"{server.root}/s", b"x" * 3_000_000
    with (
        httpx.Client(transport=httpx.HTTPTransport(uds=str(server.path))) as client,
        DurableStream.create(
            url, content_type="application/octet-stream", body=large, client=client
        ) as handle,
    ):
        handle.append(b"more")
        with handle.stream(live=False) as response:
            assert response.read_bytes() == large + b"more"

    async def follow() -> bytes:
        connector = aiohttp.UnixConnector(str(server.path))
        async with aiohttp.ClientSession(connector=connector) as session:
            handle = AsyncDurableStream(url, client=session)
            seen = b""
            async with handle.stream(offset=response.offset, live="long-poll") as live:
                await handle.append(b"live")
                async for piece in live:
                    seen += piece
                    if seen == b"live":
                        break
            return seen

    assert asyncio.run(follow()) == b"live"


def test_only_its_owner_may_open_it(server: Server) -> None:
    mode = server.path.stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)


def status_of(port: int, stream: str) -> int:
    """Return the status of a stream at an address of this machine, 0 where no HTTP is spoken."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/v1/stream/{stream}", timeout=60) as answer:
            return int(answer.status)
    except HTTPError as refusal:
        return refusal.code
    except (OSError, HTTPException):
        return 0


def test_the_address_behind_it_answers_no_other_connection(server: Server) -> None:
    own = {one.stat().st_ino for one in Path("/proc/self/fd").iterdir() if one.is_socket()}
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    ports = {
        int(line[1].partition(":")[2], 16)
        for line in lines
        if line[3] == "0A" and int(line[9]) in own and line[1].startswith("0100007F:")
    }
    assert 403 in [status_of(port, "s") for port in ports]  # other tests of this process have servers, too
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.path))) as client:
        DurableStream.create(f"{server.root}/mine", content_type="a/b", client=client).close()
    assert 200 not in [status_of(port, "mine") for port in ports]


def test_a_client_that_takes_nothing_loses_its_connection(server: Server) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.path))) as client:
        DurableStream.create(
            f"{server.root}/big", content_type="a/b", body=b"x" * 8_000_000, client=client
        ).close()
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.connect(str(server.path))
        stalled.sendall(b"GET /v1/stream/big?offset=-1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stalled.settimeout(60)
        taken = len(stalled.recv(10))

        def ended() -> bool:
            try:
                return stalled.send(b"x") == 0
            except OSError:
                return True

        assert wait_until(ended, 60)
        with pytest.raises(OSError, match="reset"):  # noqa: PT012 - what the kernel still has comes first
            while True:
                piece = stalled.recv(1 << 20)
                taken += len(piece)
                assert piece or taken < 8_000_000
                if not piece:
                    raise ConnectionResetError("reset")
        assert taken < 4_000_000, "the rest was never handed over"


def test_the_end_lets_what_was_accepted_end(folder: Path) -> None:
    server = Server(folder / "s", long_poll_timeout=60.0)
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.path)), timeout=60) as client:
        DurableStream.create(f"{server.root}/s", content_type="a/b", client=client)
        found: list[int] = []
        url = f"{server.root}/s?offset=now&live=long-poll"
        waiting = threading.Thread(target=lambda: found.append(client.get(url).status_code))
        waiting.start()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.path))) as other:
            assert other.get(server.root.removesuffix("/v1/stream") + "/health").status_code == 200
        threading.Event().wait(
            0.2
        )  # the long-poll waits by now; where it does not, it is answered all the same
        server.background.stop()
        waiting.join(60)
    assert found == [204]


def test_a_socket_that_is_left_over_is_taken_and_anything_else_is_not(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = Server(path)
    try:
        with pytest.raises(ServerStartError, match="a server listens there"):
            Server(path)
        assert path.exists()
    finally:
        server.background.stop()
    path.write_text("a file")
    with pytest.raises(ServerStartError, match="it is a file"):
        Server(path)
    assert path.read_text() == "a file"
    with pytest.raises(ServerStartError, match="another path for --uds"):
        Server(folder / "is" / "not" / "there")


def test_the_socket_of_a_server_that_came_after_stays(folder: Path) -> None:
    path = folder / "s"
    first = Server(path)
    path.unlink()  # someone tidies up
    second = Server(path)
    try:
        first.background.stop()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/health").status_code == 200
    finally:
        second.background.stop()
    assert not path.exists()


def test_a_server_that_does_not_start_leaves_no_socket(folder: Path) -> None:
    with pytest.raises(ServerStartError, match=r"keys\.toml"):
        Server(folder / "s", auth=folder / "keys.toml")
    assert not (folder / "s").exists()


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"^uds excludes tls_cert"):
        ServerConfig(uds=Path("s"), tls_cert=Path("c"), tls_key=Path("k"))
    with pytest.raises(ValueError, match=r"^uds_mode is"):
        ServerConfig(uds=Path("s"), uds_mode=0o1000)
