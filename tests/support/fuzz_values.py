"""What requests are made of: values as they should be, as they might be, and as nobody should send them."""

from __future__ import annotations

import json
from random import Random

__all__ = [
    "PATHS",
    "Header",
    "Learned",
    "body",
    "content_type",
    "header_value",
    "noise_headers",
    "preflight_headers",
    "stream_type",
    "target",
]

Header = tuple[bytes, bytes]

ROOT = b"/v1/stream/"
JSON = b"application/json"
CONTENT_TYPES = (
    JSON,
    b"application/octet-stream",
    b"text/plain; charset=utf-8",
    b"text/html",
    b"application/json; charset=utf-8",
)
LONG = b"x" * 5000

# fmt: off
# Percent-encoded, as a target has them: most requests are for these.
PATHS = (
    *(b"fuzz/%d" % number for number in range(10)),
    b"fuzz/%E6%B5%81", b"fuzz/a%2Fb", b"fuzz/a%20b", b"fuzz/a+b", b"fuzz/a;b=c", b"fuzz/%25", b"fuzz/.hidden",
    b"fuzz/~:@!$&'()*,=", b"fuzz//double", b"fuzz/slash/", b"fuzz/%C3%A9/%F0%9F%8C%8A", b"fuzz/" + b"x" * 1019,
)
ODD_PATHS = (
    b"", b".", b"..", b"fuzz/../x", b"fuzz/%2e%2e/x", b"fuzz/%2E", b"fuzz/%00", b"fuzz/%ff%fe", b"fuzz/a%0d%0ax:%20y",
    b"fuzz/%", b"fuzz/%zz", b"fuzz/%u6d41", b"fuzz/%ED%A0%80", b"fuzz/%EF%BF%BD", b"fuzz/" + b"x" * 1020,
    b"fuzz/" + b"%E6%B5%81" * 1030, b"__ds", b"__ds/subscriptions/x", b"__ds/../fuzz/0", b"%5f%5fds/x",
    b"fuzz/" + b"/" * 500,
)
# What something before the application may refuse.
ILL_PATHS = (
    b"fuzz/\xe6\xb5\x81", b'fuzz/"<>', b"fuzz/{x}", b"fuzz/|\\^`", b"fuzz/" + b"x" * 70_000, b"fuzz/0#part",
    b"fuzz/\x7f",
)
OTHER_TARGETS = (
    b"/", b"/health", b"/health/", b"/v1/stream", b"/V1/stream/fuzz/0", b"//v1/stream/fuzz/0", b"/v1/streams",
    b"/v1/stream/../health", b"/favicon.ico",
)
ODD_OFFSETS = (
    b"", b"0", b"-2", b"NOW", b"9" * 16 + b"_" + b"9" * 16, b"9" * 300, b"%D9%A1", b"0_0", b"%00", b"..", b"a,b",
    b"0000000000000000_000000000000000", b"0000000000000001_0000000000000000", b"0000000000000000_00000000000000001",
)
LIVE = (b"long-poll", b"sse", b"long-poll", b"sse", b"long-poll", b"sse", b"true", b"", b"SSE", b"%ff", b"poll")
CURSORS = (b"0", b"1", b"9007199254740991", b"18446744073709551616", b"-5", b"x", b"", b"9" * 400, b"%D9%A1")
ODD_QUERIES = (
    b"offset=-1", b"live=sse", b"cursor=1", b"a=%zz", b"%ff=1", b"&&&", b"=", b"a", b"x=1&" * 120, b"\xe6=1", b"?",
    b"q=" + LONG, b"offset", b"a=1;b=2", b"+=+",
)
NUMBERS = (
    b"0", b"1", b"2", b"7", b"9007199254740991", b"9007199254740992", b"18446744073709551616", b"-1", b"+1", b"01",
    b"1.0", b"1e3", b"", b"0x1", b"\xd9\xa1", b"1" * 5000, b"nan", b"1, 1", b"1_0", b"\xff",
)
NUMERIC = (b"Stream-TTL", b"Producer-Epoch", b"Producer-Seq", b"Stream-Fork-Sub-Offset", b"Stream-Max-Bytes")
TIMES = (
    b"2000-01-01T00:00:00Z", b"2099-01-01T00:00:00Z", b"2099-01-01T00:00:00+00:00", b"2099-01-01T00:00:00.000Z",
    b"9999-12-31T23:59:59Z", b"0001-01-01T00:00:00+14:00", b"9999-12-31T23:59:59-14:00", b"2099-06-30T23:59:60Z",
    b"2099-13-01T00:00:00Z", b"2099-01-01", b"tomorrow", b"", b"\xff",
)
TEXTS = (
    b"a", b"b", b"seq-1", b"seq-2", b"\xe6\xb5\x81", b"", b"x" * 1024, b"x" * 1025, LONG, b"true", b"TRUE", b"false",
    b'"quoted"', b"a,b", b"\xff", b"%0d%0a", b"a\tb",
)
ODD_TYPES = (
    b"", b"text", b"text/", b"/", b"a/b;", b'a/b; c="', b"text/pl\xe4in", b"*/*", b"A/" + b"b" * 1022,
    b"A/" + b"b" * 1023, b"multipart/x; boundary=--",
)
ORIGINS = (
    b"http://localhost:3000", b"http://127.0.0.1", b"http://foreign.example", b"null", b"", b"*", b"http://[::1]:80",
    b"https://\xff", b"http://a b", b"file://", LONG,
)
TAGS = (b'""', b"*", b'W/"x"', b'"x", "y"', b"x", b"", b'"\xff"', b'"' + LONG + b'"', b",,,", b'"unclosed')
ASKED = (b"x-own", b"content-type, x-own", b"", b"*", LONG, b"x-\xff", b"a,,b, ,c", b"x y", b"x-own\t,\tother")
RANGES = (b"bytes=0-10", b"bytes=-5", b"bytes=5-", b"bytes=9-1", b"bytes=0-1,3-4", b"items=1-2", b"bytes=" + b"9" * 300)
NOISE = (
    b"X-Own", b"Cookie", b"Accept", b"Accept-Encoding", b"Content-Encoding", b"TE", b"Authorization",
    b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Forwarded-Proto", b"X-Forwarded-Prefix", b"Forwarded",
    b"Sec-Fetch-Site", b"x_under", b"!#$%&'*+.^_`|~", b"Upgrade-Insecure-Requests", b"Max-Forwards",
)
WORDS = (
    "", "a", "流", "\r\n", "data: x\n\n", "\u2028", "\x00", '"\\/', "\ud83d", "\ud83c\udf0a", "x" * 300,
)
# fmt: on


