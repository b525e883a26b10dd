"""The relay in this process: what it stores, what it leaves out, where it goes on, what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_streams import DurableStream, DurableStreamError, RetryPolicy, StreamNotFoundError
from durable_streams.relay import FileSource, Gap, IterableSource, Record, Relay, Source, relay
from durable_streams.relay.dedupe import IdWindow, id_reader
from durable_streams.relay.state import StateFile, default_path
from durable_streams.testing import InMemoryStreamServer


@pytest.fixture
def server() -> Iterator[InMemoryStreamServer]:
    with InMemoryStreamServer() as server:
        yield server


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def numbers(path: Path, *values: int) -> Path:
    with path.open("a") as file:
        file.writelines(f'{{"n": {value}}}\n' for value in values)
    return path


@contextlib.contextmanager
def running(relay: Relay) -> Iterator[list[BaseException]]:
    """Run a relay in a thread; what it raises is in the list once it is over."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            relay.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield raised
    finally:
        relay.stop(grace=0)
        thread.join(30)
        assert not thread.is_alive()


# -- files


@pytest.mark.parametrize("older", [False, True])
def test_g11_what_it_keeps_is_its_owners(server: Any, tmp_path: Path, older: bool) -> None:
    ours, before = tmp_path / "state" / "durable-streams", os.umask(0o022)
    try:
        if older:  # as it made them
            (ours / "relay").mkdir(parents=True)
        relay(numbers(tmp_path / "in.ndjson", 1), server.url("/copy"))
    finally:
        os.umask(before)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (ours, ours / "relay")] == [0o700, 0o700]
    files = list((ours / "relay").iterdir())
    assert files
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_file_is_stored_once_however_often_it_is_relayed(server: Any, watch: Any, tmp_path: Path) -> None:
    source, target = numbers(tmp_path / "in.ndjson", 1, 2, 2), server.url("/copy")
    assert relay(source, target).records == 3
    assert relay(source, target).records == 0
    numbers(source, 3)
    assert relay(source, target).records == 1
    assert watch.messages(target) == [{"n": n} for n in (1, 2, 2, 3)]


def test_what_is_stored_but_not_in_the_state_is_not_stored_again(
    server: Any, watch: Any, tmp_path: Path
) -> None:
    source, target, state = (
        numbers(tmp_path / "in.ndjson", 1, 1, 1, 2),
        server.url("/copy"),
        tmp_path / "state",
    )
    first = Relay(source, target, state=state)
    first.run()
    early = json.loads(state.read_bytes())
    # As if it had been killed after the last acknowledgement, before any save.
    early |= {"clean": False, "offset": "-1"}
    early.pop("place")
    state.write_text(json.dumps(early))
    numbers(source, 1, 3)
    report = relay(source, target, state=state)
    assert watch.messages(target) == [{"n": n} for n in (1, 1, 1, 2, 1, 3)]
    assert (report.records, report.skipped) == (1, 5)


@pytest.mark.parametrize("again", [0.0, 0.5, 1.5], ids=["after", "about with", "before"])
@pytest.mark.parametrize("ids", [None, "n"], ids=["by place", "by id"])
def test_a_request_that_arrives_late_is_not_stored_twice(
    server: Any, watch: Any, tmp_path: Path, again: float, ids: str | None
) -> None:
    """The last request of a killed run is delayed, and so is the first one of the next run, which has read the tail."""
    source, target, state = numbers(tmp_path / "in.ndjson", 1, 2), server.url("/copy"), tmp_path / "state"
    relay(source, target, state=state, id_field=ids)
    numbers(source, 3, 4, 5)
    server.faults.delay(1.0, method="POST")
    killed = Relay(source, target, state=state, id_field=ids)
    with running(killed) as raised:
        watch.until(lambda: killed.report().pending == 3, "the request")
        time.sleep(0.1)  # until it is under way
    assert raised[0].code == "UNACKNOWLEDGED"  # type: ignore[attr-defined]
    assert watch.messages(target) == [{"n": 1}, {"n": 2}]
    numbers(source, 6)
    if again:
        server.faults.delay(0.0, method="POST")  # the question for the number
        server.faults.delay(again, method="POST")
    relay(source, target, state=state, id_field=ids)
    time.sleep(1.2)  # by now the late one has arrived too
    assert watch.messages(target) == [{"n": n} for n in range(1, 7)]


