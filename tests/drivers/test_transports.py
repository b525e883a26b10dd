"""Every transport against servers that behave, and against those that do not: one behaviour, whatever the library."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from facade import Loop
from scripted import ScriptedServer
from wires import ALL, ASYNC, OWN, SYNC, Answer, Wire, wire_over

from durable_streams import DurableStreamError, FetchError
from durable_streams.client.transports import Interrupt, async_transport_for, transport_for

GIVEN = [name for name in ALL if name not in OWN]
AT_ONCE = 10.0  # seconds that something may take that must not wait for a timeout


@pytest.fixture(scope="module", params=ALL)
def wire(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Wire]:
    with wire_over(request.param, loop) as wire:
        yield wire


def failure(wire: Wire, url: str, **options: Any) -> FetchError:
    """Return the error of a read; it must be ours, and know what it stands for."""
    with pytest.raises(DurableStreamError) as caught:
        wire.get(url, **options)
    error = caught.value
    assert type(error) is FetchError
    assert error.original is not None
    assert error.url == url
    assert str(error).count("\n") == 0
    return error


# -- answers


def test_an_answer_is_what_the_server_sent(wire: Wire, scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(
            b'HTTP/1.1 207 Very Special\r\nX-Mixed: One\r\nx-mixed: two\r\nETag: "a"\r\n'
            b"X-Latin: \xe9\r\nContent-Length: 3\r\n\r\nabc"
        )
    ]
    with wire.open(scripted.root + "/x") as answer:
        assert (answer.status, answer.reason) == (207, "Very Special")
        assert answer.headers["x-mixed"] == "One, two"
        assert answer.headers["etag"] == '"a"'
        assert answer.headers["content-length"] == "3"
        assert all(name == name.lower() for name in answer.headers)
        assert answer.body() == b"abc"
        assert answer.read() == b""


def test_a_request_goes_out_as_it_is(wire: Wire, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(200))]
    target = "/a%2Fb/%C3%A9/x~y?offset=-1&x=1&x=2&q=a+b%20c&live=sse&e="
    wire.get(scripted.root + target, headers={"x-one": "1", "authorization": "Bearer t"})
    wire.get(scripted.root + "/p", method="POST", body=b"data", headers={"content-type": "text/plain"})
    wire.get(scripted.root + "/empty", method="POST", headers={"content-type": "text/plain"})
    got, post, empty = scripted.requests
    assert got.target == target
    assert (got.headers["x-one"], got.headers["authorization"]) == ("1", "Bearer t")
    assert (post.method, post.body, post.headers["content-length"]) == ("POST", "data", "4")
    assert post.headers["content-type"] == "text/plain"
    assert (empty.body, empty.headers["content-length"]) == ("", "0")


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("DELETE", 404)])
def test_answers_without_a_body(wire: Wire, scripted: ScriptedServer, method: str, status: int) -> None:
    length = (
        b"content-length: 5\r\n"
        if method == "HEAD"
        else b""
        if status in {204, 304}
        else b"content-length: 0\r\n"
    )
    scripted.replies = [scripted.send(b"HTTP/1.1 %d X\r\n%s\r\n" % (status, length))]
    for _ in range(2):
        with wire.open(scripted.root + "/x", method) as answer:
            assert (answer.status, answer.body()) == (status, b"")
    assert len(scripted.connections) == 1


def test_redirects_are_handed_over(wire: Wire, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(302, location="/elsewhere"))]
    with wire.open(scripted.root + "/x") as answer:
        assert (answer.status, answer.headers["location"]) == (302, "/elsewhere")
    assert len(scripted.requests) == 1


def test_bytes_are_handed_over_as_they_come(wire: Wire, scripted: ScriptedServer) -> None:
    """Pitfall 27."""
    go_on = threading.Event()

    def reply(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        go_on.wait(AT_ONCE)
        connection.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    scripted.replies = [reply]
    with wire.open(scripted.root + "/x", streaming=True) as answer:
        assert answer.read() == b"one"
        go_on.set()
        assert answer.body() == b"two"


def test_a_connection_is_used_again_only_after_a_whole_body(wire: Wire, scripted: ScriptedServer) -> None:
    whole = scripted.send(scripted.response(200, b"abc"))
    scripted.replies = [whole, whole, scripted.stall(scripted.response(200, b"a", length=10)), whole]
    assert [wire.get(scripted.root + "/x") for _ in range(2)] == [b"abc", b"abc"]
    assert len(scripted.connections) == 1
    with wire.open(scripted.root + "/x") as answer:
        assert answer.read() == b"a"
    assert scripted.gone.acquire(timeout=AT_ONCE), "the connection of a body that was not read is closed"
    assert wire.get(scripted.root + "/x") == b"abc"
    assert len(scripted.connections) == 2


def test_a_large_body_does_not_fill_the_memory(wire: Wire, scripted: ScriptedServer) -> None:
    size, piece = 256 << 20, bytes(1 << 20)

    def reply(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            connection.sendall(piece)

    scripted.replies = [reply]
    before, received, most = _resident(), 0, 0
    with wire.open(scripted.root + "/x") as answer:
        while chunk := answer.read():
            received += len(chunk)
            if received % (16 << 20) < len(chunk):
                most = max(most, _resident() - before)
    assert received == size
    assert most < 64 << 20


def _resident() -> int:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096 if pages.exists() else 0


# -- failures


def test_nobody_listens(wire: Wire) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and refusing
        error = failure(wire, f"http://127.0.0.1:{unused.getsockname()[1]}/x")
    assert (error.code, error.may_have_been_sent, error.status) == ("CONNECT", False, None)
    assert "efused" in str(error)


def test_nobody_knows_the_host(wire: Wire) -> None:
    error = failure(wire, "http://nowhere.invalid/x")
    assert (error.code, error.may_have_been_sent) == ("CONNECT", False)
    assert "nowhere.invalid" in str(error)


@pytest.mark.parametrize(
    "wire_bytes",
    [
        b"",
        b"HTT",
        b"\x00\x01garbage\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nx-a: b",
    ],
    ids=["reset", "a few bytes", "garbage", "no status", "another protocol", "half a head"],
)
def test_no_answer(wire: Wire, scripted: ScriptedServer, wire_bytes: bytes) -> None:
    if wire.name == "urllib3.PoolManager" and wire_bytes.startswith(b"HTTP/1.1 200"):
        pytest.skip(
            "http.client takes a part of a head for the whole, and a pool of the caller's is left as it is"
        )
    scripted.replies = [scripted.send(wire_bytes, close=True)]
    error = failure(wire, scripted.root + "/x")
    assert (error.code, error.may_have_been_sent, error.status) == ("NETWORK", True, None)
    if (
        wire.name != "aiohttp.ClientSession"
    ):  # which repeats what is idempotent, and the session is its owner's
        assert len(scripted.requests) == 1, "nothing is repeated"


def test_a_post_on_a_connection_that_the_server_closed_is_not_repeated(
    wire: Wire, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.send(scripted.response(200, b"abc")), scripted.reset]
    wire.get(scripted.root + "/x")
    with pytest.raises(FetchError) as caught:
        wire.get(scripted.root + "/x", method="POST", body=b"once")
    assert caught.value.may_have_been_sent
    assert len(scripted.requests) == 2


@pytest.mark.parametrize(
    "wire_bytes",
    [
        b"content-length: 10\r\n\r\nabc",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nab",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\nab",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n-3\r\nab",
    ],
    ids=["content-length", "chunked", "inside a chunk", "bad chunk size", "negative chunk size"],
)
def test_a_body_that_is_cut_is_an_error_and_no_end(
    wire: Wire, scripted: ScriptedServer, wire_bytes: bytes
) -> None:
    """Pitfall 5."""
    scripted.replies = [scripted.send(b"HTTP/1.1 200 OK\r\n" + wire_bytes, close=True)]
    error = failure(wire, scripted.root + "/x")
    assert (error.code, error.may_have_been_sent) == ("NETWORK", True)


def test_a_connection_reset_in_the_body(wire: Wire, scripted: ScriptedServer) -> None:
    go_on = threading.Event()

    def reply(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
        go_on.wait(AT_ONCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with RST
        raise ConnectionAbortedError

    scripted.replies = [reply]
    with wire.open(scripted.root + "/x") as answer:
        assert answer.read() == b"abc"
        go_on.set()
        with pytest.raises(FetchError) as caught:
            answer.read()
    assert (caught.value.code, caught.value.status) == ("NETWORK", 200)


def test_a_head_without_end(wire: Wire, scripted: ScriptedServer) -> None:
    scripted.replies = [
        scripted.send(b"HTTP/1.1 200 OK\r\nx-long: " + b"a" * (2 << 20) + b"\r\n\r\n", close=True)
    ]
    assert failure(wire, scripted.root + "/x").code == "NETWORK"


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"], ids=["head", "body"]
)
def test_a_silent_server(wire: Wire, scripted: ScriptedServer, first: bytes) -> None:
    """Pitfall 9."""
    scripted.replies = [scripted.stall(first)]
    error = failure(wire, scripted.root + "/x", timeout=0.2)
    assert (error.code, error.may_have_been_sent) == ("TIMEOUT", True)
    assert scripted.gone.acquire(timeout=AT_ONCE)


def test_tls_to_a_server_that_speaks_none(wire: Wire, scripted: ScriptedServer) -> None:
    def reply(connection: socket.socket) -> None:
        raise AssertionError

    scripted.replies = [reply]
    listener = _plain_listener()
    with contextlib.closing(listener):
        error = failure(wire, f"https://127.0.0.1:{listener.getsockname()[1]}/x")
    assert (error.code, error.may_have_been_sent) == ("TLS", False)


def _plain_listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
                connection.recv(1024)

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a certificate, with its key, that nobody trusts."""
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("there is no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    options = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(
        [command, "req", "-x509", *options, *names, *files], check=True, capture_output=True, timeout=60
    )
    return folder