def _nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


# fmt: off
STRANGE = (
    # JSON, or nearly
    b"[]", b"[[]]", b"{}", b"null", b"[null]", b'""', b"0", b"-0", b"-", b"[1,]", b"[,1]", b"{,}", b'{"a":1,}',
    b"[1 2]", b"1 2", b"nan", b"NaN", b"[Infinity]", b"-Infinity", b"1e400", b"[1e-400]", b"1E+400", b"0e0",
    b"01", b"1.", b".5", b"+1", b"0x10", b"1_0", b"tru", b"True", b"'a'", b'"a', b"[", b"]", b"{", b'{"a"}', b'{"a":}',
    b"{1:2}", b'{"a":1,"a":2}', b'{"":{"":{}}}', b"// c\n[1]", b"[1/**/]", b"[1]\n[2]\n", b'"' + b"\\" * 3 + b'"',
    # text that is none
    b'"\\ud83d"', b'["\\ud83d","\\ude00"]', b'{"\\udc00":1}', b'"\\ud83c\\udf0a"', b'"\\u0000"', b'"\\x41"', b'"\\u12"',
    b'"\x00"', b'"\n"', b'"\t"', b'"\x7f"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf5\x80\x80\x80"',
    b'"\xef\xbf\xbd"', b"\xef\xbb\xbf[1]", b"\xff\xfe[\x001\x00]\x00", b"\x00", b" \t\r\n[ 1 , 2 ]\r\n", b"\x0b[1]",
    b"\xc2\xa0[1]", b"[1]\x00",
    # long numbers, deep nesting
    b"9" * 100, b"9" * 4300, b"9" * 4301, b"[" + b"9" * 100_000 + b"]", b"-" + b"9" * 4300, b"0." + b"9" * 5000,
    b"1e" + b"9" * 5000, _nested(10), _nested(200), _nested(510), _nested(511), _nested(512), _nested(513),
    _nested(514), _nested(1000), _nested(5000), _nested(100_000), b"[" * 100_000, _nested(511, b'{"a":', b"}"),
    _nested(512, b'{"a":', b"}"), _nested(513, b'{"a":', b"}"), _nested(20_000, b'{"a":', b"}"),
    _nested(300, b'[{"a":', b"}]"), b'["' + b"x" * 100_000 + b'"]',
    # events inside of data
    b'{"data":"x\\n\\nevent: control\\ndata: {}"}', b"data: x\n\nevent: control\ndata: {}\n\n", b"\r", b"\r\n", b"\n\n",
)
# fmt: on