def test_a_request_that_arrives_just_in_time_is_not_stored_twice(
    server: Any, watch: Any, tmp_path: Path
) -> None:
    source, target, state = numbers(tmp_path / "in.ndjson", 1, 2), server.url("/copy"), tmp_path / "state"
    server.faults.stall(method="POST")  # executed, never answered
    killed = Relay(source, target, state=state)
    with running(killed):
        watch.until(lambda: watch.tail(target) not in {"", "0000000000000000_0000000000000000"}, "the data")
    numbers(source, 3)
    relay(source, target, state=state)
    assert watch.messages(target) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_another_writer_does_not_disturb(server: Any, watch: Any, tmp_path: Path) -> None:
    source, target, state = numbers(tmp_path / "in.ndjson", 1, 2), server.url("/copy"), tmp_path / "state"
    server.faults.stall(method="POST")
    with running(Relay(source, target, state=state)):
        watch.until(lambda: watch.tail(target) not in {"", "0000000000000000_0000000000000000"}, "the data")
    with DurableStream(target) as handle:
        handle.append({"other": 1})
    numbers(source, 3)
    relay(source, target, state=state)
    assert watch.messages(target) == [{"n": 1}, {"n": 2}, {"other": 1}, {"n": 3}]


@pytest.mark.parametrize(
    ("content", "message"), [("", "is shorter than"), ('{"m": 1}\n{"m": 2}\n', "its first bytes are others")]
)
def test_another_file_of_the_same_name_is_refused(
    server: Any, tmp_path: Path, content: str, message: str
) -> None:
    source = numbers(tmp_path / "in.ndjson", 1, 2)
    relay(source, server.url("/copy"))
    source.write_text(content)
    with pytest.raises(DurableStreamError, match=message):
        relay(source, server.url("/copy"))


def test_lines_of_text(server: Any, tmp_path: Path) -> None:
    source, target = tmp_path / "in.log", server.url("/copy")
    source.write_bytes(b"\xef\xbb\xbfone\r\n\ntwo\xff\nlast")
    relay(source, target, state=tmp_path / "state")
    state = json.loads((tmp_path / "state").read_bytes())
    (tmp_path / "state").write_text(json.dumps({**state, "clean": False, "offset": "-1", "place": None}))
    relay(source, target, state=tmp_path / "state")
    with DurableStream(target).stream(live=False) as response:
        assert response.content_type == "text/plain"
        assert response.read_bytes() == b"one\ntwo\xff\nlast\n"


def test_a_line_that_is_not_json_ends_it_after_what_is_before_it(
    server: Any, watch: Any, tmp_path: Path
) -> None:
    source, target = tmp_path / "in.ndjson", server.url("/copy")
    source.write_text("1\n2\n{x\n3\n")
    with pytest.raises(
        DurableStreamError, match=r"Record 3 of .* cannot be stored: the text is not valid JSON"
    ) as caught:
        relay(source, target)
    assert caught.value.code == "INVALID_RECORD"
    assert watch.messages(target) == [1, 2]
    source.write_text("1\n2\n7\n3\n")
    relay(source, target)
    assert watch.messages(target) == [1, 2, 7, 3]


# -- ids


def test_ids_are_known_again_without_any_state(server: Any, watch: Any, tmp_path: Path) -> None:
    records = [{"data": {"id": str(n % 5)}} for n in range(10)]
    target = server.url("/copy")
    report = relay(records, target, id_field="data.id", state=tmp_path / "one")
    assert (report.records, report.skipped) == (5, 5)
    again = relay([*records, {"data": {"id": "new"}}], target, id_field="data.id", state=tmp_path / "two")
    assert (again.records, again.skipped) == (1, 10)
    assert [message["data"]["id"] for message in watch.messages(target)] == ["0", "1", "2", "3", "4", "new"]


