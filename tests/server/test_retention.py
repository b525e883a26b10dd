"""What a server says of streams that give up their first bytes, and how it is asked to."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from servers import ServerProcess, serving

from durable_streams.protocol.offsets import format_offset

JSON = "application/json"


@pytest.fixture(scope="module")
def ruled_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    rules = {"retention": [["jobs/**", None, 64], ["logs/*", 7200, None]]}
    with serving(tmp_path_factory.mktemp("ruled"), **rules) as server:
        yield server


def act(server, stream: str, action: str, **asked: object):  # noqa: ANN201
    return server.request(
        "POST", f"__ds/streams/{stream}/{action}", json.dumps(asked).encode(), content_type=JSON
    )


@pytest.fixture
def filled(either_server, stream: str) -> str:
    """Give a stream of three appends of three bytes."""
    either_server.create(stream)
    for part in (b"abc", b"def", b"ghi"):
        either_server.append(stream, part)
    return stream


@pytest.mark.parametrize("offset", [0, 2])
def test_a_read_before_what_is_retained(either_server, filled: str, offset: int) -> None:
    trimmed = act(either_server, filled, "trim", before=format_offset(3))
    assert trimmed.status == 200
    assert trimmed.json == {
        "path": filled,
        "earliest_offset": format_offset(3),
        "next_offset": format_offset(9),
        "max_age": None,
        "max_bytes": None,
    }
    for live in ("", "&live=long-poll", "&live=sse"):
        answer = either_server.request("GET", f"{filled}?offset={format_offset(offset)}{live}")
        assert (answer.status, answer.json["error"]["code"]) == (410, "RETENTION_GONE")
        assert answer.headers["stream-earliest-offset"] == format_offset(3)
    assert either_server.read_all(filled) == b"defghi"
    assert either_server.read_all(filled, format_offset(3)) == b"defghi"
    assert either_server.read_all(filled, format_offset(5)) == b"defghi"
    assert either_server.request("GET", filled).body == b"defghi"
    assert either_server.request("GET", f"{filled}?offset=-1&live=long-poll").body == b"defghi"


def test_head_tells_the_earliest_offset(either_server, filled: str) -> None:
    before = either_server.request("HEAD", filled).headers
    assert before["stream-earliest-offset"] == format_offset(0)
    act(either_server, filled, "trim", before=format_offset(6))
    after = either_server.request("HEAD", filled).headers
    assert after["stream-earliest-offset"] == format_offset(6)
    assert after["stream-next-offset"] == before["stream-next-offset"]
    assert after["etag"] != before["etag"]


def test_a_trim_keeps_whole_appends(either_server, filled: str) -> None:
    assert act(either_server, filled, "trim", before=format_offset(5)).json[
        "earliest_offset"
    ] == format_offset(3)
    assert act(either_server, filled, "trim", before=format_offset(1)).json[
        "earliest_offset"
    ] == format_offset(3)
    assert act(either_server, filled, "trim", before="-1").json["earliest_offset"] == format_offset(3)
    assert act(either_server, filled, "trim", max_bytes=5).json["earliest_offset"] == format_offset(6)
    assert act(either_server, filled, "trim", max_bytes=100).json["earliest_offset"] == format_offset(6)
    assert act(either_server, filled, "trim", before="now").json["earliest_offset"] == format_offset(9)
    assert either_server.read_all(filled) == b""


def test_the_start_of_a_trimmed_stream_is_asked_for_again(either_server, filled: str) -> None:
    act(either_server, filled, "trim", before=format_offset(3))
    for offset in ("", "?offset=-1"):
        first = either_server.request("GET", f"{filled}{offset}", stream_max_bytes="1")
        assert (first.body, first.headers["cache-control"]) == (b"def", "no-cache")
        tag = first.headers["etag"]
        again = either_server.request("GET", f"{filled}{offset}", stream_max_bytes="1", if_none_match=tag)
        assert again.status == 304


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"before": "x"},
        {"before": 3},
        {"before": format_offset(10)},
        {"max_bytes": -1},
        {"max_bytes": "5"},
        {"before": "-1", "max_bytes": 5},
        {"max_age": 0},
        {"other": 1},
    ],
)
def test_a_trim_that_says_nothing_sensible(either_server, filled: str, asked: dict[str, object]) -> None:
    assert act(either_server, filled, "trim", **asked).status == 400
    assert either_server.read_all(filled) == b"abcdefghi"


@pytest.mark.parametrize("body", [b"", b"{", b'{"before": "\xff"}', b"[" * 100_000], ids=len)
def test_a_body_that_is_no_json(either_server, filled: str, body: bytes) -> None:
    answer = either_server.request("POST", f"__ds/streams/{filled}/trim", body, content_type=JSON)
    assert (answer.status, answer.json["error"]["code"]) == (400, "INVALID_REQUEST")


def test_what_can_be_asked_of_a_stream(either_server, filled: str) -> None:
    assert act(either_server, f"{filled}/nothing", "trim", before="-1").status == 404
    assert act(either_server, filled, "shrink", before="-1").status == 404
    assert act(either_server, filled, "trim", max_age=5).status == 409
    assert either_server.request("POST", "__ds/streams/trim", b"{}", content_type=JSON).status == 404


def test_a_policy_of_its_own(either_server, stream: str) -> None:
    limits = {"stream_retention_max_age": "3600", "stream_retention_max_bytes": "40"}
    created = either_server.create(stream, **limits)
    assert created.headers["stream-retention-max-age"] == "3600"
    for _ in range(20):
        either_server.append(stream, b"0123456789")
    assert either_server.read_all(stream) == b"0123456789" * 4
    assert either_server.request("PUT", stream, **limits).status == 200
    assert either_server.request("PUT", stream).status == 200
    assert either_server.request("PUT", stream, stream_retention_max_bytes="41").status == 409
    changed = act(either_server, stream, "retention", max_bytes=20)
    assert (changed.json["max_age"], changed.json["max_bytes"]) == (None, 20)
    assert either_server.read_all(stream) == b"0123456789" * 2
    assert either_server.request("HEAD", stream).headers["stream-retention-max-bytes"] == "20"
    assert act(either_server, stream, "retention").json["max_bytes"] is None
    for _ in range(5):
        either_server.append(stream, b"0123456789")
    assert either_server.read_all(stream) == b"0123456789" * 7


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "5m", "", "99999999999999999"])
def test_a_policy_that_makes_no_sense(either_server, stream: str, value: str) -> None:
    for name in ("stream_retention_max_age", "stream_retention_max_bytes"):
        assert either_server.request("PUT", stream, **{name: value}).status == 400
    for asked in ({"max_age": 0}, {"max_bytes": 0}, {"max_bytes": value}):
        either_server.request("PUT", stream)
        assert act(either_server, stream, "retention", **asked).status == 400


def test_rules_of_the_server(ruled_server, stream: str) -> None:
    for path, kept in ((f"jobs/a/{stream}", 60), (f"other/{stream}", 200), (f"logs/{stream}", 200)):
        ruled_server.create(path)
        for _ in range(20):
            ruled_server.append(path, b"0123456789")
        assert len(ruled_server.read_all(path)) == kept, path
    assert ruled_server.request("HEAD", f"logs/{stream}").headers["stream-retention-max-age"] == "7200"
    own = f"jobs/own-{stream}"
    ruled_server.create(own, stream_retention_max_bytes="20")
    for _ in range(20):
        ruled_server.append(own, b"0123456789")
    assert len(ruled_server.read_all(own)) == 20


def test_rules_reach_streams_that_were_there_before(start_server, tmp_path, stream: str) -> None:
    path = f"jobs/{stream}"
    server = start_server(tmp_path)
    server.create(path)
    for _ in range(10):
        server.append(path, b"0123456789")
    server.terminate()
    for rule, kept in ((["jobs/*", None, 50], 50), (["jobs/*", None, 30], 30), (["x", None, 9], 40)):
        server = start_server(tmp_path, retention=[rule])
        server.append(path, b"0123456789")
        server.append(path, b"0123456789")
        assert len(server.read_all(path)) <= kept + 10, rule
        server.terminate()
    assert "stream-retention-max-bytes" not in start_server(tmp_path).request("HEAD", path).headers