def test_a_certificate_that_nobody_signed(wire: Wire, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection, context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(1024)

        threading.Thread(target=serve, daemon=True).start()
        error = failure(wire, f"https://127.0.0.1:{listener.getsockname()[1]}/x")
    assert (error.code, error.may_have_been_sent) == ("TLS", False)
    assert "certificate" in str(error)


# -- the caller's client


@pytest.mark.parametrize("name", GIVEN)
def test_the_callers_client_stays_open_and_keeps_its_timeout(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    """Pitfall 8."""
    scripted.replies = [
        scripted.send(scripted.response(200, b"abc")),
        scripted.stall(),
        scripted.send(scripted.response(200, b"x")),
    ]
    with wire_over(name, loop, timeout=0.3) as wire:
        assert wire.get(scripted.root + "/x") == b"abc"
        assert failure(wire, scripted.root + "/x", streaming=True).code == "TIMEOUT"
        assert not wire.is_closed
        assert wire.get(scripted.root + "/x") == b"x"


@pytest.mark.parametrize("name", GIVEN)
def test_a_timeout_that_the_call_names_wins(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    def slow(connection: socket.socket) -> None:
        time.sleep(0.5)
        connection.sendall(scripted.response(200, b"late"))

    scripted.replies = [slow, slow, scripted.stall()]
    with wire_over(name, loop, timeout=0.1) as wire:
        assert wire.get(scripted.root + "/x", timeout=30.0) == b"late"
        assert wire.get(scripted.root + "/x", timeout=float("inf")) == b"late"
    with wire_over(name, loop) as wire:
        assert failure(wire, scripted.root + "/x", timeout=0.1).code == "TIMEOUT"


@pytest.mark.parametrize("name", [name for name in GIVEN if not name.startswith("urllib3")])
def test_a_client_that_its_owner_closed(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(200))]
    with wire_over(name, loop) as wire:
        wire.end()
        with pytest.raises(DurableStreamError) as caught:
            wire.get(scripted.root + "/x")
    assert caught.value.code == "CLIENT_CLOSED"
    assert not isinstance(caught.value, FetchError), "no retry mends it"
    assert not scripted.requests


@pytest.mark.parametrize("name", ALL)
def test_a_client_of_the_other_kind_is_refused(name: str, loop: Loop) -> None:
    if name in OWN:
        pytest.skip("there is no client to be confused")
    with wire_over(name, loop) as wire, pytest.raises(TypeError, match=r"^client= .*takes .* not .*\.$"):
        (transport_for if name in ASYNC else async_transport_for)(wire.client)


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_subclasses_of_a_client_are_clients(library: str) -> None:
    module = pytest.importorskip(library)
    kinds = [type("Mine", (getattr(module, kind),), {}) for kind in ("Client", "AsyncClient")]
    with kinds[0]() as client:
        assert transport_for(client) is not None
    assert async_transport_for(kinds[1]()) is not None


def test_a_test_client_of_starlette_is_a_client() -> None:
    testclient = pytest.importorskip("starlette.testclient")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["path"].encode())]}
        )
        await send({"type": "http.response.body", "body": b"abc"})

    wire = Wire("httpx.Client", testclient.TestClient(app), None)  # type: ignore[arg-type]
    with wire.open("http://testserver/v1/stream/x") as answer:
        assert (answer.status, answer.headers["x-path"], answer.body()) == (200, "/v1/stream/x", b"abc")


