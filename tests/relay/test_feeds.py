"""Feeds over HTTP as a relay's source, and the relay as a command."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import Received, Reply, ScriptedServer

from durable_streams import DurableStream
from durable_streams.firehose import FeedEvent, FirehoseStream, StreamConfig, StreamError
from durable_streams.firehose.records import RecordSplitter
from durable_streams.relay import Relay, relay, source_for
from durable_streams.testing import InMemoryStreamServer
from xdk_testing import XFilteredStream


class EventFeed:
    """Server-sent events, three a connection, which it begins after the Last-Event-ID."""

    def __init__(self, count: int) -> None:
        self.asked: list[tuple[str | None, str | None]] = []
        self._count = count
        self._server = ScriptedServer(answer=self._answer)
        self.url = f"{self._server.root}/events?key=secret"
        self.stop = self._server.stop

    def _answer(self, request: Received) -> Reply:
        wire = b""
        if request.method == "GET":
            last = request.headers.get("last-event-id")
            self.asked.append((last, request.headers.get("authorization")))
            first = int(last) + 1 if last else 0
            for number in range(first, min(self._count, first + 3)):
                wire += b': life\r\nid: %d\r\ndata: {\r\ndata: "n": %d}\r\n\r\n' % (number, number)
            wire += b'id: lost\r\ndata: {"n": "torn"}'
        return ScriptedServer.send(ScriptedServer.events(wire), close=True)


@pytest.fixture
def events() -> Iterator[EventFeed]:
    feed = EventFeed(10)
    yield feed
    feed.stop()


@pytest.fixture
def server() -> Iterator[InMemoryStreamServer]:
    with InMemoryStreamServer() as server:
        yield server


def run_until(relaying: Relay, watch: Any, condition: Any) -> Any:
    reports: list[Any] = []
    thread = threading.Thread(target=lambda: reports.append(relaying.run()))
    thread.start()
    try:
        watch.until(condition)
    finally:
        relaying.stop()
        thread.join(30)
    return reports[0]


def test_events_are_resumed_within_a_run_and_between_runs(
    events: EventFeed, server: Any, watch: Any, tmp_path: Any
) -> None:
    target, state = server.url("/copy"), tmp_path / "state"
    for least in (4, 10):
        source = source_for(events.url, backoff=0.01, headers={"Authorization": "Bearer x"})
        relaying = Relay(source, target, state=state)
        assert relaying.guarantee.startswith("exactly once, as long as ")
        assert "secret" not in relaying.guarantee
        run_until(
            relaying, watch, lambda least=least: watch.tail(target) and len(watch.messages(target)) >= least
        )
    assert watch.messages(target) == [{"n": number} for number in range(10)]
    assert events.asked[0] == (None, "Bearer x")
    assert all(int(last or 0) % 3 == 2 or last == "9" for last, _ in events.asked[1:])


def test_events_however_they_are_cut() -> None:
    content = b"\xef\xbb\xbfid: 1\ndata: a\n\ndata:b\rdata: c\r\rid\ndata: {}\n\n"
    content += b": x\n\nevent: y\nid: z\n\ndata: d\n\ndata: torn"
    for size in (1, 2, 7, len(content)):
        splitter = RecordSplitter("sse")
        pieces = [content[at : at + size] for at in range(0, len(content), size)]
        found = [(record.id, bytes(record)) for piece in pieces for record in splitter.feed(piece)]
        assert found == [("1", b"a"), ("1", b"b\nc"), ("", b"{}"), ("z", b"d")]


def test_a_filtered_stream_with_backfill(server: Any, watch: Any) -> None:
    def post(number: int) -> dict[str, Any]:
        return {"data": {"id": str(number), "text": "a cat"}, "matching_rules": [{"id": "1", "tag": ""}]}

    target = server.url("/posts")
    with XFilteredStream(bearer_token="token", minute=1.0) as feed:
        stream = FirehoseStream(
            feed.stream_url,
            config=StreamConfig(max_retries=-1, initial_backoff=0.05),
            headers={"Authorization": "Bearer token"},
            params=lambda attempt: {"backfill_minutes": 5} if attempt.down_for else {},
        )
        relaying = Relay(stream, target, id_field="data.id", gap_events=True)
        assert "data.id" in relaying.guarantee

        def drive() -> bool:
            feed.wait_for_connections()
            feed.publish(*map(post, range(5)))
            watch.until(lambda: relaying.report().records == 5)
            feed.drop(partial=b'{"data": {"id"')
            feed.publish(post(5), post(6))
            watch.until(lambda: relaying.report().records >= 7)
            return True

        report = run_until(relaying, watch, drive)
    assert (report.records, report.reconnects) == (7, 1)
    assert [message["data"]["id"] for message in watch.messages(target)] == [str(n) for n in range(7)]


def test_a_feed_that_ends(server: Any, watch: Any, flaky_feed: Any) -> None:
    feed = flaky_feed([{"id": number} for number in range(100)], 1)
    feed.allow(100)
    target = server.url("/copy")
    relaying = Relay(source_for(feed.url, backoff=0.01), target, id_field="id")
    report = run_until(relaying, watch, lambda: relaying.report().records == 100)
    assert (report.records, report.invalid) == (100, 0)
    assert watch.messages(target) == [{"id": number} for number in range(100)]


def test_what_is_no_json_in_a_feed_is_left_out_and_counted(server: Any, watch: Any) -> None:
    with XFilteredStream() as feed:
        headers = {"Authorization": f"Bearer {feed.bearer_token}"}
        relaying = Relay(source_for(feed.stream_url, headers=headers), server.url("/copy"))
        assert relaying.guarantee.startswith("gaps possible: ")

        def drive() -> bool:
            feed.wait_for_connections()
            feed.publish(b"1", b"{x", b"2")
            watch.until(lambda: relaying.report().records == 2)
            return True

        report = run_until(relaying, watch, drive)
    assert (report.records, report.invalid) == (2, 1)
    assert watch.messages(server.url("/copy")) == [1, 2]


def test_a_stream_of_lines_as_source(server: Any) -> None:
    with DurableStream.create(server.url("/a"), content_type="text/plain") as handle:
        for piece in ("one\ntw", "o\n", "\nthr"):
            handle.append(piece)
        handle.close_stream("ee")
    report = relay(server.url("/a"), server.url("/b"), close=True)
    assert (report.records, report.closed) == (3, True)
    with DurableStream(server.url("/b")).stream(live=False) as response:
        assert (response.content_type, response.read_text()) == ("text/plain", "one\ntwo\nthree\n")


# -- the command


def test_the_command_tells_its_guarantee_and_ends_cleanly(home: Any, watch: Any) -> None:
    (home.folder / "in.ndjson").write_text("1\n2\n")
    for number in (signal.SIGINT, signal.SIGTERM):
        program = home.relay("in.ndjson", home.url("copy"), "--follow", "--state", "state.json")
        watch.until(lambda: watch.tail(home.url("copy")) != "" and len(watch.messages(home.url("copy"))) == 2)
        assert program.stop(number)["event"] == "ended"
    plain = watch.program(home.folder, "relay", "in.ndjson", home.url("other"))
    output, _ = plain.process.communicate(timeout=60)
    assert output.startswith(b"stored 2 records in ")
    assert "exactly once: in.ndjson" in plain.errors.read_text()
    assert (home.folder / "state" / "durable-streams" / "relay").is_dir()


def test_standard_input(home: Any, watch: Any) -> None:
    program = home.relay("-", home.url("copy"), "--close")
    output, _ = program.process.communicate(b"1\n\n 2\n3", timeout=60)
    ended = json.loads(output)
    assert (program.process.returncode, ended["records"], ended["closed"]) == (0, 3, True)
    assert ended["guarantee"].startswith("gaps possible: ")
    assert watch.messages(home.url("copy")) == [1, 2, 3]


def test_a_pipe_that_stays_open_is_left_at_ctrl_c(home: Any, watch: Any) -> None:
    program = home.relay("-", home.url("copy"))
    program.process.stdin.write(b"1\n2\n")
    program.process.stdin.flush()
    watch.until(lambda: watch.tail(home.url("copy")) != "" and len(watch.messages(home.url("copy"))) == 2)
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(60) == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--header", "nonsense"), 2, "--header takes 'Name: value'"),
        (("--source-token", "NO_SUCH_VARIABLE"), 2, "no variable 'NO_SUCH_VARIABLE'"),
        (("--id-field", "a..b"), 2, "An id field is a path"),
        (("--no-create",), 1, "answered 404"),
        (("--state", "nowhere/state"), 1, "nowhere"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    home: Any, watch: Any, options: Any, code: int, message: str
) -> None:
    (home.folder / "in.ndjson").write_text("1\n")
    program = watch.program(home.folder, "relay", "in.ndjson", home.url("none"), "--json", *options)
    program.process.communicate(timeout=60)
    said = program.errors.read_text()
    assert (program.process.returncode, said.count("\n")) == (code, 1), said
    assert message in said


def test_a_missing_file(home: Any, watch: Any) -> None:
    program = watch.program(home.folder, "relay", "none.ndjson", home.url("none"), "--json")
    program.process.communicate(timeout=60)
    assert "none.ndjson: No such file or directory." in program.errors.read_text()
    assert program.process.returncode == 1
    assert watch.tail(home.url("none")) == ""


def test_credentials_of_the_source(home: Any, watch: Any, events: EventFeed) -> None:
    home.relay(
        events.url, home.url("copy"), "--source-token", "FEED_TOKEN", "--backoff", "0.01", FEED_TOKEN="secret"
    )
    watch.until(lambda: watch.tail(home.url("copy")) != "" and len(watch.messages(home.url("copy"))) == 10)
    assert {authorization for _, authorization in events.asked} == {"Bearer secret"}


def test_no_content_is_the_end_of_a_feed_of_events(server: Any) -> None:
    asked: list[str | None] = []

    def answer(request: Received) -> Reply:
        asked.append(request.headers.get("last-event-id"))
        wire = ScriptedServer.events(b'id: 7\ndata: {"n": 1}\n\n')
        return ScriptedServer.send(ScriptedServer.response(204) if asked[-1] else wire, close=True)

    with ScriptedServer(answer=answer) as feed:
        source = source_for(feed.root, form="sse", backoff=0.01)
        report = relay(source, server.url("/ended"), close=True)
    assert (asked, report.records, report.place, report.closed) == ([None, "7"], 1, "7", True)


# -- what is stored of a feed, and what is said


EVENTS = b'id: 1\nevent: delete\ndata: 101\n\ndata: {"n": 2}\n\nid: 3\nevent: say\ndata: hello "you"\n\n'
ENVELOPES = [
    {"event": "delete", "id": "1", "data": 101},
    {"event": "message", "id": "1", "data": {"n": 2}},
    {"event": "say", "id": "3", "data": 'hello "you"'},
]


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    feed = ScriptedServer()
    yield feed
    feed.stop()


def reply(body: bytes, kind: str = "application/json") -> Any:
    return ScriptedServer.send(ScriptedServer.response(200, body, content_type=kind))


def test_d9_an_envelope_keeps_types_and_ids(server: Any, scripted: ScriptedServer) -> None:
    scripted.replies = [reply(EVENTS, "text/event-stream")]
    source = source_for(scripted.root, form="sse", follow=False, envelope=True)
    assert relay(source, server.url("/a")).records == 3
    lines = source_for(scripted.root, form="ndjson", follow=False, envelope=True)
    scripted.replies = [reply(b'{"n": 1}\n{x\n2\n')]
    report = relay(lines, server.url("/b"), where=[("data", "2"), ("data.n", "1")])
    assert (report.records, report.invalid, report.filtered) == (0, 1, 2)
    events = FirehoseStream(scripted.root, response_model=FeedEvent, config=StreamConfig(max_retries=0))
    scripted.replies = [reply(EVENTS, "text/event-stream")]
    with pytest.raises(StreamError, match="Gave up"):
        relay(events, server.url("/c"))
    for path in ("/a", "/c"):
        with DurableStream(server.url(path)).stream(live=False) as response:
            assert response.read_json() == ENVELOPES


def test_d9_what_is_no_feed_has_no_envelope(tmp_path: Any) -> None:
    for source, form in ((tmp_path / "x", "auto"), ("-", "auto"), ("http://127.0.0.1:1/s", "stream")):
        with pytest.raises(ValueError, match="An envelope is for records of a feed"):
            source_for(source, form=form, envelope=True)


def test_d9_the_command(home: Any, watch: Any, scripted: ScriptedServer) -> None:
    scripted.replies = [reply(EVENTS, "text/event-stream")]
    options = ("--no-follow", "--format", "sse", "--envelope", "--where", "event=say", "--user-agent", "me/1")
    ended = home.relay(scripted.root, home.url("copy"), *options).finish()
    assert (ended["records"], ended["filtered"]) == (1, 2)
    assert watch.messages(home.url("copy")) == ENVELOPES[2:]
    assert {request.headers["user-agent"] for request in scripted.requests} == {"me/1"}


@pytest.mark.parametrize("options", [(), ("--skip-invalid",), ("--on-invalid", "skip")])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_d11_what_is_left_out_of_a_feed_is_said_at_once(
    home: Any, watch: Any, scripted: ScriptedServer, options: tuple[str, ...], kind: str
) -> None:
    body = b"1\n{x\n{y\n2\n"
    if kind == "text/event-stream":
        body = b"data: 1\n\ndata: {x\n\ndata: {y\n\ndata: 2\n\n"
    scripted.replies = [reply(body, kind)]
    program = watch.program(
        home.folder, "relay", scripted.root, home.url("copy"), "--json", "--no-follow", *options
    )
    output, _ = program.process.communicate(timeout=60)
    ended = json.loads(output.splitlines()[-1])
    said = program.errors.read_text()
    assert (program.process.returncode, ended["records"], ended["invalid"]) == (0 if options else 1, 2, 2)
    assert said.count("left out: ") == 1, said
    assert watch.messages(home.url("copy")) == [1, 2]


def test_d11_a_feed_that_is_down_promises_nothing_and_says_why_once(
    home: Any, watch: Any, scripted: ScriptedServer
) -> None:
    busy = ScriptedServer.send(ScriptedServer.response(503, b'{"title":"Over capacity"}'))
    ends = ScriptedServer.send(ScriptedServer.response(410))
    scripted.replies = [busy, busy, busy, reply(b"data: 1\n\n", "text/event-stream"), busy, busy, ends]
    program = watch.program(
        home.folder, "relay", scripted.root, home.url("copy"), "--format", "sse", "--backoff", "0.01"
    )
    program.process.communicate(timeout=60)
    lines = program.errors.read_text().splitlines()
    assert [line.count("Over capacity") for line in lines[:2]] == [1, 0], lines
    assert lines[1].startswith("durable-streams: exactly once, as long as ")
    assert "\n".join(lines).count("Over capacity") == 2
    assert program.process.returncode == 1


@pytest.mark.parametrize("form", ["auto", "ndjson", "sse", "stream"])
def test_d11_what_is_not_there_promises_nothing(home: Any, watch: Any, form: str) -> None:
    feed = ScriptedServer([ScriptedServer.send(ScriptedServer.response(404))])
    try:
        program = watch.program(home.folder, "relay", feed.root, home.url("copy"), "--format", form)
        output, _ = program.process.communicate(timeout=60)
    finally:
        feed.stop()
    said = program.errors.read_text()
    assert (program.process.returncode, output) == (1, b"")
    assert "exactly once" not in said
    assert "gaps possible" not in said


def test_d11_a_missing_file_promises_nothing(home: Any, watch: Any) -> None:
    program = watch.program(home.folder, "relay", "none.ndjson", home.url("none"))
    program.process.communicate(timeout=60)
    assert "exactly once" not in program.errors.read_text()


def test_where_selects_by_text_number_and_truth(server: Any, tmp_path: Any) -> None:
    records = [{"a": {"b": value}} for value in ("1", 1, 1.0, True, None, "x=y", "true", [1])] + [{"a": 1}, 7]
    (tmp_path / "in.ndjson").write_text("\n".join(map(json.dumps, records)))

    def stored(name: str, *where: tuple[str, str]) -> list[Any]:
        report = relay(tmp_path / "in.ndjson", server.url(name), where=where, state=tmp_path / name[1:])
        assert report.records + report.filtered == len(records)
        if not report.records:
            return []
        with DurableStream(server.url(name)).stream(live=False) as response:
            return [message["a"]["b"] for message in response.read_json()]

    assert stored("/n", ("a.b", "1")) == ["1", 1, 1.0]
    assert stored("/t", ("a.b", "true")) == [True, "true"]
    assert stored("/0", ("a.b", "null")) == [None]
    assert stored("/e", ("a.b", "x=y"), ("a.b", "null")) == [None, "x=y"]
    assert stored("/none", ("a.b", "1"), ("c", "1")) == []
    with pytest.raises(ValueError, match="A field is a path"):
        relay(tmp_path / "in.ndjson", server.url("/n"), where=[("a..b", "1")])
