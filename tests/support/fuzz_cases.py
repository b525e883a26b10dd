"""Requests of a seed: each comes from the seed and its number, and from what the server gave out before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from fuzz_values import (
    Header,
    Learned,
    body,
    content_type,
    header_value,
    noise_headers,
    preflight_headers,
    target,
)

__all__ = ["Case", "Sent", "make_case"]

METHODS = (
    (b"POST",) * 40 + (b"GET",) * 30 + (b"PUT",) * 16 + (b"HEAD",) * 5 + (b"DELETE",) * 3 + (b"OPTIONS",) * 3
)
ODD_METHODS = (b"PATCH", b"TRACE", b"get", b"BREW", b"X" * 60, b"PROPFIND", b"M-SEARCH", b"QUERY")
MAY_READ = (
    b"If-None-Match",
    b"Range",
    b"Last-Event-ID",
    b"If-Match",
    b"Origin",
    b"Accept",
    b"Stream-Max-Bytes",
)
MAY_WRITE = (b"Stream-Closed", b"Stream-Seq", b"Origin", b"Stream-TTL")
MAY_CREATE = (b"Stream-Closed", b"Stream-TTL", b"Stream-Expires-At", b"Origin")
FORK = (b"Stream-Forked-From", b"Stream-Fork-Offset", b"Stream-Fork-Sub-Offset")
PRODUCER = (b"Producer-Id", b"Producer-Epoch", b"Producer-Seq")
HOSTS = (b"localhost:1", b"127.0.0.1:65535", b"[::1]", b"foreign.example", b"other", b"", b"a" * 300, b"\xff")

# fmt: off
GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60),  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
    b"GET /v1/stream/fuzz/0\r\n\r\n",  # HTTP/0.9
    b"GET\r\n\r\n", b"\r\n\r\n\r\n", b"\n\n", b"\x00" * 50, b"GET / HTTP/1.1\r\n", b"GET  / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", b"GET / HTTX/1.1\r\nHost: x\r\n\r\n", b"SSH-2.0-x\r\n", b"* * *\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
)
LENGTHS = (b"-1", b"+3", b"1, 1", b"0x3", b"3 3", b"9" * 30, b"", b"\xd9\xa1", b"1.0", b"4", b"2", b"1000")
CODINGS = (
    b"gzip", b"gzip, chunked", b"chunked, chunked", b"chunked, gzip", b"identity", b"xchunked", b"", b"\x0bchunked",
)
SIZES = (b"g", b"-1", b"", b"0x3", b"f" * 18, b"3 ", b" 3", b"3\n", b"4", b"2", b"03;" + b"x" * 30_000)
BAD_LINES = (
    b"no colon", b": no name", b"sp ace: x", b"x: a\x00b", b" folded", b"x : y", b"x:\ra", b"\x80: x", b"x: \x01",
    b"X: y\r\n z",
)
VERSIONS = (b" HTTP/1.0", b" HTTP/0.9", b" HTTP/2", b" http/1.1", b"", b" HTTP/1.1 x")
BAD_HOSTS = (b"Host: a\r\nHost: ", b"X-Host: ", b"Host: \xff", b"Host: a/b@c:")
# fmt: on


@dataclass(frozen=True)
class Sent:
    """One request. ``odd``: something before the application may refuse it; ``large``: its body is over the limit."""

    method: str
    content: bytes
    odd: bool
    large: bool


@dataclass(frozen=True)
class Case:
    """What goes over one connection: ``parts`` as they are sent, and how it ends.

    ``requests`` is empty where what is sent is not HTTP as it should be: no answer is owed to it, but an end is.
    ``ending``: keep (the connection stays, for the answers), half-close (nothing more comes, answers may), reset, or
    stall (the connection stays, and the server has to end it).
    """

    parts: list[bytes]
    requests: list[Sent] = field(default_factory=list)
    ending: str = "keep"

    def __str__(self) -> str:
        sent = b"".join(self.parts)
        shown = repr(sent) if len(sent) < 4000 else f"{sent[:3000]!r} … {sent[-500:]!r} ({len(sent)} bytes)"
        return f"{len(self.parts)} parts, then {self.ending}: {shown}"


def make_case(seed: int, number: int, learned: Learned, limit: int) -> Case:
    """Return the case of a number; ``limit`` is the server's for bodies."""
    chance = Random(f"{seed}/{number}")
    kind = chance.random()
    if kind < 0.03:
        return Case(_cuts(chance, chance.choice(GARBAGE)), ending="half-close")
    if kind < 0.12:
        whole = _request(chance, learned, limit).content
        ending = chance.choice(("half-close", "half-close", "half-close", "reset", "reset", "stall"))
        return Case(_cuts(chance, chance.choice(BREAKS)(chance, whole)), ending=ending)
    requests = [_request(chance, learned, limit) for _ in range(1 if kind < 0.85 else chance.randrange(2, 6))]
    if any(one.odd for one in requests):  # some parsers read ahead, and refuse what came before it too
        requests = [replace(one, odd=True) for one in requests]
    ending = "reset" if chance.random() < 0.04 else "half-close" if chance.random() < 0.05 else "keep"
    return Case(_cuts(chance, b"".join(one.content for one in requests)), requests, ending)


