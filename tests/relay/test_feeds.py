"""Feeds over HTTP as a relay's source, and the relay as a command."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from durable_streams import DurableStream
from durable_streams.firehose import FirehoseStream, StreamConfig
from durable_streams.firehose.records import RecordSplitter
from durable_streams.relay import Relay, relay, source_for
from durable_streams.testing import InMemoryStreamServer
from xdk_testing import XFilteredStream


class EventFeed:
    """Server-sent events, three a connection, which it begins after the Last-Event-ID."""

    def __init__(self, count: int) -> None:
        self.asked: list[tuple[str | None, str | None]] = []
        feed = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                last = self.headers["Last-Event-ID"]
                feed.asked.append((last, self.headers["Authorization"]))
                first = int(last) + 1 if last else 0
                for number in range(first, min(count, first + 3)):
                    self.wfile.write(
                        b': life\r\nid: %d\r\ndata: {\r\ndata: "n": %d}\r\n\r\n' % (number, number)
                    )
                self.wfile.write(b'id: lost\r\ndata: {"n": "torn"}')

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/events?key=secret"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


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

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Last-Event-ID"])
            self.send_response(204 if asked[-1] else 200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            if not asked[-1]:
                self.wfile.write(b'id: 7\ndata: {"n": 1}\n\n')

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            pass

    feed = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=feed.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        source = source_for(f"http://127.0.0.1:{feed.server_port}/", form="sse", backoff=0.01)
        report = relay(source, server.url("/ended"), close=True)
    finally:
        feed.shutdown()
        feed.server_close()
    assert (asked, report.records, report.place, report.closed) == ([None, "7"], 1, "7", True)
