"""What web pages may do with a server: by default on this machine, and as an operator says (section 7)."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import pytest

BYTES = "application/octet-stream"
FOREIGN = (
    "https://evil.example",
    "http://evil.example:8000",
    "null",
    "https://localhost.evil.example",
    "https://127.0.0.1.evil.example",
    "http://192.168.1.7:3000",
    "chrome-extension://localhost",
    "file://",
)
LOCAL = (
    "http://localhost:3000",
    "https://localhost",
    "http://app.localhost:5173",
    "http://127.0.0.1:8080",
    "http://127.8.9.1",
    "http://[::1]:3000",
)


def ask(server, method: str, stream: str, *lines: str, host: str | None = None, body: bytes = b""):  # noqa: ANN201
    named = f"127.0.0.1:{server.port}" if host is None else host
    head = [f"{method} /v1/stream/{stream} HTTP/1.1", f"Host: {named}", "Connection: close", *lines]
    if body:
        head += [f"Content-Type: {BYTES}", f"Content-Length: {len(body)}"]
    return server.raw("\r\n".join(head).encode() + b"\r\n\r\n" + body)


def names(answer, header: str) -> set[str]:
    return {name.strip() for name in answer.headers.get(header, "").lower().split(",")}


@pytest.fixture
def filled(either_server, stream: str) -> str:
    either_server.create(stream)
    either_server.append(stream, b"abc")
    return stream


# -- writes


@pytest.mark.parametrize("origin", FOREIGN)
def test_g12_a_foreign_page_writes_nothing_here(either_server, filled: str, origin: str) -> None:
    """A POST of text needs no preflight: it has to be refused when it comes."""
    for method, target, body in (
        ("POST", filled, b"x"),
        ("PUT", f"{filled}/new", b"x"),
        ("PUT", f"{filled}/new", b""),
        ("DELETE", filled, b""),
    ):
        for host in (
            None,
            "localhost",
            f"LOCALHOST:{either_server.port}",
            "[::1]",
            "0.0.0.0",
            "a.localhost",
        ):
            answer = ask(either_server, method, target, f"Origin: {origin}", host=host, body=body)
            assert answer.status == 403, (method, host)
            assert answer.json["error"]["code"] == "ORIGIN_NOT_ALLOWED"
            assert "--cors-origins" in answer.json["error"]["message"]
            assert "access-control-allow-origin" not in answer.headers
            assert "origin" in names(answer, "vary")
    closing = ask(either_server, "POST", filled, f"Origin: {origin}", "Stream-Closed: true")
    assert closing.status == 403
    assert either_server.request("HEAD", f"{filled}/new").status == 404
    assert either_server.append(filled, b"d").status == 204
    assert either_server.read_all(filled) == b"abcd"


def test_g12_other_names_of_this_machine(shared_server, stream: str) -> None:
    """As of /etc/hosts: what listens on a loopback address is asked under no other names without a dot."""
    shared_server.create(stream)
    for host in ("vm", "localhost6", "LOOPBACK."):
        for method in ("POST", "PUT", "DELETE"):
            answer = ask(shared_server, method, stream, "Origin: https://evil.example", host=host, body=b"x")
            assert answer.status == 403, (method, host)
        read = ask(shared_server, "GET", stream, "Origin: https://evil.example", host=host)
        assert "access-control-allow-origin" not in read.headers
        assert ask(shared_server, "POST", stream, host=host, body=b"x").status == 204
    assert shared_server.read_all(stream) == b"xxx"


@pytest.mark.parametrize("origin", FOREIGN)
def test_g12_a_foreign_page_reads_nothing_here(either_server, filled: str, origin: str) -> None:
    for query in ("", "?offset=-1", "?offset=now", "?offset=-1&live=long-poll"):
        answer = ask(either_server, "GET", f"{filled}{query}", f"Origin: {origin}")
        assert answer.status == 200, "whether a page may see it is the browser's to decide"
        assert "access-control-allow-origin" not in answer.headers
        assert "origin" in names(answer, "vary"), "what was kept of it must not be given to others"
    assert "origin" in names(ask(either_server, "GET", filled), "vary")
    preflight = ask(
        either_server, "OPTIONS", filled, f"Origin: {origin}", "Access-Control-Request-Method: PUT"
    )
    assert preflight.status == 204
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("origin", LOCAL)
def test_g12_a_page_of_this_machine_reads_and_writes(either_server, filled: str, origin: str) -> None:
    said = f"Origin: {origin}"
    for method, target, body, status in (
        ("PUT", f"{filled}/new", b"x", 201),
        ("POST", f"{filled}/new", b"y", 204),
        ("GET", f"{filled}/new", b"", 200),
        ("HEAD", f"{filled}/new", b"", 200),
        ("GET", f"{filled}/none", b"", 404),
        ("DELETE", f"{filled}/new", b"", 204),
    ):
        answer = ask(either_server, method, target, said, body=body)
        assert answer.status == status, (method, target)
        assert answer.headers["access-control-allow-origin"] == origin
        assert "access-control-allow-credentials" not in answer.headers
        assert "origin" in names(answer, "vary")
        assert "stream-next-offset" in answer.headers["access-control-expose-headers"]


def test_g12_programs_are_not_concerned(either_server, filled: str) -> None:
    assert ask(either_server, "POST", filled, body=b"d").status == 204
    assert ask(either_server, "POST", filled, "Sec-Fetch-Mode: cors", body=b"e").status == 204  # Node
    assert either_server.read_all(filled) == b"abcde"


def test_g12_what_a_browser_says_of_a_page(either_server, filled: str) -> None:
    """Where a proxy hides the host, ``Sec-Fetch-Site`` tells one's own page, and a foreign one without an origin."""
    own = ("Origin: https://app.example.com", "Sec-Fetch-Site: same-origin")
    assert ask(either_server, "POST", filled, *own, body=b"d").status == 204
    for site in ("cross-site", "same-site"):
        said = ("Origin: https://app.example.com", f"Sec-Fetch-Site: {site}")
        assert ask(either_server, "POST", filled, *said, body=b"x").status == 403
    assert ask(either_server, "POST", filled, "Sec-Fetch-Site: cross-site", body=b"x").status == 403
    assert either_server.read_all(filled) == b"abcd"


