"""HTTPS: every kind of client over a real chain of certificates, certificates of clients, and another certificate."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import httpx
import pytest
import requests
import trustme
import urllib3

import durable_streams.client.transports.urllib3  # noqa: F401 - Python 3.11 cannot compile in two threads at a time
from durable_streams import AsyncDurableStream, DurableStream, FetchError
from durable_streams.server import ServerConfig, ServerStartError, http_server
from durable_streams.server.run import run_server as serve_on_loop
from durable_streams.testing.background import Background


@dataclass
class Authority:
    """An authority with one in between, as real ones are, and what it has issued."""

    folder: Path

    def __post_init__(self) -> None:
        self.root = trustme.CA()
        self._between = self.root.create_child_ca()
        self.file = self.folder / "ca.pem"
        self.root.cert_pem.write_to_path(self.file)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Write a certificate with its chain, and its key."""
        issued = self._between.issue_cert("127.0.0.1", "localhost")
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        cert.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return cert, key

    def context(self) -> ssl.SSLContext:
        """Return what a client needs to trust it."""
        return ssl.create_default_context(cafile=self.file)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[str]:
    """A server over TLS in a thread; gives its root."""

    async def main(stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        await serve_on_loop(ServerConfig(port=0, **settings), stop, ready)

    server = Background("tls-server", main)
    try:
        yield server.value
    finally:
        server.stop()


@pytest.fixture(scope="module")
def root(authority: Authority) -> Iterator[str]:
    cert, key = authority.issue("shared")
    with serving(tls_cert=cert, tls_key=key) as url:
        assert url.startswith("https://127.0.0.1:")
        yield url


SYNC: dict[str, Callable[[Authority], Any]] = {
    "urllib3": lambda authority: urllib3.PoolManager(ca_certs=str(authority.file)),
    "httpx": lambda authority: httpx.Client(verify=authority.context()),
    "requests": lambda authority: with_verify(requests.Session(), str(authority.file)),
}
ASYNC: dict[str, Callable[[Authority], Any]] = {
    "aiohttp": lambda authority: aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=authority.context())
    ),
    "httpx": lambda authority: httpx.AsyncClient(verify=authority.context()),
}


def with_verify(session: requests.Session, file: str) -> requests.Session:
    session.verify = file
    return session


@pytest.mark.parametrize("transport", SYNC)
def test_a_sync_client(
    authority: Authority, root: str, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # for requests, they outrank what a session says
        monkeypatch.delenv(name, raising=False)
    with SYNC[transport](authority) as client:
        url = f"{root}/sync/{transport}"
        with DurableStream.create(url, content_type="text/plain", client=client) as stream:
            stream.append(b"over TLS")
            with stream.stream(live="long-poll") as response:
                assert next(iter(response)) == b"over TLS"


@pytest.mark.parametrize("transport", ASYNC)
def test_an_async_client(authority: Authority, root: str, transport: str) -> None:
    async def work() -> None:
        async with ASYNC[transport](authority) as client:
            url = f"{root}/async/{transport}"
            async with await AsyncDurableStream.create(
                url, content_type="text/plain", client=client
            ) as stream:
                await stream.append(b"over TLS")
                async with stream.stream(live="sse") as response:
                    async for part in response:
                        assert part == b"over TLS"
                        break
        # aiohttp ends TLS connections on its own ("Graceful shutdown" of its documentation).
        await asyncio.sleep(0.25)

    asyncio.run(work())


def test_ssl_cert_file_is_what_own_clients_trust(authority: Authority, root: str) -> None:
    url = f"{root}/environment"
    program = (
        "import asyncio, sys; from durable_streams import AsyncDurableStream, DurableStream\n"
        "DurableStream.create(sys.argv[1], content_type='text/plain').append(b'x')\n"
        "async def main():\n"
        "    async with await AsyncDurableStream.connect(sys.argv[1]) as stream: await stream.append(b'y')\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "SSL_CERT_FILE": str(authority.file)}
    subprocess.run([sys.executable, "-c", program, url], env=environment, check=True)
    read = [sys.executable, "-m", "durable_streams.cli", "read", url]
    assert subprocess.run(read, env=environment, check=True, capture_output=True).stdout == b"xy"
    environment.pop("SSL_CERT_FILE")
    refused = subprocess.run(read, env=environment, check=False, capture_output=True)
    assert refused.returncode == 1
    assert b"ertificate" in refused.stderr
    assert b"Traceback" not in refused.stderr


def test_a_server_that_is_not_trusted(root: str) -> None:
    with pytest.raises(FetchError) as refused:
        DurableStream.create(f"{root}/s")
    assert refused.value.code == "TLS"


def serial(root: str, context: ssl.SSLContext) -> str:
    """Return the number of the certificate that a new connection gets."""
    connection = http.client.HTTPSConnection(urlsplit(root).netloc, context=context)
    connection.request("GET", "/health/live")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    number = str(cast("dict[str, Any]", connection.sock.getpeercert())["serialNumber"])
    connection.close()
    return number


class Load:
    """Requests without a pause, on connections that stay and on new ones."""

    def __init__(self, root: str, context: ssl.SSLContext) -> None:
        self.requests = 0
        self.failures: list[Exception] = []
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(urlsplit(root).netloc, context, new))
            for new in (True, False)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, place: str, context: ssl.SSLContext, new: bool) -> None:
        connection = http.client.HTTPSConnection(place, context=context)
        while not self._done.is_set():
            try:
                connection.request("PUT", "/v1/stream/load", headers={"content-type": "text/plain"})
                assert connection.getresponse().read() == b""
                self.requests += 1
            except Exception as error:  # noqa: BLE001 - whichever it is, it is a failure
                self.failures.append(error)
                connection.close()
            if new:
                connection.close()
        connection.close()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