class Learned:
    """Offsets and tags that the server gave out, the latest ones."""

    def __init__(self) -> None:
        self.offsets: list[bytes] = [b"0000000000000000_0000000000000000"]
        self.tags: list[bytes] = [b'"0"']

    def remember(self, offset: str | None, tag: str | None) -> None:
        """Take what an answer says."""
        for known, value in ((self.offsets, offset), (self.tags, tag)):
            if value is not None:
                known.append(value.encode("latin-1"))
                del known[:-40]

    def offset(self, chance: Random) -> bytes:
        """Return one that was given out, one that is near to it, or anything else."""
        kind = chance.random()
        if kind < 0.3:
            return chance.choice((b"-1", b"now"))
        known = chance.choice(self.offsets)
        if kind < 0.7:
            return known
        if kind < 0.9:
            number = int(known[-16:]) + chance.choice((1, 1, -1, 2, 1000))
            return known[:-16] + b"%016d" % max(number, 0)
        return chance.choice(ODD_OFFSETS)


def target(chance: Random, learned: Learned) -> tuple[bytes, bool]:
    """Return a request target, and whether something before the application may refuse it."""
    kind = chance.random()
    if kind < 0.03:
        return chance.choice(OTHER_TARGETS), False
    ill = kind < 0.06
    where = ROOT + chance.choice(ILL_PATHS if ill else ODD_PATHS if kind < 0.12 else PATHS)
    if chance.random() < 0.6:
        query = _query(chance, learned)
        where += b"?" + query
        ill = ill or not query.isascii()
    if chance.random() < 0.02:
        return chance.choice((b"http://127.0.0.1", b"http://other.example:1", b"HTTP://X")) + where, True
    return where, ill


def _query(chance: Random, learned: Learned) -> bytes:
    parts = []
    if chance.random() < 0.9:
        parts.append(b"offset=" + learned.offset(chance))
    if chance.random() < 0.25:
        parts.append(b"live=" + chance.choice(LIVE))
    if chance.random() < 0.15:
        parts.append(b"cursor=" + chance.choice(CURSORS))
    if chance.random() < 0.08:
        parts.append(chance.choice(ODD_QUERIES))
    chance.shuffle(parts)
    return b"&".join(parts)


def stream_type(path: bytes) -> bytes:
    """Return the content type that the stream of a path has, as long as it is what it was at first."""
    return CONTENT_TYPES[sum(path) % len(CONTENT_TYPES)]


