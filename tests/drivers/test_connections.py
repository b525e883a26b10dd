"""Connections that must not be used again, and those that may: nobody is given another's answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from facade import Facade, Loop
from scripted import ScriptedServer
from wires import ASYNC, EVERY, SYNC, Wire, client_for, wire_over

from durable_streams import AsyncDurableStream, DurableStream, FetchError

WITHIN = 10.0
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n"
WRONG = b"HTTP/1.1 200 OK\r\nstream-next-offset: 9\r\ncontent-length: 5\r\n\r\nWRONG"


@pytest.fixture(scope="module", params=EVERY)
def wire(request: pytest.FixtureRequest, loop: Loop) -> Iterator[Wire]:
    with wire_over(request.param, loop) as wire:
        yield wire


def echo(scripted: ScriptedServer) -> bytes:
    """Return the answer to the last request: its own path."""
    return scripted.response(200, scripted.requests[-1].target.encode())


def first_then_echo(scripted: ScriptedServer, first: bytes, *later: bytes, pause: float = 0.1) -> None:
    """Answer the first request with these bytes, with a pause before each piece; every other one with its path."""

    def reply(connection: socket.socket) -> None:
        if len(scripted.requests) > 1:
            connection.sendall(echo(scripted))
            return
        connection.sendall(first)
        for piece in later:
            scripted.ended.wait(pause)
            connection.sendall(piece)

    scripted.replies = [reply]


def read(wire: Wire, url: str, method: str = "GET") -> bytes | None:
    """Return an answer's body, None for an answer that was refused."""
    try:
        return wire.get(url, method=method)
    except FetchError as error:
        return None if error.code == "NETWORK" else b"error " + error.code.encode()


# -- interim answers


@pytest.mark.parametrize(
    "interim",
    [
        EARLY,
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 199 X\r\na: b\r\n\r\n",
    ],
    ids=["103", "102", "100", "199"],
)
@pytest.mark.parametrize("pause", [0.0, 0.3], ids=["at once", "later"])
def test_a2_interim_answers_are_read_past(
    wire: Wire, scripted: ScriptedServer, interim: bytes, pause: float
) -> None:
    final = scripted.response(200, b"/first", x_own="1")
    if pause:
        first_then_echo(scripted, interim, interim + interim, final, pause=pause)
    else:
        first_then_echo(scripted, interim * 3 + final)
    with wire.open(scripted.root + "/first") as answer:
        assert (answer.status, answer.headers.get("x-own"), answer.body()) == (200, "1", b"/first")
        assert "link" not in answer.headers
    assert wire.get(scripted.root + "/second") == b"/second"
    assert len(scripted.connections) == 1


@pytest.mark.every_transport
def test_a2_no_stream_is_given_anothers_data(facade: Facade, scripted: ScriptedServer) -> None:
    """The real answers come half a second after the hints, when the next request is long under way."""

    def reply(connection: socket.socket) -> None:
        request = scripted.requests[-1]
        connection.sendall(EARLY)
        scripted.ended.wait(0.3)
        name = request.target.partition("?")[0]
        headers = {"stream_next_offset": name.strip("/"), "content_type": "text/plain"}
        if request.method == "POST":
            connection.sendall(scripted.response(204, **headers))
        else:
            connection.sendall(scripted.response(200, name.encode(), stream_closed="true", **headers))

    scripted.replies = [reply]
    for name in ("/a", "/b"):
        assert facade.stream(scripted.root + name, live=False).read_bytes() == name.encode()
        handle = facade.DurableStream(scripted.root + name + "-end", content_type="text/plain")
        assert handle.append("x").next_offset == name.strip("/") + "-end"


def test_a2_interim_answers_without_end(wire: Wire, scripted: ScriptedServer) -> None:
    if "http" in wire.library or wire.is_async:
        pytest.skip("these libraries read on; the time limits are what bounds them")

    def reply(connection: socket.socket) -> None:
        while not scripted.ended.is_set():
            connection.sendall(EARLY * 100)

    scripted.replies = [reply]
    assert read(wire, scripted.root + "/x") is None


def test_a2_switching_protocols_is_an_error(wire: Wire, scripted: ScriptedServer) -> None:
    first_then_echo(
        scripted, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", WRONG
    )
    with pytest.raises(FetchError) as caught:
        wire.get(scripted.root + "/first")
    assert (caught.value.code, caught.value.may_have_been_sent) == ("NETWORK", True)
    assert scripted.gone.acquire(timeout=WITHIN)
    assert wire.get(scripted.root + "/second") == b"/second"


# -- what comes behind an answer


def _headed(status: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *lines]) + b"\r\n\r\n"