def _cuts(chance: Random, content: bytes) -> list[bytes]:
    """Return it whole most of the time, or in pieces."""
    kind = chance.random()
    if kind < 0.75 or len(content) < 2:
        return [content]
    if kind < 0.8 and len(content) < 400:
        return [content[at : at + 1] for at in range(len(content))]
    places = sorted(chance.randrange(1, len(content)) for _ in range(chance.randrange(1, 5)))
    return [content[begin:end] for begin, end in zip([0, *places], [*places, len(content)], strict=True)]


def _request(chance: Random, learned: Learned, limit: int) -> Sent:
    """Return one request that is HTTP as it should be."""
    method = chance.choice(ODD_METHODS if chance.random() < 0.02 else METHODS)
    where, odd = target(chance, learned)
    noise, more = noise_headers(chance)
    headers = [*noise, *_headers(chance, method, where, learned)]
    content, payload = b"", b""
    if method == b"POST" or (method == b"PUT" and chance.random() < 0.4) or chance.random() < 0.02:
        content = payload = body(chance, limit)
    if (content and chance.random() < 0.15) or chance.random() < 0.01:
        trailer = chance.choice((b"", b"", b"", b"X-Trailer: 1\r\n", b"Content-Length: 5\r\n"))
        odd = odd or b"Length" in trailer
        headers.append((b"Transfer-Encoding", b"chunked"))
        content = _chunked(chance, content) + b"0\r\n" + trailer + b"\r\n"
    elif content or method in (b"POST", b"PUT") or chance.random() < 0.05:
        headers.append((b"Content-Length", b"%d" % len(content)))
    chance.shuffle(headers)
    host = b"127.0.0.1" if chance.random() < 0.95 else chance.choice(HOSTS)
    lines = [method + b" " + where + b" HTTP/1.1", b"Host: " + host]
    lines += [_spelled(chance, name) + value for name, value in headers]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    ill = odd or more or method in ODD_METHODS or host in (b"", b"\xff")
    return Sent(method.decode(), head + content, ill, len(payload) > limit)


def _spelled(chance: Random, name: bytes) -> bytes:
    return chance.choice((name, name, name.lower(), name.upper())) + chance.choice(
        (b": ", b": ", b":", b":  \t")
    )


