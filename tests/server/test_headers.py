"""Headers that are sent twice, bodies that are compressed, moments that are spelled differently, and OPTIONS."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import gzip
import sys

import pytest

BYTES = "application/octet-stream"
SINGLE = [
    ("PUT", "Content-Type", BYTES, "text/plain"),
    ("PUT", "Content-Type", BYTES, BYTES),
    ("PUT", "Stream-TTL", "10", "20"),
    ("PUT", "Stream-Expires-At", "2090-01-01T00:00:00Z", "2091-01-01T00:00:00Z"),
    ("PUT", "Stream-Closed", "false", "true"),
    ("PUT", "Stream-Forked-From", "/v1/stream/{stream}", "/v1/stream/other"),
    ("POST", "Content-Type", BYTES, "text/plain"),
    ("POST", "Stream-Seq", "a", "b"),
    ("POST", "Stream-Closed", "false", "true"),
    ("POST", "If-Match", '"0000000000000000_0000000000000003"', '"0000000000000000_0000000000000000"'),
    ("POST", "Producer-Id", "p", "q"),
    ("POST", "Producer-Epoch", "0", "1"),
    ("POST", "Producer-Seq", "0", "1"),
    ("POST", "Host", "localhost", "127.0.0.1"),
    ("GET", "Host", "localhost", "127.0.0.1"),
    ("POST", "Origin", "http://localhost", "https://example.com"),
    ("GET", "Last-Event-ID", "-1", "now"),
]


def ask(server, method: str, stream: str, *lines: str, body: bytes = b"", host: str = "Host: localhost"):  # noqa: ANN201
    head = [f"{method} /v1/stream/{stream} HTTP/1.1", host, "Connection: close", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return server.raw("\r\n".join(filter(None, head)).encode() + b"\r\n\r\n" + body)


@pytest.fixture
def filled(either_server, stream: str) -> str:
    either_server.create(stream)
    either_server.append(stream, b"abc")
    return stream


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: f"{case[0]}-{case[1]}")
def test_f10_a_header_with_one_value_that_is_sent_twice(
    either_server, filled: str, case: tuple[str, str, str, str]
) -> None:
    method, name, one, other = case
    lines = [f"{name}: {value.format(stream=filled)}" for value in (one, other)]
    if name.startswith("Producer"):
        lines += [f"{key}: 0" for key in ("Producer-Id", "Producer-Epoch", "Producer-Seq") if key != name]
    if method == "POST" and name != "Content-Type":
        lines.append(f"Content-Type: {BYTES}")
    target = {"PUT": f"{filled}/new", "POST": filled, "GET": f"{filled}?offset=-1&live=sse"}[method]
    host = "" if name == "Host" else "Host: localhost"
    for pair in (lines, [*lines[:1], lines[1].swapcase().replace(other.swapcase(), other), *lines[2:]]):
        answer = ask(either_server, method, target, *pair, body=b"" if method == "GET" else b"x", host=host)
        assert answer.status == 400
    assert either_server.request("HEAD", f"{filled}/new").status == 404
    assert either_server.read_all(filled) == b"abc"


def test_f10_if_none_match_on_two_lines_is_one_list(either_server, filled: str) -> None:
    tag = either_server.request("GET", filled).headers["etag"]
    for lines in (
        ['If-None-Match: "other"', f"If-None-Match: {tag}"],
        [f"If-None-Match: {tag}", 'If-None-Match: "other"'],
        ['If-None-Match: "a", "b"', f'if-none-match: "c", W/{tag}', 'IF-NONE-MATCH: "d"'],
    ):
        for live in ("", "&live=long-poll"):
            assert ask(either_server, "GET", f"{filled}?offset=-1{live}", *lines).status == 304, lines
    lines = ['If-None-Match: "a"', 'If-None-Match: "b"']
    assert ask(either_server, "GET", filled, *lines).status == 200


def test_f10_headers_that_are_nobodys_business_may_come_twice(either_server, filled: str) -> None:
    answer = ask(either_server, "GET", filled, "X-A: 1", "X-A: 2", "Accept: a/b", "Accept: c/d")
    assert (answer.status, answer.body) == (200, b"abc")


@pytest.mark.parametrize("key", ["offset", "live", "cursor"])
def test_f10_query_keys_that_are_repeated(either_server, filled: str, key: str) -> None:
    values = {"offset": "-1", "live": "long-poll", "cursor": "1"}
    query = "&".join(f"{name}={value}" for name, value in values.items())
    assert either_server.request("GET", f"{filled}?{query}").status == 200
    encoded = f"%{ord(key[0]):x}{key[1:]}"
    for name in (key, encoded):
        for value in (values[key], "now", ""):
            assert either_server.request("GET", f"{filled}?{query}&{name}={value}").status == 400


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "x-unknown"])
def test_f11_a_compressed_body_is_refused(either_server, filled: str, coding: str) -> None:
    body = gzip.compress(b"abc")
    appended = either_server.append(filled, body, content_encoding=coding)
    created = either_server.request("PUT", f"{filled}/new", body, content_encoding=coding)
    for answer in (appended, created):
        assert answer.status == 415
        assert answer.headers["accept-encoding"] == "identity"
        assert answer.json["error"]["code"] == "UNSUPPORTED_ENCODING"
    assert either_server.read_all(filled) == b"abc"
    assert either_server.request("HEAD", f"{filled}/new").status == 404


@pytest.mark.parametrize("coding", ["gzip, chunked", "deflate,chunked", "chunked, chunked"])
def test_f11_a_body_compressed_on_its_way_is_refused(either_server, filled: str, coding: str) -> None:
    body = gzip.compress(b"abc")
    with either_server.connect() as connection:
        connection.sendall(
            f"POST /v1/stream/{filled} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: text/plain\r\nTransfer-Encoding: {coding}\r\n\r\n".encode()
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        status = connection.makefile("rb").readline().split()[1]
    assert status in {b"400", b"415", b"501"}  # some HTTP servers refuse it themselves
    assert either_server.read_all(filled) == b"abc"


def test_f11_identity_is_no_coding(either_server, filled: str) -> None:
    assert either_server.append(filled, b"d", content_encoding="identity").status == 204
    assert either_server.append(filled, b"e", content_encoding="Identity").status == 204
    assert either_server.read_all(filled) == b"abcde"


def test_f11_one_moment_spelled_differently_is_one_configuration(either_server, stream: str) -> None:
    same = (
        "2090-01-31T12:00:00Z",
        "2090-01-31T12:00:00+00:00",
        "2090-01-31T12:00:00.000Z",
        "2090-01-31T14:30:00+02:30",
        "2090-01-31t12:00:00z",
        "2090-01-31T12:00:00.0000000Z",
    )
    for number, first in enumerate(same):
        target = f"{stream}/{number}"
        assert either_server.request("PUT", target, stream_expires_at=first).status == 201
        for spelled in same:
            assert either_server.request("PUT", target, stream_expires_at=spelled).status == 200, spelled
        for other in ("2090-01-31T12:00:00.001Z", "2090-01-31T12:00:00+00:01", "2090-01-31T12:00:01Z"):
            assert either_server.request("PUT", target, stream_expires_at=other).status == 409, other
        assert either_server.request("PUT", target).status == 409
        assert either_server.request("PUT", target, stream_ttl="10").status == 409
        assert either_server.request("HEAD", target).headers["stream-expires-at"] == first
    fork = {"stream_forked_from": f"/v1/stream/{stream}/0"}
    assert either_server.request("PUT", f"{stream}/fork", **fork).status == 201
    assert either_server.request("PUT", f"{stream}/fork", stream_expires_at=same[1], **fork).status == 200
    assert either_server.request("PUT", f"{stream}/fork", **fork).status == 200


def test_f11_options_of_what_is_no_stream(either_server) -> None:
    for target, allowed in (
        ("/health", {"GET", "HEAD"}),
        ("/v1/stream/x", {"GET", "HEAD", "POST", "PUT", "DELETE"}),
    ):
        plain = either_server.request("OPTIONS", target, absolute=True)
        assert (plain.status, plain.body) == (204, b"")
        assert allowed <= set(plain.headers["allow"].split(", "))
    whole = either_server.raw(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert whole is None or whole.status in {204, 400}  # some servers know no such target
    assert either_server.request("OPTIONS", "/nowhere", absolute=True).status == 404


FROM_1970 = """
import time
began, real = time.time(), time.time
time.time = lambda: real() - began + 86400.0
"""


def test_f11_a_clock_of_1970(run_server, server_command) -> None:
    """Cursors count from nothing then, and still advance; what is stored does not depend on the clock."""
    program, *rest = server_command(None, sse_heartbeat=15.0, long_poll_timeout=0.2)[1:]
    assert program == "-c"
    server = run_server([sys.executable, "-c", FROM_1970 + rest[0], *rest[1:]]).wait_until_ready()
    server.create("s")
    server.append("s", b"abc")
    cursor = ""
    for query in ("offset=-1", "offset=now"):
        for _ in range(3):
            echoed = f"&cursor={cursor}" if cursor else ""
            answer = server.request("GET", f"s?{query}&live=long-poll{echoed}")
            assert answer.headers["stream-cursor"].isdigit()
            assert not cursor or int(answer.headers["stream-cursor"]) > int(cursor)
            cursor = answer.headers["stream-cursor"]
    server.request("POST", "s", stream_closed="true")
    assert server.read_all("s") == b"abc"