def test_records_without_an_id_are_always_stored(server: Any, watch: Any) -> None:
    relay([{"id": 1}, {"a": 1}, {"id": 1}, {"a": 1}, [1]], server.url("/copy"), id_field="id")
    assert len(watch.messages(server.url("/copy"))) == 4


def test_a_window_forgets_the_oldest_and_knows_where_it_begins() -> None:
    window = IdWindow(3, "-1")
    for number in range(10):
        window.add(number)
        window.mark(window.added, f"{number:02}")
    assert [number in window for number in range(10)] == [False] * 7 + [True] * 3
    assert window.start == "06"


@pytest.mark.parametrize(
    ("path", "record", "expected"),
    [
        ("id", b'{"id": "a"}', "a"),
        ("data.id", b'{"x": [], "data": {"y": 1, "id": 12345678901234567890}}', 12345678901234567890),
        ("data-set.the id", b'{"data-set": {"the id": "b"}}', "b"),
        ("data.id", b'{"data": null}', None),
        ("data.id", b'{"data": [1]}', None),
        ("id", b'{"id": true}', None),
        ("id", b"[1]", None),
        ("id", b"{x", None),
    ],
)
def test_where_an_id_is(path: str, record: bytes, expected: object) -> None:
    assert id_reader(path)(record) == expected


def test_an_id_field_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"data\.id"):
        Relay([], "http://127.0.0.1:1/v1/stream/x", id_field="a..b")


# -- gaps, backpressure, stopping


class Broken(Source):
    """A source that says that it missed something."""

    name = "a broken feed"

    def records(self, saved: Any = None) -> Any:  # noqa: ARG002 - it has no places
        yield Record(b"1")
        yield Gap(2.5, "the last")
        yield Record(b"2")


def test_gaps_are_stored_on_request(server: Any, watch: Any) -> None:
    report = relay(Broken(), server.url("/told"), gap_events=True)
    assert (report.records, report.gaps) == (3, 1)
    gap = {"relay": "gap", "source": "a broken feed", "seconds": 2.5, "last_seen": "the last"}
    assert watch.messages(server.url("/told")) == [1, gap, 2]
    relay(Broken(), server.url("/untold"))
    assert watch.messages(server.url("/untold")) == [1, 2]


def test_a_target_that_takes_nothing_stops_the_reading(server: Any, watch: Any) -> None:
    taken = [0]

    def endless() -> Iterator[bytes]:
        while True:
            taken[0] += 1
            yield b'"%s"' % (b"x" * 100_000)

    server.faults.respond(503, times=None, method="POST")
    slow = Relay(endless(), server.url("/copy"))
    with running(slow) as raised:
        watch.until(lambda: taken[0] > 50, "reading")
        before = -1
        while before != taken[0]:
            before = taken[0]
            time.sleep(0.3)
        assert taken[0] < 200, "8 MiB and no more"
    assert raised[0].code == "UNACKNOWLEDGED"  # type: ignore[attr-defined]


def test_stop_lets_everything_be_stored(server: Any, watch: Any) -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    relaying = Relay(endless(), server.url("/copy"))
    thread = threading.Thread(target=lambda: reports.append(relaying.run()))
    reports: list[Any] = []
    thread.start()
    watch.until(lambda: relaying.report().records > 100, "records")
    relaying.stop()
    thread.join(30)
    stored = watch.messages(server.url("/copy"))
    assert stored == list(range(len(stored)))
    assert reports[0].records == len(stored)


def test_a_source_that_fails_leaves_what_it_gave(server: Any, watch: Any) -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise RuntimeError("the end")

    with pytest.raises(RuntimeError, match="the end"):
        relay(failing(), server.url("/copy"))
    assert watch.messages(server.url("/copy")) == [1, 2]


# -- targets and states