def content_type(chance: Random, path: bytes) -> bytes:
    """Return the stream's own content type most of the time."""
    kind = chance.random()
    return stream_type(path) if kind < 0.85 else chance.choice(CONTENT_TYPES if kind < 0.95 else ODD_TYPES)


def header_value(chance: Random, name: bytes, learned: Learned) -> bytes:
    """Return a value for one of the protocol's headers, or HTTP's."""
    if name in NUMERIC:
        return chance.choice(NUMBERS[:4] if chance.random() < 0.7 else NUMBERS)
    if name in (b"Stream-Fork-Offset", b"Last-Event-ID"):
        return learned.offset(chance)
    if name in (b"If-None-Match", b"If-Match"):
        return chance.choice((chance.choice(learned.tags), chance.choice(TAGS)))
    if name == b"Stream-Forked-From":
        roots = (ROOT, ROOT, ROOT, b"http://127.0.0.1/v1/stream/", b"", b"/other/", b"//")
        paths = (*PATHS, *ODD_PATHS, b"neighbour/json", b"neighbour/bytes", b"neighbour/none")
        return chance.choice(roots) + chance.choice(paths)
    tables = {b"Stream-Expires-At": TIMES, b"Origin": ORIGINS, b"Range": RANGES}
    return chance.choice(tables.get(name, TEXTS))


def preflight_headers(chance: Random) -> list[Header]:
    """Return what a browser asks before a request."""
    method = chance.choice((b"PUT", b"POST", b"", b"\xff"))
    asked = chance.choice(ASKED)
    return [(b"Access-Control-Request-Method", method), (b"Access-Control-Request-Headers", asked)]


def noise_headers(chance: Random) -> tuple[list[Header], bool]:
    """Return headers that mean little here, and whether there are more, or larger ones, than servers take."""
    kind = chance.random()
    if kind < 0.75:
        return [], False
    if kind < 0.95:
        return [(chance.choice(NOISE), chance.choice(TEXTS)) for _ in range(chance.randrange(1, 4))], False
    if kind < 0.975:
        return [(b"X-Many-%d" % number, b"v") for number in range(chance.choice((50, 90, 110, 300)))], True
    return [(b"X-Large", b"v" * chance.choice((9_000, 70_000, 200_000)))], True


def body(chance: Random, limit: int) -> bytes:
    """Return a body: often JSON, of the strange kind too; sometimes about as large as the server takes."""
    kind = chance.random()
    if kind < 0.45:
        text = json.dumps(_value(chance, 3), ensure_ascii=chance.random() < 0.5)
        return text.encode("utf-8", "surrogatepass")
    if kind < 0.7:
        return chance.choice(STRANGE)
    if kind < 0.8:
        return chance.randbytes(chance.choice((1, 10, 1000, 40_000)))
    if kind < 0.85:
        return chance.choice(STRANGE)[: chance.randrange(1, 30)] + chance.randbytes(3)
    if kind < 0.86:
        return b"[" + b"1," * 40_000 + b"1]"
    if kind < 0.87:
        return bytes(chance.choice((limit - 1, limit, limit + 1, 2 * limit)))
    if kind < 0.95:
        return ("text, 流 and\r\nlines\n" * chance.randrange(1, 20)).encode()
    return b""


def _value(chance: Random, depth: int) -> object:
    kind = chance.randrange(9 if depth else 6)
    if kind == 0:
        return chance.choice((0, -1, 1 << 70, 1.5, 1e300, -0.0, True, False, None))
    if kind <= 2:
        return chance.choice(WORDS)
    if kind <= 5:
        return chance.randrange(1000)
    if kind <= 7:
        return [_value(chance, depth - 1) for _ in range(chance.randrange(5))]
    names = ("a", "b", "", "流", "a\n")
    return {chance.choice(names): _value(chance, depth - 1) for _ in range(chance.randrange(4))}
