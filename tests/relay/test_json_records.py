"""What a relay takes for a JSON record: what its target takes, byte for byte, whatever the source is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scripted import Received, ScriptedServer

from durable_streams import DurableStream, DurableStreamError, stream
from durable_streams.firehose import FirehoseStream, StreamConfig
from durable_streams.relay import Relay, relay, source_for
from durable_streams.relay.dedupe import id_reader
from durable_streams.testing import InMemoryStreamServer

STRANGE = [
    rb'{"id":1,"t":"a\ud83d"}',
    b'{"id":2,"t":' + b"[" * 511 + b"]" * 511 + b"}",
    b'{"id":3,"t":-1e400}',
    b'{"id":4,"t":' + b"9" * 4300 + b"}",
    rb'{"id":5,"\udc00":1, "id":6}',
    b'{"id":7.50}',
]
INVALID = [b'{"t":' + b"[" * 512 + b"]" * 512 + b"}", b"9" * 4301, b"NaN", b'"\xff"', b"{x"]


class Feed:
    """Gives one body to everybody who asks."""

    def __init__(self) -> None:
        self.body, self.content_type = b"", "application/x-ndjson"
        self.headers: dict[str, str] = {}
        self._server = ScriptedServer(answer=self._answer)
        self.url = f"{self._server.root}/feed"
        self.stop = self._server.stop

    def _answer(self, request: Received) -> bytes:
        body = self.body if request.method == "GET" else b""
        headers = {"Content-Type": self.content_type, **self.headers}
        return ScriptedServer.response(200, body, length=len(self.body), **headers)

    def lines(self, records: list[bytes]) -> None:
        self.body, self.content_type = b"".join(record + b"\n" for record in records), "application/x-ndjson"

    def events(self, records: list[bytes]) -> None:
        self.body = b"".join(
            b"id: %d\ndata: %b\n\n" % (number, record) for number, record in enumerate(records)
        )
        self.content_type = "text/event-stream"

    def stream(self, records: list[bytes]) -> None:
        self.body, self.content_type = b"[" + b",".join(records) + b"]", "application/json"
        self.headers = {"Stream-Next-Offset": "1", "Stream-Up-To-Date": "true", "Stream-Closed": "true"}


@pytest.fixture
def feed() -> Iterator[Feed]:
    feed = Feed()
    yield feed
    feed.stop()


@pytest.fixture
def server() -> Iterator[InMemoryStreamServer]:
    with InMemoryStreamServer() as server:
        yield server


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def stored(url: str) -> list[bytes]:
    with stream(url, live=False) as response:
        return [bytes(message) for message in response.iter_json(decode=msgspec.Raw)]


FORMS = ["lines", "events", "stream", "file", "iterable"]


def source_of(form: str, feed: Feed, records: list[bytes], folder: Path) -> Any:
    if form == "iterable":
        return list(records)
    if form == "file":
        path = folder / "in.ndjson"
        path.write_bytes(b"".join(record + b"\n" for record in records))
        return str(path)
    getattr(feed, form)(records)
    return source_for(feed.url, follow=False)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("id_field", [None, "id"])
def test_a7_strange_records_are_stored_byte_for_byte(
    form: str, id_field: str | None, feed: Feed, server: Any, tmp_path: Path
) -> None:
    target = server.url("/copy")
    report = relay(source_of(form, feed, [*STRANGE, *STRANGE], tmp_path), target, id_field=id_field)
    assert report.invalid == 0
    if id_field is None:
        assert stored(target) == [*STRANGE, *STRANGE]
    else:  # all have ids, the last one a number that is none
        assert stored(target) == [*STRANGE, STRANGE[-1]]
        assert report.skipped == len(STRANGE) - 1


def test_a7_the_id_of_a_strange_record_is_found() -> None:
    read = id_reader("id")
    assert [read(record) for record in STRANGE] == [1, 2, 3, 4, 6, None]
    assert id_reader("a.b")(rb'{"t":"\ud800","a":{"b":"x"}}') == "x"
    assert id_reader("a.b")(rb'{"t":"\ud800","a":[]}') is None


def test_a7_values_of_a_firehose_are_stored_though_a_double_does_not_hold_them(
    feed: Feed, server: Any
) -> None:
    feed.lines(STRANGE)
    source = FirehoseStream(feed.url, config=StreamConfig(max_retries=0, initial_backoff=0.0))
    target = server.url("/copy")
    with pytest.raises(DurableStreamError):  # its end, after which it brings nothing new
        relay(source, target)
    with stream(target, live=False) as response:
        found = response.read_json()
    assert found[: len(STRANGE)] == [json.loads(record) for record in STRANGE]
    assert source.state.invalid == 0


@pytest.mark.parametrize("form", FORMS)
def test_a7_what_the_rule_refuses_is_left_out_or_ends_the_relay(
    form: str, feed: Feed, server: Any, tmp_path: Path
) -> None:
    for number, bad in enumerate(INVALID):
        if form == "stream" and bad == b"{x":
            continue  # whose bracket takes the rest of the array with it
        records = [b"1", bad, b"2", bad]
        skipping = relay(
            source_of(form, feed, records, tmp_path), server.url(f"/skip-{number}"), on_invalid="skip"
        )
        assert (skipping.records, skipping.invalid) == (2, 2)
        assert stored(server.url(f"/skip-{number}")) == [b"1", b"2"]
        refused: list[bytes] = []
        relay(
            source_of(form, feed, records, tmp_path),
            server.url(f"/call-{number}"),
            on_invalid=lambda raw, _, refused=refused: refused.append(raw),
        )
        assert refused == [bad, bad]
        with pytest.raises(DurableStreamError) as caught:
            relay(
                source_of(form, feed, records, tmp_path), server.url(f"/raise-{number}"), on_invalid="raise"
            )
        assert caught.value.code == "INVALID_RECORD"
        assert stored(server.url(f"/raise-{number}")) == [b"1"]
        default = server.url(f"/default-{number}")
        if form in {"lines", "events"}:
            assert relay(source_of(form, feed, records, tmp_path), default).invalid == 2
        else:
            with pytest.raises(DurableStreamError):
                relay(source_of(form, feed, records, tmp_path), default)


def test_a7_events_that_are_not_utf8_are_not_altered(feed: Feed, server: Any) -> None:
    feed.events([b"caf\xc3\xa9", b"caf\xe9", b"x\x00y"])
    target = server.url("/text")
    relay(source_for(feed.url, follow=False), target, content_type="text/plain")
    with DurableStream(target).stream(live=False) as response:
        assert response.read_bytes() == b"caf\xc3\xa9\ncaf\xe9\nx\x00y\n"


def test_a8_on_invalid_is_one_of_three(server: Any) -> None:
    with pytest.raises(ValueError, match="on_invalid must be 'skip', 'raise' or a callable"):
        Relay([1], server.url("/copy"), on_invalid="drop")  # type: ignore[arg-type]
