"""Headers of the caller: what belongs to the connection is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest
from facade import Facade, Loop
from scripted import ScriptedServer

from durable_streams import AsyncDurableStream, DurableStream
from durable_streams.firehose import AsyncFirehoseStream, FirehoseStream
from durable_streams.protocol.request import Request, check_callers_headers, with_caller
from durable_streams.relay import Relay, source_for
from durable_streams.version import USER_AGENT

FRAMING = {
    "Content-Length": "5",
    "Transfer-Encoding": "chunked",
    "Connection": "close",
    "Keep-Alive": "timeout=5",
    "Proxy-Connection": "keep-alive",
    "TE": "trailers",
    "Trailer": "x-sum",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAMAAABkAAQAAP__",
    "Expect": "100-continue",
    "Host": "elsewhere",
}
SPELLINGS = [
    "content-length",
    "CONTENT-LENGTH",
    "Content_Length",
    " content-length",
    "content-length ",
    "content-length\t",
]


@pytest.fixture
def server(scripted: ScriptedServer) -> ScriptedServer:
    """Give a server that acknowledges whatever it is sent."""
    scripted.replies = [
        scripted.send(scripted.response(204, stream_next_offset="1", content_type="text/plain"))
    ]
    return scripted


def refused(name: str, call: Any) -> None:
    """Check that a call raises ValueError, and that it names the header."""
    with pytest.raises(ValueError, match=r"^The header .*\.$") as caught:
        call()
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [*FRAMING, *SPELLINGS])
def test_a3_a_framing_header_is_refused(facade: Facade, server: ScriptedServer, name: str) -> None:
    """Static or from a callable, for handles, reads and producers, and nothing is sent."""
    url, value = server.root + "/s", FRAMING.get(name, "5")
    for given in (value, facade.callable(lambda: value)):
        headers = {"authorization": "x", name: given}
        refused(name, lambda headers=headers: facade.DurableStream(url, headers=headers))
        refused(name, lambda headers=headers: facade.DurableStream.create(url, headers=headers))
        refused(name, lambda headers=headers: facade.DurableStream.connect(url, headers=headers))
        refused(name, lambda headers=headers: facade.DurableStream.head_static(url, headers=headers))
        refused(name, lambda headers=headers: facade.stream(url, headers=headers).read_bytes())
        refused(name, lambda headers=headers: facade.Producer(url, "p", headers=headers))
        handle = facade.DurableStream(url)
        refused(name, lambda headers=headers, handle=handle: handle.stream(headers=headers))
    assert server.requests == []


def test_a3_what_on_error_answers_is_checked_too(facade: Facade, scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(401))]
    refused(
        "Content-Length",
        lambda: facade.stream(
            scripted.root + "/s", on_error=lambda _: {"headers": {"Content-Length": "5"}}
        ).read_bytes(),
    )
    assert len(scripted.requests) == 1


@pytest.mark.every_transport
def test_a3_no_transport_is_asked_to_send_one(facade: Facade, server: ScriptedServer) -> None:
    """Whatever the library: the whole body arrives, and the header never does."""
    url = server.root + "/s"
    for name, value in FRAMING.items():
        refused(name, lambda name=name, value=value: facade.DurableStream(url, headers={name: value}))
    facade.DurableStream(url, content_type="text/plain", headers={"x-length": "5"}).append(b"0123456789")
    (request,) = server.requests
    assert request.body == "0123456789"
    assert request.headers["content-length"] == "10"


@pytest.mark.parametrize(
    "name", ["Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "TE", "Trailer"]
)
@pytest.mark.parametrize(
    ("library", "kind"),
    [
        ("httpx", "Client"),
        ("httpx2", "Client"),
        ("requests", "Session"),
        ("httpx", "AsyncClient"),
        ("httpx2", "AsyncClient"),
        ("aiohttp", "ClientSession"),
    ],
)
def test_a3_a_client_that_sends_one_is_refused(
    server: ScriptedServer, loop: Loop, library: str, kind: str, name: str
) -> None:
    """The header is the same on the wire, wherever it is added."""
    module = pytest.importorskip(library)
    url, headers = server.root + "/s", {name: FRAMING[name]}

    async def use() -> None:
        async with getattr(module, kind)(headers=headers) as client:
            await AsyncDurableStream(url, content_type="text/plain", client=client).append(b"0123456789")

    def use_sync() -> None:
        with getattr(module, kind)() as client:
            client.headers.update(headers)
            DurableStream(url, content_type="text/plain", client=client).append(b"0123456789")

    with pytest.raises(ValueError, match=f"(?i){name}"):
        use_sync() if kind in {"Client", "Session"} else loop.run(use())
    assert server.requests == []


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "Host"])
def test_a3_a_feed_refuses_them(server: ScriptedServer, loop: Loop, name: str) -> None:
    """A failed attempt would be retried forever."""
    url, headers = server.root + "/s", {name: "5"}
    refused(name, lambda: FirehoseStream(url, headers=headers))
    refused(name, lambda: AsyncFirehoseStream(url, headers=headers))
    refused(name, lambda: next(FirehoseStream(url, headers=lambda _: headers)))

    async def first() -> None:
        await anext(AsyncFirehoseStream(url, headers=lambda _: headers))

    refused(name, lambda: loop.run(first()))
    assert server.requests == []


def test_a3_a_relay_refuses_them(server: ScriptedServer) -> None:
    url, headers = server.root + "/s", {"Content-Length": "5"}
    for form in ("auto", "ndjson", "sse", "stream"):
        refused("Content-Length", lambda form=form: source_for(url, form=form, headers=headers))
    refused("Content-Length", lambda: Relay(iter([{"a": 1}]), url, headers=headers))
    assert server.requests == []


def test_a3_every_other_header_goes_out(facade: Facade, server: ScriptedServer) -> None:
    """Those of proxies and caches are the caller's own."""
    own = {
        "proxy-authorization": "Basic eDp5",
        "cache-control": "no-cache",
        "x-connection": "1",
        "content-language": "de",
        "hosts": "x",
    }
    facade.DurableStream(server.root + "/s", content_type="text/plain", headers=own).append("a")
    assert {name: server.requests[0].headers[name] for name in own} == own


def test_a3_the_check_stands_where_every_request_passes() -> None:
    request = Request("POST", "http://h/s", {"content-type": "text/plain"}, b"0123456789")
    with pytest.raises(ValueError, match="'content-Length'"):
        with_caller(request, {"content-Length": "5"}, {})
    with pytest.raises(TypeError, match="must be text"):
        check_callers_headers([b"content-length"])  # type: ignore[list-item]


@pytest.mark.every_transport
def test_d10_requests_name_this_library(facade: Facade, server: ScriptedServer) -> None:
    for headers in ({}, {"USER-AGENT": "mine/1"}):
        handle = facade.DurableStream(server.root + "/s", content_type="text/plain", headers=headers)
        handle.append(b"x")
    agents = [request.headers["user-agent"] for request in server.requests]
    assert agents == [USER_AGENT, "mine/1"]
    assert all(request.lower().count("\nuser-agent:") == 1 for request in server.requests)
