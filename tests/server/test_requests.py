"""Malformed requests of every kind: 4xx with one sentence, never 5xx, and nothing gets where it does not belong."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import random
import re
import time

import pytest

BYTES = "application/octet-stream"
TAIL = "0000000000000000_0000000000000003"


def send(server, method: str, target: str, *lines: str | bytes, body: bytes = b"", host: str = "Host: test"):  # noqa: ANN201
    """Send a request as it is, without a client that would correct it."""
    parts = [f"{method} {target} HTTP/1.1".encode("latin-1"), host.encode(), b"Connection: close"]
    parts += [line if isinstance(line, bytes) else line.encode("latin-1") for line in lines]
    parts.append(b"Content-Length: %d" % len(body))
    return server.raw(b"\r\n".join(parts) + b"\r\n\r\n" + body)


def refuses(answer, *statuses: int) -> None:
    """A refusal has a small body with a code and one sentence."""
    assert answer is not None
    assert answer.status in (statuses or (400,)), answer
    if "x-content-type-options" in answer.headers and answer.body:
        error = answer.json["error"]
        assert re.fullmatch(r"[A-Z_]+", error["code"])
        assert "\n" not in error["message"]
        assert len(error["message"]) < 400


@pytest.fixture
def filled(either_server, stream: str) -> str:
    either_server.create(stream)
    either_server.append(stream, b"abc")
    return stream


# -- headers


BAD_HEADERS = [
    ("PUT", "Stream-TTL: -1"),
    ("PUT", "Stream-TTL: +1"),
    ("PUT", "Stream-TTL: 1.5"),
    ("PUT", "Stream-TTL: 01"),
    ("PUT", "Stream-TTL: 1e3"),
    ("PUT", "Stream-TTL: ١٢".encode()),
    ("PUT", "Stream-TTL: "),
    ("PUT", "Stream-TTL: abc"),
    ("PUT", "Stream-TTL: " + "9" * 5000),
    ("PUT", "Stream-Expires-At: tomorrow"),
    ("PUT", "Stream-Expires-At: 2030-01-01"),
    ("PUT", "Stream-Expires-At: 2030-01-01T00:00:00"),
    ("PUT", "Stream-Expires-At: 2030-13-01T00:00:00Z"),
    ("PUT", "Stream-Expires-At: 99999-01-01T00:00:00Z"),
    ("PUT", "Stream-Expires-At: "),
    ("PUT", "Content-Type: text"),
    ("PUT", "Content-Type: text/"),
    ("PUT", "Content-Type: /plain"),
    ("PUT", "Content-Type: text/plain; charset"),
    ("PUT", "Content-Type: text/plain\tx"),
    ("PUT", "Content-Type: te xt/plain"),
    ("PUT", 'Content-Type: text/plain; a="'),
    ("PUT", "Content-Type: text/pläin".encode()),
    ("PUT", b"Content-Type: text/pl\xffin"),
    ("PUT", "Content-Type: a/" + "b" * 3000),
    ("PUT", "Content-Type: a/b" + "; " * 300 + "@"),
    ("PUT", "Content-Type: a/b" + ";" * 500 + "\t" * 500 + "@"),
    ("PUT", "Stream-Forked-From: "),
    ("PUT", "Stream-Forked-From: relative"),
    ("PUT", "Stream-Forked-From: /v1/stream/"),
    ("PUT", "Stream-Forked-From: /v1/stream/../x"),
    ("PUT", "Stream-Forked-From: /v1/stream/a%00b"),
    ("PUT", "Stream-Forked-From: /v1/stream/%ff"),
    ("PUT", "Stream-Forked-From: http://example.com/v1/stream/x"),
    ("PUT", "Stream-Fork-Offset: 0000000000000000_0000000000000000"),
    ("PUT", "Stream-Fork-Sub-Offset: 0"),
    ("POST", "Stream-Seq: " + "x" * 3000),
    ("POST", "Producer-Id: p"),
    ("POST", "Producer-Epoch: 1"),
    ("POST", "Producer-Seq: 1"),
]
BAD_NUMBERS = [
    "",
    "-1",
    "+1",
    "1.0",
    "1e2",
    "01",
    "x",
    "9007199254740992",
    "9" * 4000,
    "٣",
    "0x1",
    "1 2",
    "1,2",
]


@pytest.mark.parametrize(("method", "line"), BAD_HEADERS)
def test_malformed_headers(either_server, filled: str, method: str, line: str | bytes) -> None:
    target = f"/v1/stream/{filled}" + ("/new" if method == "PUT" else "")
    lines = (
        [line] if b"content-type" in bytes(str(line).lower(), "utf-8") else [line, f"Content-Type: {BYTES}"]
    )
    refuses(send(either_server, method, target, *lines, body=b"x"))
    assert either_server.request("GET", f"{filled}/new").status == 404
    assert either_server.read_all(filled) == b"abc"


@pytest.mark.parametrize("name", ["Producer-Epoch", "Producer-Seq", "Stream-Fork-Sub-Offset"])
@pytest.mark.parametrize("value", BAD_NUMBERS)
def test_malformed_numbers(either_server, filled: str, name: str, value: str) -> None:
    line = f"{name}: {value}".encode()
    if name == "Stream-Fork-Sub-Offset":
        origin = f"Stream-Forked-From: /v1/stream/{filled}"
        refuses(send(either_server, "PUT", f"/v1/stream/{filled}/new", origin, line))
        return
    others = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}
    del others[name]
    lines = [f"{key}: {other}" for key, other in others.items()]
    answer = send(
        either_server, "POST", f"/v1/stream/{filled}", *lines, line, f"Content-Type: {BYTES}", body=b"x"
    )
    refuses(answer)
    assert either_server.read_all(filled) == b"abc"


def test_an_empty_producer_id(either_server, filled: str) -> None:
    lines = ["Producer-Id: ", "Producer-Epoch: 0", "Producer-Seq: 0", f"Content-Type: {BYTES}"]
    refuses(send(either_server, "POST", f"/v1/stream/{filled}", *lines, body=b"x"))
    assert either_server.read_all(filled) == b"abc"


def test_a_content_type_of_blanks_costs_no_time(either_server, stream: str) -> None:
    started = time.monotonic()
    for gap in ("; ", ";  ", " ;\t", ";a=b ; "):
        refuses(send(either_server, "PUT", f"/v1/stream/{stream}", "Content-Type: a/b" + gap * 140 + "@"))
    assert time.monotonic() - started < 10


def test_headers_beyond_ascii_are_kept_or_refused(either_server, filled: str) -> None:
    for value in ("é".encode(), "日本".encode(), b"\xff\xfe", b"\xe9", b"a\x80b"):
        lines = [b"Producer-Id: " + value, "Producer-Epoch: 0", "Producer-Seq: 0", f"Content-Type: {BYTES}"]
        answer = send(either_server, "POST", f"/v1/stream/{filled}", *lines, body=b"x")
        assert answer.status in {200, 400}, (value, answer)
        again = send(either_server, "POST", f"/v1/stream/{filled}", *lines, body=b"x")
        assert again.status == (204 if answer.status == 200 else 400)
        answer = send(
            either_server,
            "POST",
            f"/v1/stream/{filled}",
            b"Stream-Seq: " + value,
            f"Content-Type: {BYTES}",
            body=b"x",
        )
        assert answer.status in {204, 400, 409}, (value, answer)
        answer = send(either_server, "GET", f"/v1/stream/{filled}", b"If-None-Match: " + value)
        assert answer.status in {200, 400}, (value, answer)


def test_too_many_and_too_large_headers(either_server, filled: str) -> None:
    many = [f"X-Header-{number}: x" for number in range(3000)]
    answer = send(either_server, "GET", f"/v1/stream/{filled}", *many)
    assert answer is None or answer.status in {200, 400, 431}
    answer = send(either_server, "GET", f"/v1/stream/{filled}", "X-Large: " + "x" * (2 << 20))
    assert answer is None or answer.status in {200, 400, 431}
    assert either_server.read_all(filled) == b"abc"


def test_injection_through_what_is_echoed(either_server, stream: str) -> None:
    """Content type, path, host and expiry come back in headers: nothing in them may begin a new line."""
    for line in (
        "Content-Type: text/plain\rX-Injected: 1",
        'Content-Type: text/plain; a="\rX-Injected: 1"',
        b'Content-Type: text/plain; a="\x00"',
        b'Content-Type: text/plain; a="\\\x0b"',
        "Stream-Expires-At: 2090-01-01T00:00:00Z\rX-Injected: 1",
    ):
        answer = send(either_server, "PUT", f"/v1/stream/{stream}", line)
        assert answer is None or answer.status == 400, (line, answer)
    for path in ("a%0d%0aX-Injected:%201", "a%0aX-Injected:1", "a%0dX-Injected:1", "a%C2%85b%E2%80%A8c"):
        answer = send(either_server, "PUT", f"/v1/stream/{stream}/{path}", f"Content-Type: {BYTES}")
        assert "x-injected" not in answer.headers
        if answer.status == 201:
            assert answer.headers["location"].isascii()
        read = send(either_server, "GET", f"/v1/stream/{stream}/{path}")
        assert "x-injected" not in read.headers


def test_duplicate_headers_are_no_way_around(either_server, filled: str) -> None:
    answer = send(
        either_server,
        "POST",
        f"/v1/stream/{filled}",
        f"Content-Type: {BYTES}",
        "Content-Length: 99",
        body=b"x",
    )
    assert answer is None or answer.status == 400
    both = f"POST /v1/stream/{filled} HTTP/1.1\r\nHost: x\r\nContent-Type: {BYTES}\r\nConnection: close\r\n"
    smuggled = b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n"
    answer = either_server.raw(both.encode() + smuggled)
    assert answer is None or answer.status == 400
    assert either_server.read_all(filled) == b"abc"


def test_what_is_wrong_is_shown_in_part_only(either_server, filled: str) -> None:
    target, long = f"/v1/stream/{filled}", "x" * 1000
    kept = [f"Content-Type: {BYTES}", f"Stream-Seq: {long}"]
    producer = [f"Producer-Id: {long}", "Producer-Seq: 0"]
    assert send(either_server, "POST", target, *kept, body=b"x").status == 204
    assert (
        send(either_server, "POST", target, kept[0], *producer, "Producer-Epoch: 1", body=b"x").status == 200
    )
    refuses(send(either_server, "POST", target, *kept, body=b"x"), 409)
    refuses(send(either_server, "POST", target, f"Content-Type: text/{long}", body=b"x"), 409)
    refuses(send(either_server, "POST", target, kept[0], *producer, "Producer-Epoch: 0", body=b"x"), 403)


# -- paths


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a%00b",
        "%00",
        "a%01",
        "a%0a",
        "a%0d",
        "a%1f",
        "a%7f",
        "%FF",
        "a%C0%AFb",
        "%ED%A0%80",
        "..",
        "../x",
        "a/../b",
        "a/..",
        "./a",
        "a/./b",
        "%2e%2e/x",
        "a/%2E%2E/%2e%2e/b",
        "..%2f..%2fetc",
        "x" * 1025,
        "%C3%A9" * 1025,
    ],
)
def test_paths_that_no_stream_has(either_server, path: str) -> None:
    for method in ("PUT", "POST", "GET", "HEAD", "DELETE"):
        lines = [] if method in {"GET", "HEAD", "DELETE"} else [f"Content-Type: {BYTES}"]
        answer = send(either_server, method, f"/v1/stream/{path}", *lines, body=b"x" if lines else b"")
        assert answer is None or answer.status in {400, 404, 414}, (method, answer)
        assert path or answer.status in {400, 404}


@pytest.mark.parametrize(
    "path",
    ["a", "a/b/c", "%C3%A9", "é", "a%20b", "a+b", "a%2Fb/c", "%25", "a//b", "...", "..a", "~", "x" * 1024],
)
def test_paths_that_streams_have(either_server, stream: str, path: str) -> None:
    path = path if len(path) == 1024 else f"{stream}/{path}"
    target = f"/v1/stream/{path}".encode().decode("latin-1")
    created = send(either_server, "PUT", target, f"Content-Type: {BYTES}", body=path.encode())
    if not path.isascii():
        assert created is None or created.status in {201, 400}
        return
    assert created.status == 201
    assert created.headers["location"].startswith("http://test/v1/stream/")
    # The address that it gives is the stream's.
    again = send(either_server, "GET", created.headers["location"].removeprefix("http://test"))
    assert (again.status, again.body) == (200, path.encode())


def test_long_paths(either_server) -> None:
    for size in (5000, 70_000, 500_000):
        answer = send(either_server, "GET", "/v1/stream/" + "x" * size)
        assert answer is None or answer.status in {400, 414, 431}, size
        answer = send(either_server, "GET", "/v1/stream/x?offset=" + "0" * size)
        assert answer is None or answer.status in {400, 404, 414, 431}, size


def test_elsewhere(either_server) -> None:
    for target in (
        "/v1",
        "/v1/stream",
        "/v2/stream/x",
        "/v1/streams/x",
        "//v1/stream/x",
        "/etc/passwd",
        "/v1/stream/__ds/x",
    ):
        refuses(send(either_server, "GET", target), 404)
        refuses(send(either_server, "PUT", target), 404, 405)


# -- queries


@pytest.mark.parametrize(
    "query",
    [
        "offset=",
        "offset=0",
        "offset=-2",
        "offset=NOW",
        "offset=abc",
        "offset=0000000000000000_000000000000000",
        "offset=0000000000000000_00000000000000000",
        "offset=0000000000000000_00000000000000x0",
        "offset=0000000000000001_0000000000000000",
        "offset=0000000000000000_%EF%BC%90000000000000000",
        "offset=0000000000000000_9999999999999999",
        "offset=0000000000000000_0000000000000004",
        "offset=%00",
        "offset=%FF",
        "offset=" + "9" * 300,
        "offset=-1&offset=-1",
        "offset=-1&offset=now",
        "offset=a,b",
        "offset=-1&live=",
        "offset=-1&live=true",
        "offset=-1&live=SSE",
        "offset=-1&live=sse&live=long-poll",
        "live=sse",
        "live=long-poll",
        "cursor=1&cursor=2&offset=now&live=long-poll",
        "&".join(f"p{number}=x" for number in range(200)),
    ],
)
def test_malformed_queries(either_server, filled: str, query: str) -> None:
    refuses(send(either_server, "GET", f"/v1/stream/{filled}?{query}"))


@pytest.mark.parametrize("cursor", ["", "abc", "-1", "9" * 400, "%00", "1e5", "٣"])
def test_any_cursor_is_answered(either_server, filled: str, cursor: str) -> None:
    target = f"/v1/stream/{filled}?cursor={cursor}&live=long-poll&offset=-1".encode().decode("latin-1")
    answer = send(either_server, "GET", target)
    if answer is not None and answer.status != 400:
        assert answer.status == 200
        assert answer.headers["stream-cursor"].isdigit()


def test_unknown_parameters_do_not_matter(either_server, filled: str) -> None:
    assert send(either_server, "GET", f"/v1/stream/{filled}?x=1&x=2&offset=-1&y").body == b"abc"
    assert send(either_server, "HEAD", f"/v1/stream/{filled}?offset=nonsense").status in {200, 400}


# -- methods


def test_head_on_everything(either_server, filled: str) -> None:
    for target, status in (
        (f"/v1/stream/{filled}", 200),
        (f"/v1/stream/{filled}?offset=-1", 200),
        (f"/v1/stream/{filled}/none", 404),
        ("/v1/stream/a%00", 400),
        ("/health", 200),
        ("/nowhere", 404),
    ):
        answer = send(either_server, "HEAD", target)
        assert (answer.status, answer.body) == (status, b""), target
    head = send(either_server, "HEAD", f"/v1/stream/{filled}")
    assert head.headers["stream-next-offset"] == TAIL
    assert head.headers["content-type"] == BYTES
    assert head.headers["cache-control"] == "no-store"
    assert head.headers["etag"]


def test_other_methods(either_server, filled: str) -> None:
    for method in ("PATCH", "TRACE", "PROPFIND", "FOO"):
        answer = send(either_server, method, f"/v1/stream/{filled}")
        if method == "FOO" and answer.status == 400:
            continue  # some servers know all methods there are
        refuses(answer, 405)
        assert {"GET", "HEAD", "POST", "PUT", "DELETE"} <= set(answer.headers["allow"].split(", "))
    refuses(send(either_server, "POST", "/health"), 405)
    assert send(either_server, "DELETE", "/health").headers["allow"] == "GET, HEAD"
    answer = send(either_server, "CONNECT", f"/v1/stream/{filled}")
    assert answer is None or 400 <= answer.status < 500


def test_preflight(either_server, filled: str) -> None:
    lines = ["Origin: https://example.com", "Access-Control-Request-Method: PUT"]
    # Under another name than one of this machine: pages of any origin may read and write there.
    answer = send(either_server, "OPTIONS", f"/v1/stream/{filled}", *lines, host="Host: 192.0.2.1")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
        assert method in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"]
    for name in (
        "content-type",
        "if-none-match",
        "producer-id",
        "stream-closed",
        "stream-seq",
        "stream-fork-sub-offset",
    ):
        assert name in allowed


def test_every_answer_has_the_browser_headers(either_server, filled: str) -> None:
    for answer in (
        send(either_server, "GET", f"/v1/stream/{filled}"),
        send(either_server, "GET", f"/v1/stream/{filled}/none"),
        send(either_server, "GET", f"/v1/stream/{filled}?offset=x"),
        send(either_server, "PATCH", f"/v1/stream/{filled}"),
        send(either_server, "DELETE", f"/v1/stream/{filled}"),
        send(either_server, "GET", "/health"),
        send(either_server, "GET", "/nowhere"),
    ):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "stream-next-offset" in answer.headers["access-control-expose-headers"]


def test_health(either_server) -> None:
    answer = send(either_server, "GET", "/health")
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    assert answer.headers["cache-control"] == "no-store"


# -- reads


def test_etags(either_server, filled: str) -> None:
    first = either_server.request("GET", filled)
    tag = first.headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*", f"{tag},"):
        again = either_server.request("GET", filled, if_none_match=known)
        assert (again.status, again.body) == (304, b""), known
        assert again.headers["etag"] == tag
        assert again.headers["stream-next-offset"] == TAIL
    for unknown in ('"other"', "", tag[:-1], "W/"):
        assert either_server.request("GET", filled, if_none_match=unknown).status == 200
    either_server.append(filled, b"d")
    longer = either_server.request("GET", filled, if_none_match=tag)
    assert (longer.status, longer.body) == (200, b"abcd")
    either_server.request("POST", filled, stream_closed="true")
    closed = either_server.request("GET", filled, if_none_match=longer.headers["etag"])
    assert closed.status == 200
    assert closed.headers["etag"] != longer.headers["etag"]
    either_server.request("DELETE", filled)
    either_server.create(filled)
    either_server.append(filled, b"abcd")
    assert either_server.request("GET", filled, if_none_match=longer.headers["etag"]).status == 200


def test_offset_now(either_server, filled: str) -> None:
    answer = either_server.request("GET", f"{filled}?offset=now")
    assert (answer.status, answer.body, answer.next_offset) == (200, b"", TAIL)
    assert answer.headers["stream-up-to-date"] == "true"
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers


# -- bytes


def test_not_http_at_all(either_server) -> None:
    for content in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        answer = either_server.raw(content, half_close=True)
        assert answer is None or 400 <= answer.status < 500 or answer.status == 505, answer
    assert send(either_server, "GET", "/health").status == 200


NAMES = [
    "Content-Type", "Stream-Seq", "Stream-TTL", "Stream-Expires-At", "Stream-Closed", "Stream-Forked-From",
    "Stream-Fork-Offset", "Stream-Fork-Sub-Offset", "Producer-Id", "Producer-Epoch", "Producer-Seq", "If-None-Match",
    "Host", "Accept", "Transfer-Encoding", "Content-Length", "Expect", "Upgrade", "Cookie", "X-Anything",
]  # fmt: skip
VALUES = [
    b"", b"0", b"1", b"-1", b"true", b"9007199254740991", b"text/plain", b"application/json", b"chunked", b"now",
    TAIL.encode(), b"/v1/stream/fuzz", b'"x"', b"websocket", b"100-continue", b"2030-01-01T00:00:00Z", b"[]", b"{",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_are_never_an_error_of_the_server(either_server, seed: int) -> None:
    chance = random.Random(seed)
    either_server.request("PUT", "fuzz", content_type="application/json")
    statuses: dict[int, int] = {}
    for _ in range(150):
        method = chance.choice(["GET", "PUT", "POST", "POST", "HEAD", "DELETE", "OPTIONS", "PATCH"])
        path = chance.choice(["fuzz", "fuzz", f"fuzz/{chance.randrange(5)}", "%00", "é", ""])
        query = chance.choice(
            ["", "?offset=-1", "?offset=now", f"?offset={TAIL}", "?live=long-poll&offset=-1", "?%ff=%zz&&=="]
        )
        lines = []
        for name in chance.sample(NAMES, chance.randrange(4)):
            value = chance.choice(VALUES)
            if chance.random() < 0.3:
                value = bytes(
                    chance.choice(range(0x20, 0x7F if chance.random() < 0.9 else 0x100))
                    for _ in range(chance.randrange(1, 30))
                )
            lines.append(name.encode() + b": " + value.replace(b"\n", b" "))
        body = chance.choice([b"", b"[1,2]", b"{", b"\xff\x00", b"1e400", b"[" * 2000, b'"\xed\xa0\x80"'])
        request = [
            f"{method} /v1/stream/{path}{query} HTTP/1.1".encode(),
            b"Host: fuzz",
            b"Connection: close",
            *lines,
        ]
        odd = any(
            line.lower().startswith((b"content-length", b"transfer-encoding", b"expect")) for line in lines
        )
        if not odd:
            request.append(b"Content-Length: %d" % len(body))
        answer = either_server.raw(b"\r\n".join(request) + b"\r\n\r\n" + body, half_close=odd)
        status = 0 if answer is None else answer.status
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500 or status == 505, (request, answer)
    assert len(statuses) > 3, statuses
    assert send(either_server, "GET", "/health").status == 200