def until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_another_certificate_under_load(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_server, "_LOOK_EVERY", 0.05)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def install(name: str) -> None:
        for source, place in zip(authority.issue(name), (cert, key), strict=True):
            shutil.copy(source, place.with_suffix(".new"))
            place.with_suffix(".new").replace(place)

    install("first")
    context = authority.context()
    caplog.set_level(logging.INFO, "durable_streams.server")
    with serving(tls_cert=cert, tls_key=key) as root:
        first = serial(root, context)
        load = Load(root, context)
        try:
            live = http.client.HTTPSConnection(urlsplit(root).netloc, context=context)
            until(lambda: load.requests > 10)
            live.request("GET", "/v1/stream/load?offset=now&live=sse")
            events = live.getresponse()
            known, fresh = {first}, []
            for turn in range(3):
                install(f"turn-{turn}")
                until(lambda turn=turn: caplog.text.count("new connections get") > turn)
                # What was accepted in that moment may still be with the server that ends.
                until(lambda: (now := serial(root, context)) not in known and not fresh.append(now))
                now = fresh[-1]
                known.add(now)
                asked = load.requests
                until(lambda asked=asked: load.requests > asked + 5)
            assert load.failures == []
            # A live read that began with the first certificate is still there, and gets what comes.
            assert events.read1().startswith(b"event: control")
            # Half of another one is none; the last one goes on.
            said = caplog.text.count("before is still used")
            cert.write_bytes(authority.issue("other")[0].read_bytes())
            until(lambda: caplog.text.count("before is still used") > said)
            assert serial(root, context) == now
            assert load.failures == []
        finally:
            load.stop()
            live.close()


def test_more_renewals_than_instances_are_kept(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_server, "_LOOK_EVERY", 0.02)
    monkeypatch.setattr(http_server, "_KEPT", 1)
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = authority.issue("kept")
    for source, place in zip(made, (cert, key), strict=True):
        shutil.copy(source, place)
    caplog.set_level(logging.INFO, "durable_streams.server")
    with serving(tls_cert=cert, tls_key=key) as root:
        stays = http.client.HTTPSConnection(urlsplit(root).netloc, context=authority.context())
        for turn in range(3):
            stays.request("GET", "/health/live")
            assert stays.getresponse().read() == b'{"status":"ok"}'
            if turn < 2:
                cert.touch()
                until(lambda turn=turn: caplog.text.count("new connections get") > turn)
                if (
                    turn == 1
                ):  # the connection is older than what is kept: it is closed, and a new one is made
                    until(lambda: is_closed(stays))
                    stays.close()
        stays.close()
        assert serial(root, authority.context())


def is_closed(connection: http.client.HTTPSConnection) -> bool:
    connection.sock.settimeout(0.01)
    try:
        return connection.sock.recv(1) == b""
    except TimeoutError:
        return False
    finally:
        connection.sock.settimeout(30)


def test_clients_need_a_certificate(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("for-clients")
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other")
    with serving(tls_cert=cert, tls_key=key, tls_client_ca=authority.file) as root:
        url = f"{root}/s"
        mine = authority.issue("client")
        client = urllib3.PoolManager(
            ca_certs=str(authority.file), cert_file=str(mine[0]), key_file=str(mine[1])
        )
        with client, DurableStream.create(url, client=client) as stream:
            assert stream.head().exists
        for theirs in (None, stranger.issue("client")):
            given = {} if theirs is None else {"cert_file": str(theirs[0]), "key_file": str(theirs[1])}
            other = urllib3.PoolManager(ca_certs=str(authority.file), retries=False, **given)
            with other, pytest.raises(FetchError):
                DurableStream(url, client=other, retry=None).head()


@pytest.mark.parametrize("broken", ["tls_cert", "tls_key", "tls_client_ca", "pair"])
def test_certificates_that_cannot_be_used(authority: Authority, tmp_path: Path, broken: str) -> None:
    cert, key = authority.issue("good")
    settings = {"tls_cert": cert, "tls_key": key, "tls_client_ca": authority.file}
    if broken == "pair":
        settings["tls_key"] = authority.issue("another")[1]
    else:
        settings[broken] = tmp_path / "broken.pem"
        settings[broken].write_text("nothing")
    with pytest.raises(ServerStartError, match="cannot be used"), serving(**settings):
        pass


def test_settings_that_make_no_sense() -> None:
    for settings in ({"tls_cert": Path("c")}, {"tls_key": Path("k")}, {"tls_client_ca": Path("a")}):
        with pytest.raises(ValueError, match=r"^tls_"):
            ServerConfig(**settings)
