"""Headers and queries to values."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.state import ProducerStamp
from durable_streams.server import parse


@pytest.mark.parametrize(
    "value",
    [
        "text/plain",
        "application/vnd.api+json",
        "text/plain; charset=utf-8",
        "text/plain;charset=utf-8;boundary=x",
        'text/plain; a="b c"',
        'text/plain; a="\\""',
        "text/plain;",
        "text/plain ; ; charset=utf-8 ; ",
    ],
)
def test_content_types(value: str) -> None:
    assert parse.content_type(value) == value.strip()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "text",
        "text/",
        "/plain",
        "text/plain x",
        "text/plain; a",
        "text/plain; a=",
        'a/b; c="',
        "a/b;c=d e",
        "a b/c",
        "a/b\n",
    ],
)
def test_what_is_no_content_type(value: str) -> None:
    with pytest.raises(Rejection):
        parse.content_type(value)


@given(st.text(alphabet=' \t;a="\\/@,', max_size=900))
def test_no_content_type_costs_more_than_a_moment(value: str) -> None:
    started = time.process_time()
    for begin in ("a/b", "a/b;a=", 'a/b;a="'):
        try:
            parse.content_type(begin + value)
        except Rejection:
            continue
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("0", 0), ("1", 1), ("86400", 86400), ("10000000000", 10**10)]
)
def test_ttl(value: str | None, seconds: int | None) -> None:
    assert parse.ttl(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "-1", "+1", "01", "1.0", "1e3", " 1", "1 ", "x", "10000000001", "9" * 5000, "१"]
)
def test_what_is_no_ttl(value: str) -> None:
    with pytest.raises(Rejection):
        parse.ttl(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("2030-01-01T00:00:00.250Z", 1893456000.25),
        ("2016-12-31T23:59:60Z", 1483228799.0),
        ("9999-12-31T23:59:59Z", 253402300799.0),
        ("9999-12-31T23:59:59.9999999Z", 253402300799.999999),
    ],
)
def test_expires_at(value: str, seconds: float) -> None:
    assert parse.expires_at(value) == seconds


@given(st.text(alphabet="0123456789-:TZ+. ", max_size=30))
def test_any_expires_at_is_a_time_or_refused(value: str) -> None:
    try:
        assert isinstance(parse.expires_at(value), float)
    except Rejection as refusal:
        assert refusal.status == 400  # noqa: PT017 - either is right


def test_producers_are_all_or_nothing() -> None:
    assert parse.producer(None, None, None) is None
    assert parse.producer("p", "1", "2") == ProducerStamp("p", 1, 2)
    for given_headers in (
        ("p", None, None),
        (None, "1", None),
        (None, None, "2"),
        ("p", "1", None),
        ("", "1", "2"),
    ):
        with pytest.raises(Rejection):
            parse.producer(*given_headers)


def test_queries() -> None:
    assert parse.query("") == {}
    assert parse.query("offset=-1&live=sse&x&x=1&x=2") == {"offset": "-1", "live": "sse", "x": "2"}
    assert parse.query("offset=a%20b+c") == {"offset": "a b c"}
    for text in ("offset=1&offset=1", "live=sse&live=sse", "cursor=&cursor=", "a=%ff", "&".join(["x"] * 101)):
        with pytest.raises(Rejection):
            parse.query(text)


@pytest.mark.parametrize("path", ["a", "a/b", "...", "a..b", ".a", "ä", "a b", "x" * 1024, "a//b", "%"])
def test_paths(path: str) -> None:
    assert parse.stream_path(path) == path


@pytest.mark.parametrize(
    "path", ["", ".", "..", "a/..", "../a", "a/./b", "a\x00", "\n", "a\x7f", "\ufffd", "x" * 1025]
)
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(Rejection):
        parse.stream_path(path)


def test_half_a_character_is_no_path() -> None:
    with pytest.raises(Rejection):
        parse.stream_path("a" + chr(0xD800))


@given(st.text(max_size=50))
def test_every_refusal_is_one_line(value: str) -> None:
    for read in (
        parse.content_type,
        parse.ttl,
        parse.expires_at,
        parse.sub_offset,
        parse.stream_path,
        parse.query,
    ):
        try:
            read(value)
        except Rejection as refusal:
            assert refusal.status == 400  # noqa: PT017 - either is right
            assert "\n" not in refusal.message  # noqa: PT017
            assert "\r" not in refusal.message  # noqa: PT017