NO_CONTENT = _headed(b"204 No Content")
TOO_LONG = {
    "no content": ("POST", NO_CONTENT, b""),
    "not modified": ("GET", _headed(b"304 Not Modified", b"etag: x"), b""),
    "head": ("HEAD", _headed(b"200 OK", b"content-length: 5"), b""),
    "length": ("GET", _headed(b"200 OK", b"content-length: 3") + b"abc", b"abc"),
    "chunked": ("GET", _headed(b"200 OK", b"transfer-encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
}
BEHIND = {"an answer": WRONG, "a body": b"HELLO", "half a head": WRONG[:30], "an end of line": b"\r\n"}


@pytest.mark.parametrize("answer", TOO_LONG)
@pytest.mark.parametrize("behind", BEHIND)
def test_a2_what_comes_along_behind_an_answer_is_nobodys(
    wire: Wire, scripted: ScriptedServer, answer: str, behind: str
) -> None:
    """In the same packet: then it lies in the library's own buffer."""
    method, wire_bytes, body = TOO_LONG[answer]
    first_then_echo(scripted, wire_bytes + BEHIND[behind])
    assert read(wire, scripted.root + "/first", method) in {body, None}
    assert wire.get(scripted.root + "/second") == b"/second"


@pytest.mark.parametrize("answer", TOO_LONG)
@pytest.mark.parametrize("behind", BEHIND)
def test_a2_what_comes_late_behind_an_answer_is_nobodys(
    wire: Wire, scripted: ScriptedServer, answer: str, behind: str
) -> None:
    """It is there before the connection would be used again, whether or not an event loop has seen it."""
    method, wire_bytes, body = TOO_LONG[answer]
    first_then_echo(scripted, wire_bytes, BEHIND[behind])
    assert read(wire, scripted.root + "/first", method) == body
    time.sleep(0.3)
    assert wire.get(scripted.root + "/second") == b"/second"
    rest = WRONG[30:] if behind == "half a head" else b""
    if rest:
        with contextlib.suppress(OSError):
            scripted.connections[0].sendall(rest)
    assert wire.get(scripted.root + "/third") == b"/third"


@pytest.mark.parametrize(
    "head",
    [
        _headed(b"204 No Content", b"content-length: 5"),
        _headed(b"204 No Content", b"transfer-encoding: chunked"),
        _headed(b"204 No Content", b"Content-Length: 05"),
    ],
    ids=["length", "chunked", "leading zero"],
)
def test_a2_a_connection_ends_with_an_answer_that_says_two_things_about_its_end(
    wire: Wire, scripted: ScriptedServer, head: bytes
) -> None:
    """A 204 has no body, and names the length of one: it may come at any time, long after the next request."""
    second = threading.Event()

    def reply(connection: socket.socket) -> None:
        if len(scripted.requests) > 1:
            second.set()
            connection.sendall(echo(scripted))
            return
        connection.sendall(head)
        if not second.wait(WITHIN):
            return
        with contextlib.suppress(OSError):
            connection.sendall(WRONG)

    scripted.replies = [reply]
    assert read(wire, scripted.root + "/first", "POST") in {b"", None}
    assert wire.get(scripted.root + "/second") == b"/second"
    assert len(scripted.connections) == 2


def test_a2_a_connection_ends_with_an_answer_of_both_framings(wire: Wire, scripted: ScriptedServer) -> None:
    """Chunked or of that length: a proxy may have used the other one (RFC 9112, section 6.3)."""
    first_then_echo(
        scripted,
        _headed(b"200 OK", b"transfer-encoding: chunked", b"content-length: 100") + b"3\r\nabc\r\n0\r\n\r\n",
    )
    assert read(wire, scripted.root + "/first") in {b"abc", None}
    assert wire.get(scripted.root + "/second") == b"/second"
    assert len(scripted.connections) == 2


@pytest.mark.parametrize(
    "lines",
    [
        [b"transfer-encoding: gzip, chunked"],
        [b"transfer-encoding: xchunked"],
        [b"content-length: 5_0"],
        [b"content-length: +3"],
        [b"content-length: three"],
        [b"content-length: 3", b"content-length: 4"],
    ],
)
def test_a2_a_framing_that_is_none_is_an_error(
    wire: Wire, scripted: ScriptedServer, lines: list[bytes]
) -> None:
    """Its bytes would be taken for data, as they are."""
    scripted.replies = [scripted.send(_headed(b"200 OK", *lines) + b"3\r\nabc\r\n0\r\n\r\n", close=True)]
    with pytest.raises(FetchError) as caught:
        wire.get(scripted.root + "/x")
    assert (caught.value.code, caught.value.may_have_been_sent) == ("NETWORK", True)


def test_a2_a_good_connection_is_used_again_whatever_the_answer(wire: Wire, scripted: ScriptedServer) -> None:
    """Otherwise each append would pay for a new one."""
    answers = [*TOO_LONG.values(), ("POST", _headed(b"204 No Content", b"content-length: 0"), b"")]
    for method, wire_bytes, body in answers:
        scripted.replies = [scripted.send(wire_bytes)]
        assert wire.get(scripted.root + "/x", method=method) == body
    assert len(scripted.connections) == 1


# -- connections that died while they were idle


@pytest.mark.parametrize("name", ASYNC)
@pytest.mark.parametrize("how", ["between two runs", "in a callback", "reset"])
def test_a10_an_async_append_after_a_time_without_the_event_loop(
    name: str, how: str, scripted: ScriptedServer
) -> None:
    """The server's keep-alive ran out meanwhile: the loop has not seen that the connection is over."""
    over = threading.Event()

    def reply(connection: socket.socket) -> None:
        connection.sendall(scripted.response(204, stream_next_offset=str(len(scripted.requests))))
        if len(scripted.requests) == 1:
            if how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
            over.set()

    scripted.replies = [reply]
    loop = asyncio.new_event_loop()

    async def made() -> Any:
        return client_for(name)

    client = loop.run_until_complete(made())
    handle = AsyncDurableStream(scripted.root + "/s", content_type="text/plain", client=client)

    async def both() -> str:
        await handle.append("one")
        _wait(over)
        return (await handle.append("two")).next_offset

    if how == "in a callback":
        assert loop.run_until_complete(both()) == "2"
    else:
        loop.run_until_complete(handle.append("one"))
        _wait(over)
        assert loop.run_until_complete(handle.append("two")).next_offset == "2"
    assert [request.body for request in scripted.requests] == ["one", "two"]
    loop.run_until_complete(_end(client))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def _wait(over: threading.Event) -> None:
    assert over.wait(WITHIN)
    time.sleep(0.1)  # the news takes a moment to arrive


async def _end(client: Any) -> None:
    for name in ("aclose", "close"):
        if (close := getattr(client, name, None)) is not None:
            await close()
            return


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ASYNC])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a10_a_sync_append_after_idling(name: str, reset: bool, scripted: ScriptedServer) -> None:
    over = threading.Event()

    def reply(connection: socket.socket) -> None:
        connection.sendall(scripted.response(204, stream_next_offset=str(len(scripted.requests))))
        if len(scripted.requests) == 1:
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
            over.set()

    scripted.replies = [reply]
    with contextlib.ExitStack() as stack:
        client = client_for(name)
        if hasattr(client, "close"):
            stack.callback(client.close)
        handle = DurableStream(scripted.root + "/s", content_type="text/plain", client=client)
        handle.append("one")
        _wait(over)
        assert handle.append("two").next_offset == "2"
    assert [request.body for request in scripted.requests] == ["one", "two"]


