"""Where a server is behind proxies: what Location says, and which streams of its own a fork may name."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import sys

import pytest

ROOT_PATH = """
import asyncio, socket, sys
import uvicorn
from durable_streams.server import ServerConfig, asgi_app

async def main():
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    options = {"log_level": "error", "lifespan": "on", "root_path": "/streams", "timeout_graceful_shutdown": 3}
    server = uvicorn.Server(uvicorn.Config(asgi_app(ServerConfig()), **options))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(f"durable-streams: serving http://127.0.0.1:{listener.getsockname()[1]}/v1/stream", flush=True)
    await serving

asyncio.run(main())
"""


def ask(server, method: str, stream: str, *lines: str, host: str = "backend"):  # noqa: ANN201
    head = [f"{method} /v1/stream/{stream} HTTP/1.1", f"Host: {host}", "Connection: close", *lines]
    return server.raw("\r\n".join(head).encode() + b"\r\n\r\n")


def location(server, *lines: str, host: str = "backend") -> str:
    created = ask(server, "PUT", "some/new%20one", *lines, host=host)
    assert created.status == 201
    assert ask(server, "DELETE", "some/new%20one").status == 204
    return created.headers["location"]


def forks(server, source: str, *lines: str, host: str = "backend") -> int:
    """Return the status of a fork from ``source``; what is made goes at once."""
    status = ask(server, "PUT", "a/fork", f"Stream-Forked-From: {source}", *lines, host=host).status
    if status == 201:
        assert ask(server, "DELETE", "a/fork").status == 204
    return status


@pytest.fixture(params=["rsgi", "asgi"])
def interface(request: pytest.FixtureRequest) -> str:
    return request.param


def test_f7_a_public_url(start_server, interface: str) -> None:
    server = start_server(None, interface=interface, public_url="https://example.com/streams/")
    server.create("source")
    assert location(server) == "https://example.com/streams/v1/stream/some/new%20one"
    for source in (
        "https://example.com/streams/v1/stream/source",
        "HTTPS://EXAMPLE.com:443/streams/v1/stream/source",
        "/streams/v1/stream/source",
        "/v1/stream/source",
        "http://backend/v1/stream/source",  # as who is behind the proxy, too, calls it
        "/streams/v1/stream/sour%63e",
    ):
        assert forks(server, source) == 201, source
    for source in (
        "https://elsewhere.example/streams/v1/stream/source",
        "https://example.com:8443/streams/v1/stream/source",
        "/other/v1/stream/source",
        "/streams/source",
        "https://example.com/v2/stream/source",
        "https://[bad/v1/stream/source",
    ):
        assert forks(server, source) == 400, source
    assert forks(server, "/streams/v1/stream/none") == 404


def test_f7_a_public_url_with_the_root_of_streams(start_server) -> None:
    server = start_server(None, public_url="http://example.com:8080/v1/stream")
    assert location(server) == "http://example.com:8080/v1/stream/some/new%20one"


FORWARDED = ("X-Forwarded-Proto: https", "X-Forwarded-Host: example.com", "X-Forwarded-Prefix: /streams")


def test_f7_a_trusted_proxy(start_server, interface: str) -> None:
    # Uvicorn takes the proxy's word for who is connected, if it says it: that is its own setting.
    server = start_server(None, interface=interface, trusted_proxies=["10.0.0.0/8", "127.0.0.1"])
    server.create("source")
    assert location(server) == "http://backend/v1/stream/some/new%20one"
    assert location(server, *FORWARDED) == "https://example.com/streams/v1/stream/some/new%20one"
    assert location(server, "X-Forwarded-Proto: https") == "https://backend/v1/stream/some/new%20one"
    appended = (
        "X-Forwarded-Host: said.by.client, example.com",
        "X-Forwarded-Prefix: /x",
        "X-Forwarded-Prefix: /streams",
    )
    assert location(server, *appended) == "http://example.com/streams/v1/stream/some/new%20one"
    for source in (
        "/streams/v1/stream/source",
        "https://example.com/streams/v1/stream/source",
        "/v1/stream/source",
    ):
        assert forks(server, source, *FORWARDED) == 201, source
    assert forks(server, "/streams/v1/stream/source") == 400
    for odd in (
        "X-Forwarded-Host: exa mple.com/x",
        "X-Forwarded-Host: example.com/evil",
        "X-Forwarded-Proto: javascript",
        "X-Forwarded-Prefix: streams",
        "X-Forwarded-Prefix: //evil.example",
        "X-Forwarded-Prefix: /a b",
    ):
        assert location(server, odd) == "http://backend/v1/stream/some/new%20one", odd


@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/8", "::1"]])
def test_f7_nobody_else_is_believed(start_server, interface: str, trusted: list[str]) -> None:
    server = start_server(None, interface=interface, trusted_proxies=trusted)
    server.create("source")
    said = [
        line for line in FORWARDED if interface == "rsgi" or "Proto" not in line
    ]  # Uvicorn trusts 127.0.0.1
    assert location(server, *said) == "http://backend/v1/stream/some/new%20one"
    assert forks(server, "/streams/v1/stream/source", *said) == 400


def test_f7_a_root_path(run_server) -> None:
    server = run_server([sys.executable, "-c", ROOT_PATH]).wait_until_ready()
    server.create("source")
    assert location(server) == "http://backend/streams/v1/stream/some/new%20one"
    for source in (
        "/streams/v1/stream/source",
        "http://backend/streams/v1/stream/source",
        "/v1/stream/source",
    ):
        assert forks(server, source) == 201, source


def test_f7_a_url_without_any_setting(either_server, stream: str) -> None:
    either_server.create(stream)
    own = f"127.0.0.1:{either_server.port}"
    for source, status in (
        (f"http://{own}/v1/stream/{stream}", 201),
        (f"http://user:secret@{own}/v1/stream/{stream}?token=x", 201),
        (f"https://{own}/v1/stream/{stream}", 201),  # TLS may end before us
        (f"http://127.0.0.1:1/v1/stream/{stream}", 400),
        (f"http://example.com/v1/stream/{stream}", 400),
        (f"/streams/v1/stream/{stream}", 400),
    ):
        assert forks(either_server, source, host=own) == status, source


def test_f7_settings_that_make_no_sense(run_server, server_command) -> None:
    for settings in (
        {"public_url": "example.com"},
        {"public_url": "ftp://example.com"},
        {"public_url": "https://example.com/?x=1"},
        {"public_url": "https://user@example.com"},
        {"public_url": "https://example.com:99999"},
        {"trusted_proxies": ["example.com"]},
        {"trusted_proxies": ["10.0.0.0/99"]},
    ):
        server = run_server(server_command(None, **settings))
        assert not server.becomes_ready(), settings
        server.wait()
        assert next(iter(settings)).encode() in server.error_output, settings


def test_f11_keep_alive_is_an_option(start_server) -> None:
    server = start_server(None, keep_alive=0.3)
    with server.connect() as silent, server.connect() as asked:
        asked.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert asked.recv(65536).startswith(b"HTTP/1.1 200")
        for connection in (silent, asked):  # both are closed long before the 30 s of the default
            while connection.recv(65536):
                pass
