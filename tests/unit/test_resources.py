"""What a client asks a server about itself and its list of streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from asking import ask, json, refusal

from durable_streams.errors import DurableStreamError, StreamNotFoundError, StreamParseError
from durable_streams.protocol.request import Op, Response
from durable_streams.protocol.resources import (
    ProducerInfo,
    health,
    list_page,
    producers_page,
    split_root,
    stream_info,
)
from durable_streams.types import StreamInfo

ROOT = "http://host/v1/stream"
SHORT = {"path": "a/b", "content_type": "text/plain", "tail": "7", "earliest": "2", "bytes": 5}
LONG = {
    **SHORT,
    "closed": True,
    "created": "2026-01-01T00:00:00Z",
    "ttl_seconds": 9,
    "forked_from": "c",
    "forks": 1,
}


OF_THE_LIST: dict[str, Callable[[], Op[Any]]] = {
    "page": lambda: list_page(ROOT, "secret"),
    "one": lambda: stream_info(ROOT, "a"),
}


# -- the list


@pytest.mark.parametrize(
    ("root", "asked", "query"),
    [
        (ROOT, {}, ""),
        (f"{ROOT}/", {}, ""),
        (ROOT, {"prefix": "a/b c", "after": "a/b&", "limit": 5}, "?after=a%2Fb%26&limit=5&prefix=a%2Fb+c"),
        (ROOT, {"prefix": "", "after": "", "limit": None}, ""),
        (f"{ROOT}/jobs", {}, "?prefix=jobs%2F"),
        (f"{ROOT}/jobs/", {"prefix": "new", "limit": 1}, "?limit=1&prefix=jobs%2Fnew"),
        (f"{ROOT}/a%20b", {}, "?prefix=a+b%2F"),
    ],
)
def test_a_page_is_asked_of_the_root_below_a_path(root: str, asked: dict[str, Any], query: str) -> None:
    request, page = ask(list_page(root, **asked), json({"streams": []}))
    assert (request.method, request.url) == ("GET", f"{ROOT}/__ds/streams{query}")
    assert (page.streams, page.next) == ([], None)


def test_a_page_has_its_streams_and_where_the_next_one_begins() -> None:
    _, page = ask(list_page(ROOT), json({"streams": [SHORT, LONG], "next": "a/b"}))
    assert page.streams == [StreamInfo(**SHORT), StreamInfo(**LONG)]
    assert page.next == "a/b"


def test_one_stream_of_the_list() -> None:
    request, info = ask(stream_info(ROOT, "a/b c?"), json(LONG))
    assert (request.method, request.url) == ("GET", f"{ROOT}/__ds/streams/a/b%20c%3F")
    assert info == StreamInfo(**LONG)


def test_a_page_of_producers() -> None:
    body = {"producers": [{"id": "p", "epoch": 2, "seq": 7}], "next": "p"}
    request, page = ask(producers_page(ROOT, "a/b c?", "é&", 5), json(body))
    assert (request.method, request.url) == (
        "GET",
        f"{ROOT}/__ds/producers/a/b%20c%3F?after=%C3%A9%26&limit=5",
    )
    assert (page.producers, page.next) == ([ProducerInfo("p", 2, 7)], "p")
    request, page = ask(producers_page(ROOT, "a"), json({"producers": []}))
    assert (request.url, page.producers, page.next) == (f"{ROOT}/__ds/producers/a", [], None)


@pytest.mark.parametrize("operation", OF_THE_LIST)
def test_a_server_without_a_list(operation: str) -> None:
    with pytest.raises(StreamNotFoundError, match=f"^GET {ROOT}/__ds/streams(/a)? answered 404: none here"):
        ask(OF_THE_LIST[operation](), refusal(404, "NOT_FOUND", "none here"))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"streams":[{}]}', b'{"x":' + b"[" * 100_000])
@pytest.mark.parametrize("operation", OF_THE_LIST)
def test_a_success_that_is_something_else(operation: str, body: bytes) -> None:
    with pytest.raises(
        StreamParseError, match=r"succeeded with something else than was asked for \(.+\);"
    ) as raised:
        ask(OF_THE_LIST[operation](), Response(200, {"content-type": "text/html"}, body))
    error = raised.value
    assert str(error).endswith("; check that it is this server.")
    assert (error.status, error.headers) == (200, {"content-type": "text/html"})
    assert error.url in {f"{ROOT}/__ds/streams", f"{ROOT}/__ds/streams/a"}  # without its query
    assert "secret" not in str(error)


# -- health


@pytest.mark.parametrize(
    ("root", "live", "url"),
    [
        (ROOT, False, "http://host/health"),
        (ROOT, True, "http://host/health/live"),
        ("http://host", False, "http://host/health"),
        ("http://host/below/v1/stream", True, "http://host/below/health/live"),
    ],
)
def test_health_is_asked_of_the_server(root: str, live: bool, url: str) -> None:
    request, _ = ask(health(root, live=live), Response(200, {}, b"ok"))
    assert (request.method, request.url) == ("GET", url)


@pytest.mark.parametrize(("status", "code"), [(503, "BUSY"), (204, "UNEXPECTED_STATUS")])
def test_a_server_that_is_not_healthy(status: int, code: str) -> None:
    with pytest.raises(DurableStreamError, match=f"^GET http://host/health answered {status}: ") as raised:
        ask(health(ROOT), Response(status, {}))
    assert (raised.value.status, raised.value.code) == (status, code)


# -- addresses


@pytest.mark.parametrize(
    ("url", "root", "path"),
    [
        (ROOT, ROOT, ""),
        (f"{ROOT}/", ROOT, ""),
        (f"{ROOT}/a/b/", ROOT, "a/b"),
        (f"{ROOT}/a%2Fb%20c", ROOT, "a/b c"),
        (f"{ROOT}/v1/stream/a", ROOT, "v1/stream/a"),
        ("http://host/streams/", "http://host/streams", ""),
        ("http://host/v1/streams", "http://host/v1/streams", ""),
        ("http://host", "http://host", ""),
    ],
)
def test_the_root_of_the_streams_and_a_path_below_it(url: str, root: str, path: str) -> None:
    assert split_root(url) == (root, path)
