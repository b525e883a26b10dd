"""What caches may keep: never an old end of a stream that is open (section 5), and no page of the server's origin."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

from contextlib import closing

import pytest

from durable_streams.protocol.offsets import format_offset

JSON = "application/json"


@pytest.fixture(params=["rsgi", "asgi"])
def small_chunks(request: pytest.FixtureRequest, start_server):  # noqa: ANN201
    """Give a server whose answers end long before the tail."""
    return start_server(None, interface=request.param, chunk_size=10, long_poll_timeout=0.2)


def in_chunks(server, stream: str) -> str:
    server.create(stream)
    for number in range(4):
        server.append(stream, b"%d" % number * 20)
    return stream


def test_a4_an_answer_at_the_tail_is_asked_for_again(either_server, stream: str) -> None:
    either_server.create(stream)
    for size in (0, 3):
        if size:
            either_server.append(stream, b"abc")
        for query in ("", "?offset=-1", f"?offset={format_offset(0)}", f"?offset={format_offset(size)}"):
            answer = either_server.request("GET", f"{stream}{query}")
            assert answer.headers["cache-control"] == "no-cache", (size, query)
            assert answer.headers["stream-up-to-date"] == "true"
            again = either_server.request("GET", f"{stream}{query}", if_none_match=answer.headers["etag"])
            assert (again.status, again.body) == (304, b"")
            assert again.headers["cache-control"] == "no-cache"
            assert again.headers["stream-up-to-date"] == "true"
    polled = either_server.request("GET", f"{stream}?offset=-1&live=long-poll")
    assert (polled.status, polled.headers["cache-control"]) == (200, "no-cache")
    tag = polled.headers["etag"]
    again = either_server.request("GET", f"{stream}?offset=-1&live=long-poll", if_none_match=tag)
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert "stream-cursor" in again.headers
    waited = either_server.request("GET", f"{stream}?offset=now&live=long-poll", if_none_match=tag)
    assert (waited.status, waited.headers["cache-control"]) == (204, "no-store")


def test_a4_a_tag_changes_with_the_tail_although_the_bytes_do_not(small_chunks, stream: str) -> None:
    """A cache keeps the headers that "not modified" does not repeat: up-to-date would stay true."""
    small_chunks.create(stream)
    small_chunks.append(stream, b"x" * 20)
    first = small_chunks.request("GET", f"{stream}?offset=-1")
    assert first.headers["stream-up-to-date"] == "true"
    small_chunks.append(stream, b"y" * 20)
    then = small_chunks.request("GET", f"{stream}?offset=-1", if_none_match=first.headers["etag"])
    assert then.status == 200


def test_a4_what_lies_before_the_tail_may_be_kept(small_chunks, stream: str) -> None:
    in_chunks(small_chunks, stream)
    for live in ("", "&live=long-poll"):
        answer = small_chunks.request("GET", f"{stream}?offset=-1{live}")
        if "stream-up-to-date" in answer.headers:
            continue  # all of it in one answer
        assert answer.headers["cache-control"].startswith("public, max-age=60"), live
        assert "immutable" in answer.headers["cache-control"]
    # A HEAD has this URL too, and says where the stream ends: caches would answer it from what they keep.
    assert small_chunks.request("GET", stream).headers["cache-control"] == "no-cache"
    assert small_chunks.request("HEAD", stream).headers["cache-control"] == "no-store"


def test_e9_a_part_that_one_client_asked_for_is_not_kept_for_others(small_chunks, stream: str) -> None:
    in_chunks(small_chunks, stream)
    lengths = []
    for headers in ({}, {"Stream-Max-Bytes": "1"}):
        with closing(small_chunks.connection()) as connection:
            connection.request("GET", f"/v1/stream/{stream}", headers=headers)
            response = connection.getresponse()
            lengths.append(len(response.read()))
            assert "stream-max-bytes" in ", ".join(response.headers.get_all("vary")).split(", ")
    assert lengths[1] < lengths[0]


def test_a4_all_of_a_closed_stream_may_be_kept(small_chunks, stream: str) -> None:
    in_chunks(small_chunks, stream)
    small_chunks.request("POST", stream, stream_closed="true")
    offset, closed = "-1", False
    while not closed:
        for live in ("", "&live=long-poll"):
            answer = small_chunks.request("GET", f"{stream}?offset={offset}{live}")
            assert answer.headers["cache-control"].startswith("public, max-age=60"), (offset, live)
            assert "immutable" in answer.headers["cache-control"]
        offset, closed = answer.next_offset, answer.headers.get("stream-closed") == "true"
    end = small_chunks.request("GET", f"{stream}?offset={offset}")
    assert (end.body, end.headers["stream-closed"]) == (b"", "true")
    assert end.headers["cache-control"].startswith("public, max-age=60")
    assert small_chunks.request("GET", f"{stream}?offset=now").headers["cache-control"] == "no-store"


def test_a4_private(start_server, tmp_path) -> None:
    server = start_server(tmp_path / "data", cache="private")
    server.create("s")
    server.append("s", b"abc", stream_closed="true")
    assert server.request("GET", "s?offset=-1").headers["cache-control"].startswith("private, max-age=60")


def test_g10_what_a_stream_holds_is_no_page_of_this_origin(either_server, stream: str) -> None:
    page = b"<script>fetch('/v1/stream/x', {method: 'DELETE'})</script>"
    either_server.create(stream, "text/html")
    either_server.append(stream, page, "text/html")
    either_server.request("POST", stream, stream_closed="true")
    tag = either_server.request("GET", stream).headers["etag"]
    for method, query, headers in (
        ("GET", "", {}),
        ("GET", "?offset=-1", {}),
        ("GET", "?offset=now", {}),
        ("GET", "", {"if_none_match": tag}),
        ("GET", "?offset=-1&live=long-poll", {}),
        ("GET", "?offset=-1&live=sse", {}),
        ("HEAD", "", {}),
    ):
        answer = either_server.request(method, f"{stream}{query}", **headers)
        assert answer.headers["content-security-policy"] == "sandbox", (method, query)
        assert answer.headers["x-content-type-options"] == "nosniff", (method, query)