def test_g12_the_same_origin(start_server) -> None:
    server = start_server(
        None, public_url="https://app.example.com/streams", cors_origins=["https://x.example"]
    )
    for origin in (f"http://127.0.0.1:{server.port}", "https://app.example.com"):
        assert ask(server, "PUT", "s", f"Origin: {origin}").status in {200, 201}, origin
    for origin in ("https://app.example.com:444", "https://other.example.com"):
        assert ask(server, "PUT", "s", f"Origin: {origin}").status == 403, origin


# -- hosts


REBOUND = (
    "evil.example",
    "evil.example:4437",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.local",
    ":x",
)


@pytest.mark.parametrize("host", REBOUND)
def test_g12_a_name_that_was_pointed_at_this_machine(shared_server, stream: str, host: str) -> None:
    """DNS rebinding: the page is of the origin that it asks, so that only the host tells."""
    shared_server.create(stream)
    for method, target in (("GET", stream), ("HEAD", stream), ("PUT", f"{stream}/new"), ("DELETE", stream)):
        answer = ask(shared_server, method, target, host=host)
        assert answer.status == 403, method
        assert "access-control-allow-origin" not in answer.headers
        if method != "HEAD":
            assert answer.json["error"]["code"] == "HOST_NOT_ALLOWED"
            assert "--allowed-hosts" in answer.json["error"]["message"]
    same = (f"Origin: http://{host}", "Sec-Fetch-Site: same-origin")
    assert ask(shared_server, "POST", stream, *same, host=host, body=b"x").status == 403
    assert shared_server.read_all(stream) == b""


def test_g12_hosts_that_are_this_machine(shared_server, stream: str) -> None:
    shared_server.create(stream)
    for host in (
        "localhost",
        "LocalHost:1",
        "localhost.",
        "a.localhost",
        "127.0.0.1",
        "[::1]:4437",
        "10.1.2.3",
        "box",
    ):
        assert ask(shared_server, "GET", stream, host=host).status == 200, host
    without = f"GET /v1/stream/{stream} HTTP/1.0\r\n\r\n".encode()
    assert shared_server.raw(without).status == 200


def test_g12_allowed_hosts(start_server) -> None:
    server = start_server(None, allowed_hosts=["streams.example.com", "*.example.org"])
    server.create("s")
    for host in (
        "streams.example.com",
        "Streams.Example.COM:443",
        "a.b.example.org",
        "127.0.0.1",
        "localhost",
    ):
        assert ask(server, "GET", "s", host=host).status == 200, host
    for host in ("example.com", "xstreams.example.com", "example.org", "example.org.evil.example", "box"):
        assert ask(server, "GET", "s", host=host).status == 403, host
    everything = start_server(None, allowed_hosts=["*"])
    assert ask(everything, "GET", "s", host="anything.example").status == 404


def test_g12_a_server_for_everybody_answers_to_every_name(run_server, server_command) -> None:
    python, _, program, settings = server_command(None, host="0.0.0.0", no_auth=True, sse_heartbeat=15.0)
    shown = program.replace("root, flush", 'root.replace("0.0.0.0", "127.0.0.1"), flush')
    server = run_server([python, "-c", shown, settings]).wait_until_ready()
    server.create("s")
    for host in ("streams.example.com", "box", "192.168.1.5:4437"):
        answer = ask(server, "POST", "s", "Origin: https://app.example.com", host=host, body=b"x")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*"), host
    # Its own machine's pages are as safe as ever.
    assert ask(server, "POST", "s", "Origin: https://evil.example", body=b"x").status == 403