# -- waking and releasing


@pytest.mark.parametrize("name", [name for name in SYNC if name != "urllib3.PoolManager"])
@pytest.mark.parametrize("used_before", [False, True], ids=["new connection", "used connection"])
def test_an_interrupt_wakes_a_wait_for_the_head(
    name: str, used_before: bool, loop: Loop, scripted: ScriptedServer
) -> None:
    """Pitfall 10: a long poll waits for its head."""
    scripted.replies = [scripted.send(scripted.response(200))] * used_before + [scripted.stall()]
    with wire_over(name, loop, timeout=60.0) as wire:
        if used_before:
            wire.get(scripted.root + "/x")
            assert scripted.arrived.acquire(timeout=AT_ONCE)
        interrupt = Interrupt()
        waker = threading.Thread(target=lambda: (scripted.arrived.acquire(timeout=AT_ONCE), interrupt.set()))
        waker.start()
        began = time.monotonic()
        assert failure(wire, scripted.root + "/x", streaming=True, interrupt=interrupt).code == "CLOSED"
        assert time.monotonic() - began < AT_ONCE
        waker.join()
        assert len(scripted.connections) == 1
        scripted.replies = [scripted.send(scripted.response(200, b"abc"))]
        assert wire.get(scripted.root + "/x") == b"abc"


