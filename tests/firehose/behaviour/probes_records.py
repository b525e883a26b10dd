"""What becomes of lines: whole, broken, strange, slow."""

from __future__ import annotations

import time
from typing import Any

from observe import Trace
from probes import FATAL, probe
from wire import feed, record, records

GROUP = "Records"
SLOW = 2.0  # seconds until more comes
HUGE = b"x" * 20_000_000


@probe(GROUP, "JSON objects become dicts", feed(records(1, 2)), FATAL)
def dicts(t: Trace) -> None:
    t.run(2, config=t.quiet())


@probe(GROUP, "`response_model`, a Pydantic model", feed(records(1, 2)), FATAL)
def model(t: Trace) -> None:
    t.run(2, config=t.quiet(), response_model=_tweet())


@probe(GROUP, "a record that the model refuses", feed(record(1), b'{"data":{}}\n', record(2)), FATAL)
def model_refuses(t: Trace) -> None:
    t.run(2, response_model=_tweet())


@probe(
    GROUP, "a record with fields that the model does not have", feed(record(1, extra={"deep": [1]})), FATAL
)
def model_extra(t: Trace) -> None:
    t.run(1, config=t.quiet(), response_model=_tweet())


@probe(GROUP, "a Pydantic model with a `model_validate` of its own", feed(records(1, 2)), FATAL)
def model_overridden(t: Trace) -> None:
    from pydantic import BaseModel

    class Tweet(BaseModel):
        data: dict[str, str]

        @classmethod
        def model_validate(cls, obj: Any, **options: Any) -> Any:
            obj["data"]["id"] += "!"
            return super().model_validate(obj, **options)

    t.run(2, config=t.quiet(), response_model=Tweet)


@probe(GROUP, "a class with only a `model_validate`", feed(records(1, 2)), FATAL)
def model_of_its_own(t: Trace) -> None:
    class Tweet:
        data: Any

        @classmethod
        def model_validate(cls, value: Any) -> Any:
            made = cls()
            made.data = value["data"]
            return made

    t.run(2, config=t.quiet(), response_model=Tweet)


def _tweet() -> Any:
    from pydantic import BaseModel

    class Data(BaseModel):
        id: str
        text: str

    class Tweet(BaseModel):
        data: Data

    return Tweet


@probe(GROUP, "a line that is not JSON", feed(record(1), b"{not json\r\n", record(2)), FATAL)
def invalid_line(t: Trace) -> None:
    t.run(2)


@probe(GROUP, "a line that is not UTF-8", feed(record(1), b'{"data":{"id":"\xff"}}\r\n', record(2)), FATAL)
def invalid_utf8(t: Trace) -> None:
    t.run(2)


@probe(GROUP, "JSON that is not an object", feed(b'[1]\n7\nnull\n"text"\n', record(2)), FATAL)
def no_object(t: Trace) -> None:
    t.run(5)


@probe(
    GROUP,
    "an operational disconnect: `errors` without data",
    feed(
        record(1),
        b'{"errors":[{"title":"operational-disconnect","disconnect_type":"UpstreamOperationalDisconnect"}]}\r\n',
    ),
    FATAL,
)
def operational(t: Trace) -> None:
    t.run()


@probe(
    GROUP,
    "`errors` beside data (a partial error)",
    feed(record(1, errors=[{"title": "Not Found"}]), record(2)),
    FATAL,
)
def partial_error(t: Trace) -> None:
    t.run(2)


@probe(GROUP, "keep-alives: empty lines", feed(b"\r\n", record(1), b"\r\n\r\n", b"\n", record(2)), FATAL)
def keep_alives(t: Trace) -> None:
    t.run(2)


@probe(GROUP, "keep-alives: lines `{}`", feed(b"{}\r\n", record(1), b" {} \n", record(2)), FATAL)
def empty_objects(t: Trace) -> None:
    t.run(2)


@probe(
    GROUP,
    "a record cut anywhere into pieces",
    feed(*(record(1)[i : i + 1] for i in range(len(record(1))))),
    FATAL,
)
def pieces(t: Trace) -> None:
    t.run(1)