def _headers(chance: Random, method: bytes, where: bytes, learned: Learned) -> list[Header]:
    """Return headers of the protocol, mostly those that belong to the method."""
    headers = preflight_headers(chance) if method == b"OPTIONS" and chance.random() < 0.8 else []
    if chance.random() < (0.95 if method in (b"POST", b"PUT") else 0.03):
        path = where.split(b"?")[0].removeprefix(b"/v1/stream/")
        headers.append((b"Content-Type", content_type(chance, path)))
    optional = {b"POST": MAY_WRITE, b"PUT": MAY_CREATE}.get(method, MAY_READ)
    names = [name for name in optional if chance.random() < 0.06]
    if method == b"POST" and chance.random() < 0.3:
        names += [name for name in PRODUCER if chance.random() < 0.95]
    if method == b"PUT" and chance.random() < 0.3:
        names += [name for name, often in zip(FORK, (1.0, 0.5, 0.3), strict=True) if chance.random() < often]
    if chance.random() < 0.02:
        names.append(chance.choice((*PRODUCER, *FORK, *MAY_WRITE, *MAY_READ)))
    headers += [(name, header_value(chance, name, learned)) for name in names]
    if headers and chance.random() < 0.04:  # one of them twice, the same or another
        name, value = chance.choice(headers)
        headers.append((name, chance.choice((value, header_value(chance, name, learned)))))
    return headers


def _chunked(chance: Random, content: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < len(content):
        size = chance.choice((1, 3, 100, 70_000)) if len(parts) < 100 else len(content)
        piece = content[at : at + size]
        extension = chance.choice((b"", b"", b"", b";a=b", b';x="y z"', b";" + b"e" * 200))
        parts.append((b"%x" if chance.random() < 0.5 else b"%04X") % len(piece) + extension)
        parts.append(piece)
        at += size
    return b"".join(part + b"\r\n" for part in parts)


# -- what is not HTTP as it should be: each takes a request that is


def _cut_off(chance: Random, whole: bytes) -> bytes:
    return whole[: chance.randrange(1, len(whole))]


def _odd_length(chance: Random, whole: bytes) -> bytes:
    return (
        b"POST /v1/stream/fuzz/1 HTTP/1.1\r\nHost: x\r\nContent-Length: "
        + chance.choice(LENGTHS)
        + b"\r\n\r\nabc"
    )


def _odd_coding(chance: Random, whole: bytes) -> bytes:
    head = b"POST /v1/stream/fuzz/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
    return head + chance.choice(CODINGS) + b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


def _odd_size(chance: Random, whole: bytes) -> bytes:
    head = b"POST /v1/stream/fuzz/1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + chance.choice(SIZES) + b"\r\nabc\r\n0\r\n\r\n"


def _two_lengths(chance: Random, whole: bytes) -> bytes:
    return whole.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 1)


def _length_and_coding(chance: Random, whole: bytes) -> bytes:
    framing = b"\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    return whole.replace(b"\r\n\r\n", framing, 1)


def _bad_line(chance: Random, whole: bytes) -> bytes:
    return whole.replace(b"\r\n", b"\r\n" + chance.choice(BAD_LINES) + b"\r\n", 1)


def _other_version(chance: Random, whole: bytes) -> bytes:
    return whole.replace(b" HTTP/1.1", chance.choice(VERSIONS), 1)


def _bad_host(chance: Random, whole: bytes) -> bytes:
    return whole.replace(b"Host: ", chance.choice(BAD_HOSTS), 1)


def _bare_newlines(chance: Random, whole: bytes) -> bytes:
    return whole.replace(b"\r\n", b"\n")


def _noise_inside(chance: Random, whole: bytes) -> bytes:
    place = chance.randrange(len(whole))
    return whole[:place] + chance.randbytes(chance.randrange(1, 5)) + whole[place:]


BREAKS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _cut_off,
    _cut_off,
    _cut_off,
    _odd_length,
    _odd_coding,
    _odd_size,
    _two_lengths,
    _length_and_coding,
    _bad_line,
    _other_version,
    _bad_host,
    _bare_newlines,
    _noise_inside,
)
