"""The log of serve: for people, for machines, and never in the way of requests."""

from __future__ import annotations

import json
import logging
import queue
import threading

import pytest

from durable_streams.cli import logs
from durable_streams.testing.program import wait_until


@pytest.fixture
def log_of(serving, bare):
    """Give a function that runs commands on a server with options, and returns the lines of its log."""

    def run(*options: str, commands: list[tuple[str, ...]]) -> list[str]:
        server = serving("--memory", *options)
        for command in commands:
            bare.run(*command)
        code, log = server.stop()
        assert code == 0
        return log.decode().splitlines()

    return run


LIFE = [
    ("create", "jobs/a b", "-t", "text", "secret content"),
    ("--token", "SECRET-TOKEN", "append", "jobs/a b", "more"),
    ("read", "jobs/a b"),
    ("head", "missing"),
    ("delete", "jobs/a b"),
]


def test_nothing_is_logged_by_default(log_of):
    assert log_of(commands=LIFE) == []


def test_requests_and_changes_for_machines(log_of):
    lines = log_of("--log-format", "json", "--access-log", "1", "--audit-log", commands=LIFE)
    records = [json.loads(line) for line in lines]
    assert not any("SECRET" in line or "secret" in line or "offset" in line for line in lines)
    for record in records:
        assert record["time"].endswith("Z")
        assert (record["level"], record["peer"]) == ("info", "127.0.0.1")
    audit = [one for one in records if one["logger"] == "durable_streams.audit"]
    assert [(one["event"], one["path"]) for one in audit] == [
        ("created", "/v1/stream/jobs/a b"),
        ("deleted", "/v1/stream/jobs/a b"),
    ]
    access = [one for one in records if one["logger"] == "durable_streams.access"]
    methods = [(one["method"], one["status"]) for one in access]
    assert ("PUT", 201) in methods
    assert ("POST", 204) in methods
    assert ("HEAD", 404) in methods
    assert ("DELETE", 204) in methods
    assert all(0 <= one["seconds"] < 60 for one in access)


def test_a_line_for_people_is_one_line(log_of):
    lines = log_of("--audit-log", commands=[("create", "x")])
    [line] = lines
    assert " INFO    created method='PUT' path='/v1/stream/x' status=201" in line


@pytest.fixture
def server_log():
    log = logging.getLogger("durable_streams")
    before = log.level
    yield logging.getLogger("durable_streams.server")
    log.setLevel(before)


def test_what_does_not_fit_is_counted_and_nothing_waits(server_log, monkeypatch, capsys):
    """A log that is not read stops the thread that writes, and nothing else."""
    monkeypatch.setattr(logs, "_QUEUED", 5)
    read, written = threading.Event(), []

    def write(records: queue.Queue, formatter: logging.Formatter) -> None:
        read.wait(60)
        while (record := records.get()) is not None:
            written.append(formatter.format(record))

    monkeypatch.setattr(logs, "_write", write)
    with logs.logging_to_stderr("text", "info"):
        for number in range(105):
            server_log.info("record %d", number)
        read.set()
        assert wait_until(lambda: len(written) == 5, 60)
        server_log.warning("the next one")
    assert [line.rpartition(" ")[2] for line in written[:5]] == ["0", "1", "2", "3", "4"]
    assert "100 records were left out" in written[5]
    assert written[6].endswith("the next one")


def test_an_exception_is_a_field(server_log, capsys):
    with logs.logging_to_stderr("json", "error"):
        server_log.error("it failed: %s", "here", exc_info=ValueError("a\nb"))
        server_log.warning("not this")
    [line] = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["message"] == "it failed: here"
    assert "ValueError: a\nb" in record["exception"]