@probe(
    GROUP,
    "a character cut in two",
    feed(b'{"data":{"id":"n', "ü".encode()[:1], 0.1, "ü".encode()[1:] + b'"}}\n'),
    FATAL,
)
def torn_character(t: Trace) -> None:
    t.run(1)


@probe(
    GROUP,
    "U+2028, U+2029, U+0085 inside a text",
    feed('{"data":{"id":"a\u2028b\u2029c\x85d"}}\n'.encode()),
    FATAL,
)
def unicode_separators(t: Trace) -> None:
    for item in t.open(config=t.quiet()):
        t.note("whole" if item["data"]["id"] == "a\u2028b\u2029c\x85d" else ascii(item))
        break


@probe(GROUP, "CR LF between two chunks", feed(record(1)[:-1], 0.1, b"\n" + record(2)), FATAL)
def split_crlf(t: Trace) -> None:
    t.run(2)


@probe(
    GROUP,
    "the last line of a feed that ends cleanly, without its newline",
    feed(record(1), record(2).rstrip()),
    FATAL,
)
def last_line(t: Trace) -> None:
    t.run()


@probe(GROUP, "a line cut off by a broken connection", feed(record(1), record(2)[:-9], ending="cut"), FATAL)
def partial_line(t: Trace) -> None:
    t.run()


@probe(
    GROUP,
    "a complete object without its newline, then a broken connection",
    feed(record(1), record(2).rstrip(), ending="cut"),
    FATAL,
)
def unfinished_object(t: Trace) -> None:
    t.run()


@probe(GROUP, "integers beyond 64 bits", feed(b'{"data":{"id":123456789012345678901234567890}}\n'), FATAL)
def big_integers(t: Trace) -> None:
    t.run(1, config=t.quiet())


@probe(GROUP, "a number beyond a double, `1e400`", feed(b'{"data":{"id":1e400}}\n'), FATAL)
def big_floats(t: Trace) -> None:
    t.run(1, config=t.quiet())


@probe(GROUP, "`NaN`, which is not JSON", feed(b'{"data":{"id":NaN}}\n', record(2)), FATAL)
def not_a_number(t: Trace) -> None:
    t.run(1, config=t.quiet())


@probe(GROUP, "one line of 20 MB", feed(b'{"data":{"id":"huge"},"text":"' + HUGE + b'"}\n'), FATAL)
def huge_line(t: Trace) -> None:
    begin = time.process_time()  # that of the processor does not depend on what else runs
    t.run(1, config=t.quiet())
    t.took(time.process_time() - begin, 2.5, "soon", "after more than 2.5 s")


@probe(GROUP, "gzip", feed(record(1), record(2), coding="gzip"), FATAL)
def gzip(t: Trace) -> None:
    t.run(2)


def _first_is_soon(t: Trace) -> None:
    stream = t.open(config=t.quiet())
    begin = time.monotonic()
    next(stream)
    t.took(time.monotonic() - begin, SLOW / 2, "at once", "held back until more came")
    stream.close()


@probe(
    GROUP,
    "first record of a slow feed, chunked",
    feed(record(1), SLOW, records(*range(2, 99)), ending="hold"),
)
def slow_chunked(t: Trace) -> None:
    _first_is_soon(t)


@probe(
    GROUP,
    "first record of a slow feed, neither chunked nor compressed",
    feed(record(1), SLOW, records(*range(2, 99)), coding="plain", ending="hold"),
)
def slow_plain(t: Trace) -> None:
    _first_is_soon(t)


@probe(
    GROUP,
    "first record of a slow feed, gzip",
    feed(record(1), SLOW, records(*range(2, 99)), coding="gzip", ending="hold"),
)
def slow_gzip(t: Trace) -> None:
    _first_is_soon(t)


@probe(
    GROUP,
    "records that are sent again after a reconnect",
    feed(records(1, 2), ending="cut"),
    feed(records(2, 3)),
    FATAL,
)
def duplicates(t: Trace) -> None:
    t.run(4, config=t.quiet())