def test_a_target_that_is_missing(server: Any, tmp_path: Path) -> None:
    with pytest.raises(StreamNotFoundError):
        relay([1], server.url("/none"), create=False)
    source, target = numbers(tmp_path / "in.ndjson", 1), server.url("/copy")
    relay(source, target)
    DurableStream(target).delete()
    with pytest.raises(DurableStreamError, match="remove that file to relay from the beginning"):
        relay(source, target)
    DurableStream.create(target, content_type="application/json")
    with pytest.raises(DurableStreamError, match="gone or shorter"):
        relay(source, target)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses of a relay whose target is away short."""
    quick = RetryPolicy(max_retries=-1, initial_delay=0.01, max_delay=0.02)
    monkeypatch.setattr("durable_streams.client.patience._PAUSES", quick)
    monkeypatch.setattr("durable_streams.relay.target._QUICK", RetryPolicy(max_retries=0))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fault", ["respond", "reset"])
def test_d11_a_target_that_is_away_at_the_start_is_waited_for(
    server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """For as long as ``retry_for`` says, which is forever here; the cause is said once."""
    source, target = numbers(tmp_path / "in.ndjson", 1, 2), server.url("/copy")
    arm = {
        "respond": lambda: server.faults.respond(503, times=30),
        "reset": lambda: server.faults.reset(times=30),
    }
    arm[fault]()
    assert relay(source, target).records == 2
    assert server.faults.pending == 0
    assert [record.message.count("trying again until it answers") for record in caplog.records] == [1]
    numbers(source, 3)
    arm[fault]()
    assert relay(source, target).records == 1


@pytest.mark.usefixtures("hurried")
def test_d11_what_a_killed_run_left_is_settled_with_a_target_that_is_away(
    server: Any, watch: Any, tmp_path: Path
) -> None:
    source, target = numbers(tmp_path / "in.ndjson", 1), server.url("/copy")
    server.faults.stall(method="POST")  # executed, never answered
    with running(Relay(source, target)):
        watch.until(lambda: watch.messages(target) == [{"n": 1}] if watch.tail(target) else False)
    for method in ("HEAD", "POST", "GET"):
        server.faults.respond(503, times=20, method=method)
    numbers(source, 2)
    relay(source, target)
    assert watch.messages(target) == [{"n": 1}, {"n": 2}]


@pytest.mark.usefixtures("hurried")
def test_d11_the_wait_for_a_target_has_its_end(
    server: Any, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.respond(503, times=None)
    with pytest.raises(DurableStreamError) as caught:
        relay([1], server.url("/copy"), retry_for=0.2)
    assert caught.value.status == 503
    assert "trying again for up to 0 s" in caplog.text
    waiting = Relay([1], server.url("/copy"))
    with running(waiting) as raised:
        watch.until(lambda: "trying again until it answers" in caplog.text)
        waiting.stop()
        watch.until(lambda: bool(raised))
    assert isinstance(raised[0], DurableStreamError)
    server.faults.clear()
    server.faults.respond(401)
    with pytest.raises(DurableStreamError, match="answered 401"):
        relay([1], server.url("/copy"))


def test_d11_a_target_that_fails_meanwhile_is_said_once(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults.respond(503, times=3, method="POST")
    assert relay([1, 2], server.url("/copy")).records == 2
    assert [record.message.count("answered 503") for record in caplog.records] == [1]


def test_a_target_of_another_type(server: Any) -> None:
    DurableStream.create(server.url("/text"), content_type="text/plain")
    with pytest.raises(DurableStreamError, match="holds text/plain, not application/json"):
        relay([1], server.url("/text"), content_type="application/json")
    relay(["a", b"b"], server.url("/text"))
    with DurableStream(server.url("/text")).stream(live=False) as response:
        assert response.read_text() == "a\nb\n"


def test_closing_behind_the_last_record(server: Any, tmp_path: Path) -> None:
    source, target = numbers(tmp_path / "in.ndjson", 1), server.url("/copy")
    assert relay(source, target, close=True).closed
    assert DurableStream(target).head().stream_closed
    assert relay(source, target, close=True).closed


def test_one_relay_at_a_time(server: Any, watch: Any, tmp_path: Path) -> None:
    source, state = numbers(tmp_path / "in.ndjson", 1), tmp_path / "state"
    first = Relay(FileSource(source, follow=True), server.url("/copy"), state=state)
    with running(first):
        watch.until(lambda: first.report().records == 1, "a record")
        with pytest.raises(DurableStreamError, match="another relay uses"):
            relay(source, server.url("/copy"), state=state)


@pytest.mark.parametrize("damage", ["moved", "replaced", "lock removed"])
def test_f2_a_state_that_is_not_where_it_was(server: Any, watch: Any, tmp_path: Path, damage: str) -> None:
    """Another relay could be at work there by now, on a state of its own."""
    folder = tmp_path / "place"
    folder.mkdir()
    source = numbers(tmp_path / "in.ndjson", 1)
    first = Relay(FileSource(source, follow=True), server.url("/copy"), state=folder / "state")
    with running(first) as raised:
        watch.until(lambda: first.report().records == 1, "a record")
        if damage == "lock removed":
            (folder / ".state.lock").unlink()
        else:
            folder.rename(tmp_path / "elsewhere")
        if damage == "replaced":
            folder.mkdir()
        left = sorted(folder.iterdir()) if folder.exists() else None
        watch.until(lambda: (numbers(source, 2), time.sleep(0.1), raised)[2], "its end")
        assert (sorted(folder.iterdir()) if folder.exists() else None) == left
    assert raised[0].code == "CHECKPOINT"  # type: ignore[attr-defined]


def test_a_state_of_something_else(server: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    relay(numbers(tmp_path / "a", 1), server.url("/copy"), state=state)
    with pytest.raises(DurableStreamError, match="is the state of a relay from"):
        relay(numbers(tmp_path / "b", 1), server.url("/copy"), state=state)
    with pytest.raises(DurableStreamError, match="is the checkpoint of"):
        relay(tmp_path / "a", server.url("/other"), state=state)
    state.write_text('{"offset": "-1"}')
    with pytest.raises(DurableStreamError, match="is not the state of a relay"):
        relay(tmp_path / "a", server.url("/copy"), state=state)


def test_each_source_says_what_it_guarantees(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/v1/stream/x"
    assert Relay(numbers(tmp_path / "a", 1), url).guarantee.startswith("exactly once: ")
    assert Relay(IterableSource([1]), url).guarantee.startswith("at least once: ")
    assert Relay([1], url, id_field="id").guarantee.startswith("exactly once for what ")


def test_what_is_no_source() -> None:
    with pytest.raises(TypeError, match="A relay reads"):
        Relay(5, "http://127.0.0.1:1/v1/stream/x")  # type: ignore[arg-type]


def test_e3_no_lock_stays_behind(server: Any, watch: Any, tmp_path: Path) -> None:
    folder = tmp_path / "places"
    folder.mkdir()
    source, state = numbers(tmp_path / "in.ndjson", 1), folder / "state"
    DurableStream.create(server.url("/text"), content_type="text/plain")
    with pytest.raises(DurableStreamError, match="holds text/plain"):
        relay(source, server.url("/text"), state=state, content_type="application/json")
    assert not list(folder.iterdir()), "it was refused"
    first = Relay(FileSource(source, follow=True), server.url("/copy"), state=state)
    with running(first):
        watch.until(lambda: first.report().records == 1, "a record")
        with pytest.raises(DurableStreamError, match="another relay uses"):
            relay(source, server.url("/copy"), state=state)
        assert len(list(folder.iterdir())) == 2, "the lock of the one that runs is there"
        first.stop()
    assert [file.name for file in folder.iterdir()] == ["state"]
    assert relay(source, server.url("/copy"), state=state).records == 0


def test_e3_a_lock_that_was_removed_meanwhile_is_no_lock(tmp_path: Path) -> None:
    """Many take turns at one lock, which each removes at its end: no two have it at a time."""
    inside, most, turns = [0], [0], []
    counting = threading.Lock()

    def take_turns() -> None:
        file = StateFile(tmp_path / "state", "source", "http://127.0.0.1:1/target")
        while len(turns) < 400:
            with contextlib.suppress(DurableStreamError), file.locked():
                with counting:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    turns.append(1)
                time.sleep(0)
                with counting:
                    inside[0] -= 1

    threads = [threading.Thread(target=take_turns) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_e3_tests_keep_their_state_apart(state_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the folder of this module's own tests
    assert default_path("source", "target").is_relative_to(state_home)