def test_g12_an_application_under_its_public_name(start_server) -> None:
    """Mounted into somebody's application, whose host is what its server and its proxies make of it."""
    server = start_server(None, interface="asgi")
    server.create("s")
    said = ("Origin: https://elsewhere.example",)
    answer = ask(server, "POST", "s", *said, host="app.example.com", body=b"x")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*")
    limited = start_server(None, interface="asgi", allowed_hosts=["app.example.com"])
    assert ask(limited, "GET", "s", host="evil.example").status == 403
    assert ask(limited, "GET", "s", host="app.example.com").status == 404


# -- CORS as configured


@pytest.mark.parametrize("interface", ["rsgi", "asgi"])
def test_e10_origins_and_credentials_are_options(start_server, interface: str) -> None:
    listed = ["https://app.example.com", "https://*.example.org", "http://localhost:*"]
    server = start_server(None, interface=interface, cors_origins=listed, cors_credentials=True)
    server.create("s")
    for origin in ("https://app.example.com", "https://a.b.example.org", "http://localhost:3000"):
        for method in ("GET", "OPTIONS", "POST"):
            asked = ("Access-Control-Request-Method: POST",) if method == "OPTIONS" else ()
            body = b"x" if method == "POST" else b""
            answer = ask(server, method, "s", f"Origin: {origin}", *asked, body=body)
            assert answer.status in {200, 204}, (origin, method)
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert "origin" in names(answer, "vary")
    for origin in (
        "https://example.org",
        "https://app.example.com:444",
        "http://app.example.com",
        "null",
        "http://127.0.0.1",
    ):
        read = ask(server, "GET", "s", f"Origin: {origin}")
        assert "access-control-allow-origin" not in read.headers
        assert "access-control-allow-credentials" not in read.headers
        assert ask(server, "POST", "s", f"Origin: {origin}", body=b"x").status == 403


def test_e10_every_origin(start_server) -> None:
    server = start_server(None, cors_origins=["*"])
    server.create("s")
    for origin in FOREIGN:
        answer = ask(server, "POST", "s", f"Origin: {origin}", body=b"x")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (204, "*")
    nobody = start_server(None, cors_origins=[])
    assert ask(nobody, "PUT", "s", "Origin: http://localhost:3000").status == 403


def test_e10_a_preflight_allows_the_headers_that_are_asked_for(either_server, filled: str) -> None:
    def preflight(asked: str | None):  # noqa: ANN202
        lines = ["Origin: http://localhost:3000", "Access-Control-Request-Method: GET"]
        if asked is not None:
            lines.append(f"Access-Control-Request-Headers: {asked}")
        return ask(either_server, "OPTIONS", filled, *lines)

    for asked in ("x-custom", "X-Custom, traceparent,X-Request-Id", "authorization,last-event-id", "a" * 500):
        answer = preflight(asked)
        assert answer.status == 204
        wanted = {name.strip().lower() for name in asked.split(",")}
        assert wanted <= names(answer, "access-control-allow-headers")
        assert "producer-id" in names(answer, "access-control-allow-headers")
        assert {"origin", "access-control-request-headers"} <= names(answer, "vary")
        assert int(answer.headers["access-control-max-age"]) > 0
    for odd in (None, "", "a b", "<script>", "x" * 10_000, "a;b"):
        allowed = names(preflight(odd), "access-control-allow-headers")
        assert "stream-seq" in allowed
        assert "<script>" not in allowed
        assert "" not in allowed


def test_e10_settings_that_make_no_sense(start_server, run_server, server_command) -> None:
    for settings in (
        {"cors_credentials": True},
        {"cors_credentials": True, "cors_origins": ["*"]},
        {"cors_origins": ["example.com"]},
        {"cors_origins": ["https://example.com/path"]},
        {"allowed_hosts": ["https://example.com"]},
        {"allowed_hosts": ["example.com/x"]},
    ):
        server = run_server(server_command(None, **settings))
        assert not server.becomes_ready(), settings
        server.wait()
        assert next(iter(settings)).encode() in server.error_output, settings


@pytest.mark.parametrize(
    "line", [b"Access-Control-Request-Headers: x-\xff", b"Origin: http://\xff", b"Host: \xff"]
)
def test_e10_a_preflight_that_is_no_text_is_refused(either_server, filled: str, line: bytes) -> None:
    host = b"" if line.startswith(b"Host") else b"Host: localhost\r\n"
    head = f"OPTIONS /v1/stream/{filled} HTTP/1.1\r\nConnection: close\r\n".encode() + host + line
    answer = either_server.raw(head + b"\r\nAccess-Control-Request-Method: PUT\r\n\r\n")
    assert answer.status == 400, answer