@pytest.mark.parametrize("name", [*SYNC, "requests.Session"])
def test_a10_what_was_not_sent_is_sent_again(
    name: str, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies between the look at it and the first byte: the system takes nothing, and that is known."""
    over = threading.Event()

    def reply(connection: socket.socket) -> None:
        connection.sendall(scripted.response(204, stream_next_offset=str(len(scripted.requests))))
        if len(scripted.requests) == 1:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
            over.set()

    scripted.replies = [reply]
    client = client_for(name)
    with contextlib.ExitStack() as stack:
        if hasattr(client, "close"):
            stack.callback(client.close)
        handle = DurableStream(scripted.root + "/s", content_type="text/plain", client=client)
        handle.append("one")
        _wait(over)
        for library in ("httpcore", "httpcore2"):
            with contextlib.suppress(ImportError):
                monkeypatch.setattr(f"{library}._backends.sync.is_socket_readable", lambda _: False)
        monkeypatch.setattr("urllib3.connectionpool.is_connection_dropped", lambda _: False)
        assert handle.append("two").next_offset == "2"
    assert [request.body for request in scripted.requests] == ["one", "two"]


def test_a10_a_connection_that_dies_with_the_request_is_in_doubt(
    wire: Wire, scripted: ScriptedServer
) -> None:
    """The request had arrived: it must not be taken for unsent."""
    scripted.replies = [scripted.send(scripted.response(200, b"abc")), scripted.reset]
    wire.get(scripted.root + "/x")
    with pytest.raises(FetchError) as caught:
        wire.get(scripted.root + "/x", method="POST", body=b"once")
    assert caught.value.may_have_been_sent
    assert len(scripted.requests) == 2