@pytest.mark.parametrize("name", SYNC)
def test_an_interrupt_wakes_a_read(name: str, loop: Loop, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.stall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")]
    with wire_over(name, loop, timeout=60.0) as wire:
        interrupt = Interrupt()
        with wire.open(scripted.root + "/x", streaming=True, interrupt=interrupt) as answer:
            assert answer.read() == b"abc"
            waker = threading.Timer(0.05, interrupt.set)
            waker.start()
            began = time.monotonic()
            with pytest.raises(FetchError) as caught:
                answer.read()
            assert caught.value.code == "CLOSED"
            assert time.monotonic() - began < AT_ONCE
            waker.join()


@pytest.mark.parametrize("name", SYNC)
def test_an_interrupt_after_the_end_breaks_nobody_else(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.send(scripted.response(200, b"abc"))]
    with wire_over(name, loop) as wire:
        first = Interrupt()
        with wire.open(scripted.root + "/x", interrupt=first) as ended:
            assert ended.body() == b"abc"
            with wire.open(scripted.root + "/x") as answer:
                first.set()
                assert answer.body() == b"abc"
        assert len(scripted.connections) == 1


@pytest.mark.parametrize("name", SYNC)
def test_an_interrupt_before_the_request_sends_nothing_for_long(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    if name == "urllib3.PoolManager":
        pytest.skip("it cannot be woken before the head is there")
    scripted.replies = [scripted.stall()]
    with wire_over(name, loop, timeout=60.0) as wire:
        interrupt = Interrupt()
        interrupt.set()
        assert failure(wire, scripted.root + "/x", interrupt=interrupt).code == "CLOSED"


@pytest.mark.parametrize("name", ASYNC)
def test_closing_an_answer_that_was_not_read_is_quick(
    name: str, loop: Loop, scripted: ScriptedServer
) -> None:
    scripted.replies = [scripted.stall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nabc")]
    with wire_over(name, loop) as wire:
        answer = wire.open(scripted.root + "/x")
        began = time.monotonic()
        answer.close()
        assert time.monotonic() - began < 1.0
        assert scripted.gone.acquire(timeout=AT_ONCE)


@pytest.mark.parametrize("name", ASYNC)
@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"], ids=["head", "body"]
)
def test_a_cancelled_request_leaves_nothing_open(
    name: str, first: bytes, loop: Loop, scripted: ScriptedServer
) -> None:
    import asyncio

    scripted.replies = [scripted.stall(first), scripted.send(scripted.response(200, b"abc"))]
    with wire_over(name, loop) as wire:

        async def read() -> None:
            from durable_streams.protocol.request import Request

            exchange = await async_transport_for(wire.client).open(Request("GET", scripted.root + "/x"), None)
            try:
                while await exchange.read():
                    pass
            finally:
                await exchange.close()

        async def cancel() -> None:
            task = asyncio.ensure_future(read())
            await asyncio.to_thread(scripted.arrived.acquire, timeout=AT_ONCE)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        loop.run(cancel())
        assert scripted.gone.acquire(timeout=AT_ONCE)
        assert wire.get(scripted.root + "/x") == b"abc"


def test_an_answer_can_be_closed_twice(wire: Wire, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(200, b"abc"))]
    answer: Answer = wire.open(scripted.root + "/x")
    answer.close()
    answer.close()
