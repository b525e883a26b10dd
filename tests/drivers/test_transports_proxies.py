"""The proxies that the environment names, with a real proxy in between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from scripted import ScriptedServer

from durable_streams.client.transports import proxies

WITHIN = 60.0


@dataclass
class Proxy:
    """Leads every request, whatever host it names, to one server, and remembers its first lines and headers."""

    port: int = 0
    target: int = 0
    heads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(65536)
                if not part:
                    return
                head += part
            self.heads.append(head.decode())
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                if head.startswith(b"CONNECT"):
                    connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    server.sendall(head)
                back = threading.Thread(target=_copy, args=(server, connection), daemon=True)
                back.start()
                _copy(connection, server)
                back.join()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65536):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.stop()


SYNC_PROGRAM = """
import json, sys
from durable_streams import DurableStream
print(json.dumps([DurableStream(url).head().offset for url in sys.argv[1:]]))
"""
ASYNC_PROGRAM = """
import asyncio, json, sys
from durable_streams import AsyncDurableStream
async def main():
    return [(await AsyncDurableStream(url).head()).offset for url in sys.argv[1:]]
print(json.dumps(asyncio.run(main())))
"""
programs = pytest.mark.parametrize("program", [SYNC_PROGRAM, ASYNC_PROGRAM], ids=["sync", "async"])


def run(program: str, *arguments: str, **environment: str) -> bytes:
    """Return what a program prints in this environment."""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**clean, **environment},
        capture_output=True,
        timeout=WITHIN,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def offsets(program: str, *urls: str, **environment: str) -> list[str]:
    """Return the offsets that a process with this environment finds at the URLs."""
    found: list[str] = json.loads(run(program, *urls, **environment))
    return found


@programs
def test_http_goes_through_the_proxy_of_the_environment(
    program: str, proxy: Proxy, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.send(scripted.response(200, stream_next_offset="7"))]
    proxy.target = scripted.listener.getsockname()[1]
    address = f"http://user:p%40ss@127.0.0.1:{proxy.port}"
    found = offsets(
        program, "http://streams.example/a", f"{scripted.root}/b", HTTP_PROXY=address, http_proxy=address
    )
    assert found == ["7", "7"]
    (head,) = proxy.heads  # this machine itself is not asked for through it
    assert head.startswith("HEAD http://streams.example/a HTTP/1.1\r\n")
    assert "proxy-authorization: basic dxnlcjpwqhnz" in head.lower()
    assert scripted.requests[1].target == "/b"


@programs
def test_https_goes_through_a_tunnel(
    program: str, proxy: Proxy, scripted: ScriptedServer, tmp_path: Path
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=streams.example", "-addext", "subjectAltName=DNS:streams.example"]
    subprocess.run(
        [openssl, "req", "-x509", *options, *names, *files], check=True, capture_output=True, timeout=60
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection, context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(scripted.response(200, stream_next_offset="9"))
                    secure.recv(65536)

        threading.Thread(target=serve, daemon=True).start()
        proxy.target = listener.getsockname()[1]
        address = f"127.0.0.1:{proxy.port}"  # without a scheme, as many write it
        environment = {"https_proxy": address, "SSL_CERT_FILE": str(tmp_path / "cert.pem")}
        assert offsets(program, "https://streams.example/a", **environment) == ["9"]
    assert proxy.heads[0].startswith("CONNECT streams.example:443 HTTP/1.")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Give an environment without proxies, that the next test will not see."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    proxies._proxy.cache_clear()
    yield monkeypatch
    proxies._proxy.cache_clear()


def test_which_hosts_have_a_proxy(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "proxy.example:3128")
    environment.setenv("no_proxy", "internal.example, other.example:8080")
    through = "http://proxy.example:3128"
    assert proxies.proxy_for("http://streams.example/a?b=/c") == through
    assert proxies.proxy_for("http://user:secret@streams.example:99/a") == through
    assert proxies.proxy_for("http://notinternal.example/a") == through
    assert proxies.proxy_for("https://streams.example/a") is None
    assert proxies.proxy_for("http://internal.example/a") is None
    assert proxies.proxy_for("http://deep.internal.example:8080?x") is None
    assert proxies.proxy_for("http://other.example:8080/a") is None


def test_b11_networks_without_a_proxy(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("http_proxy", "proxy.example:3128")
    environment.setenv("no_proxy", "10.0.0.0/8,internal.example, 2001:db8::/32 ,[fd00::]/8,192.0.2.7")
    for host in ("10.1.2.3", "10.9.9.9:8080", "[2001:db8::1]", "[2001:db8:1::2]:80", "[fd12::1]:80"):
        assert proxies.proxy_for(f"http://{host}/a") is None, host
    for host in ("192.0.2.7", "[::ffff:10.1.2.3]", "u:p@10.1.2.3:80"):
        assert proxies.proxy_for(f"http://{host}/a") is None, host
    for host in ("11.1.2.3", "192.0.2.8", "[2001:db9::1]", "10.example", "host.example"):
        assert proxies.proxy_for(f"http://{host}/a") == "http://proxy.example:3128", host


@pytest.mark.parametrize(
    "host", ["localhost", "a.localhost", "127.0.0.1", "127.9.9.9:80", "[::1]", "[::1]:8080"]
)
def test_this_machine_has_none(environment: pytest.MonkeyPatch, host: str) -> None:
    environment.setenv("all_proxy", "http://proxy.example:3128")
    assert proxies.proxy_for("https://streams.example/a") == "http://proxy.example:3128"
    assert proxies.proxy_for(f"http://{host}/a") is None


SYNC_FAILURE = """
import sys
from durable_streams import DurableStream, DurableStreamError, RetryPolicy
try:
    DurableStream(sys.argv[1], retry=RetryPolicy(max_retries=0)).head()
except DurableStreamError as error:
    print(error.code, *([error.may_have_been_sent] if hasattr(error, "original") else []), error)
"""
ASYNC_FAILURE = """
import asyncio, sys
from durable_streams import AsyncDurableStream, DurableStreamError, RetryPolicy
async def main():
    try:
        await AsyncDurableStream(sys.argv[1], retry=RetryPolicy(max_retries=0)).head()
    except DurableStreamError as error:
        print(error.code, *([error.may_have_been_sent] if hasattr(error, "original") else []), error)
asyncio.run(main())
"""
failures = pytest.mark.parametrize("program", [SYNC_FAILURE, ASYNC_FAILURE], ids=["sync", "async"])


@failures
def test_a_proxy_that_is_not_there(program: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        said = run(program, "https://streams.example/a", https_proxy=address)
    assert said.startswith(b"CONNECT False No connection to streams.example: ")


@failures
def test_a_proxy_that_refuses(program: str, proxy: Proxy, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")]
    said = run(program, "https://streams.example/a", https_proxy=scripted.root)
    assert said.startswith(b"CONNECT False No connection to streams.example: ")
    assert b"403" in said or b"Forbidden" in said


@failures
def test_a_kind_of_proxy_that_is_not_supported(program: str) -> None:
    said = run(program, "http://streams.example/a", all_proxy="socks5://127.0.0.1:1080")
    assert said.startswith(b"PROXY The environment names a socks5 proxy for streams.example; only http")
