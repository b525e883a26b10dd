"""Every transport against servers that behave, and against those that do not: one behaviour, whatever the library."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from facade import Loop
from scripted import ScriptedServer
from wires import ALL, Answer, Wire, failure, wire_over

from durable_streams import FetchError

AT_ONCE = 10.0  # seconds that something may take that must not wait for a timeout


@pytest.fixture(scope="module", params=ALL)
def wire(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Wire]:
    with wire_over(request.param, loop) as wire:
        yield wire


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


def test_an_answer_can_be_closed_twice(wire: Wire, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(200, b"abc"))]
    answer: Answer = wire.open(scripted.root + "/x")
    answer.close()
    answer.close()
