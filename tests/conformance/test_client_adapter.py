"""The adapter for the public client conformance suite, driven as the suite drives it, against a real server."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from durable_streams.testing import InMemoryStreamServer

ADAPTER = Path(__file__).with_name("client_adapter.py")
numbers = count()


class Suite:
    """What the suite does: starts an adapter, writes commands, reads results."""

    def __init__(self, api: str, server: InMemoryStreamServer) -> None:
        self.server = server
        self.root = server.url("/x").removesuffix("/x")
        command = [sys.executable, "-W", "error", str(ADAPTER), "--api", api]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.started = self.ask("init", serverUrl=self.root, timeoutMs=10_000)

    def ask(self, kind: str, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"type": kind, **command}) + "\n")
        self.process.stdin.flush()
        result: dict[str, Any] = json.loads(self.process.stdout.readline())
        return result

    def succeed(self, kind: str, **command: Any) -> dict[str, Any]:
        result = self.ask(kind, **command)
        assert result["success"] is True, result
        assert result["type"] == kind
        return result

    def fail(self, kind: str, **command: Any) -> dict[str, Any]:
        result = self.ask(kind, **command)
        assert (result["type"], result["success"], result["commandType"]) == ("error", False, kind), result
        return result

    def fresh(self, content_type: str = "text/plain", **options: Any) -> str:
        path = f"/adapter-{next(numbers)}"
        self.succeed("create", path=path, contentType=content_type, **options)
        return path

    def text(self, path: str, **options: Any) -> str:
        return "".join(chunk["data"] for chunk in self.succeed("read", path=path, **options)["chunks"])

    def append_later(self, path: str, data: str, after: float = 0.3) -> None:
        def send() -> None:
            headers = {"Content-Type": "text/plain"}
            urllib.request.urlopen(
                urllib.request.Request(self.root + path, data.encode(), headers, method="POST")
            ).close()

        timer = threading.Timer(after, send)
        timer.daemon = True
        timer.start()


@pytest.fixture(scope="module", params=["sync", "async"])
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    with InMemoryStreamServer() as server:
        suite = Suite(request.param, server)
        yield suite
        assert suite.succeed("shutdown") == {"type": "shutdown", "success": True}
        assert suite.process.wait(20) == 0
        assert suite.process.stderr is not None
        assert suite.process.stderr.read() == ""
        for pipe in (suite.process.stdin, suite.process.stdout, suite.process.stderr):
            assert pipe is not None
            pipe.close()


def test_init_names_the_client_and_what_it_can_do(suite: Suite) -> None:
    assert suite.started["clientName"].startswith("durable-streams")
    assert suite.started["features"]["sse"] is True
    assert suite.started["clientVersion"]


def test_create_says_whether_the_stream_is_new(suite: Suite) -> None:
    path = f"/adapter-{next(numbers)}"
    first = suite.succeed("create", path=path, contentType="text/plain", ttlSeconds=60)
    assert (first["status"], "offset" in first) == (201, True)
    assert suite.succeed("create", path=path, contentType="text/plain", ttlSeconds=60)["status"] == 200
    refused = suite.fail("create", path=path, contentType="application/json")
    assert (refused["status"], refused["errorCode"]) == (409, "CONFLICT")
    head = suite.succeed("head", path=path)
    assert (head["contentType"], head["ttlSeconds"], head["streamClosed"]) == ("text/plain", 60, False)


def test_connect_head_and_delete(suite: Suite) -> None:
    path = suite.fresh()
    assert suite.succeed("connect", path=path)["status"] == 200
    assert suite.succeed("delete", path=path)["status"] == 200
    for kind in ("connect", "head", "delete", "read"):
        gone = suite.fail(kind, path=path)
        assert (gone["status"], gone["errorCode"]) == (404, "NOT_FOUND")


def test_append_and_read(suite: Suite) -> None:
    path = suite.fresh()
    offset = suite.succeed("append", path=path, data="öne\r\n")["offset"]
    suite.succeed("append", path=path, data="two")
    everything = suite.succeed("read", path=path, live=False)
    assert (everything["chunks"][0]["data"], everything["upToDate"]) == ("öne\r\ntwo", True)
    assert suite.text(path, offset=offset) == "two"
    assert suite.fail("read", path=path, offset="no offset")["errorCode"] == "INVALID_OFFSET"


def test_bytes_are_base64(suite: Suite) -> None:
    path = suite.fresh("application/octet-stream")
    suite.succeed("append", path=path, data=base64.b64encode(b"\xff\x00").decode(), binary=True)
    [chunk] = suite.succeed("read", path=path)["chunks"]
    assert (base64.b64decode(chunk["data"]), chunk["binary"]) == (b"\xff\x00", True)


def test_json(suite: Suite) -> None:
    path = suite.fresh("application/json")
    suite.succeed("append", path=path, data='{"a": 1}')
    suite.succeed("append", path=path, data="[2,3]")
    assert suite.text(path) == '[{"a":1},[2,3]]'
    assert suite.succeed("read", path=suite.fresh("application/json"))["chunks"] == []


def test_sequences(suite: Suite) -> None:
    path = suite.fresh()
    suite.succeed("append", path=path, data="a", seq=2)
    refused = suite.fail("append", path=path, data="b", seq=1)
    assert (refused["status"], refused["errorCode"]) == (409, "SEQUENCE_CONFLICT")


@pytest.mark.parametrize("live", ["long-poll", "sse", "auto"])
def test_live_reads(suite: Suite, live: str) -> None:
    path = suite.fresh()
    suite.succeed("append", path=path, data="first")
    ready = suite.succeed("read", path=path, live=live, waitForUpToDate=True)
    assert ([chunk["data"] for chunk in ready["chunks"]], ready["upToDate"]) == (["first"], True)
    suite.append_later(path, "second")
    news = suite.succeed("read", path=path, live=live, offset=ready["offset"], maxChunks=1, timeoutMs=8000)
    assert [chunk["data"] for chunk in news["chunks"]] == ["second"]
    silent = suite.succeed("read", path=path, live=live, offset=news["offset"], timeoutMs=300)
    assert (silent["chunks"], silent["upToDate"], silent["offset"]) == ([], True, news["offset"])


def test_a_closed_stream(suite: Suite) -> None:
    path = suite.fresh(data="all of it", closed=True)
    read = suite.succeed("read", path=path)
    assert (read["chunks"][0]["data"], read["streamClosed"]) == ("all of it", True)
    path = suite.fresh()
    closed = suite.succeed("close", path=path, data="the end")
    assert (closed["status"], bool(closed["finalOffset"])) == (200, True)
    assert suite.succeed("close", path=path)["finalOffset"] == closed["finalOffset"]
    assert suite.succeed("head", path=path)["streamClosed"] is True
    assert suite.fail("append", path=path, data="more")["errorCode"] == "STREAM_CLOSED"
    ended = suite.succeed("read", path=path, offset=closed["finalOffset"], live="long-poll")
    assert (ended["chunks"], ended["streamClosed"]) == ([], True)


def test_fork(suite: Suite) -> None:
    path = suite.fresh()
    suite.succeed("append", path=path, data="shared")
    assert suite.succeed("fork", path=path, newPath=f"{path}-fork")["status"] == 201
    assert suite.text(f"{path}-fork") == "shared"


def test_an_idempotent_producer(suite: Suite) -> None:
    path = suite.fresh()
    options = {"path": path, "producerId": "p", "epoch": 0, "autoClaim": False}
    first = suite.succeed("idempotent-append", data="a", **options)
    assert (first["producerSeq"], first["duplicate"]) == (0, False)
    assert suite.succeed("idempotent-append", data="b", **options)["producerSeq"] == 1
    suite.succeed("idempotent-append-batch", items=["c", "d"], **options)
    assert suite.text(path) == "abcd"
    suite.succeed("idempotent-append", data="e", **{**options, "epoch": 1})
    stale = suite.fail("idempotent-append", data="f", **options)
    assert (stale["status"], stale["errorCode"], stale["details"]["current_epoch"]) == (403, "STALE_EPOCH", 1)
    assert suite.succeed("idempotent-append", data="f", **{**options, "autoClaim": True})["status"] == 200
    assert suite.text(path) == "abcdef"


def test_a_producer_that_is_detached_or_closes_the_stream(suite: Suite) -> None:
    path = suite.fresh()
    options = {"path": path, "producerId": "p"}
    suite.succeed("idempotent-append", data="a", **options)
    assert suite.succeed("idempotent-detach", **options)["status"] == 200
    assert suite.succeed("head", path=path)["streamClosed"] is False
    assert suite.succeed("idempotent-close", data="z", path=path, producerId="q")["status"] == 200
    assert suite.succeed("read", path=path)["streamClosed"] is True
    late = suite.fail("idempotent-close", data="more", path=path, producerId="r")
    assert (late["status"], late["errorCode"]) == (409, "STREAM_CLOSED")


def test_dynamic_headers_and_parameters(suite: Suite) -> None:
    path = suite.fresh()
    suite.succeed("set-dynamic-header", name="X-Count", valueType="counter")
    suite.succeed("set-dynamic-header", name="X-Token", valueType="token", initialValue="t1")
    suite.succeed("set-dynamic-param", name="n", valueType="counter")
    for number in ("1", "2"):
        sent = suite.succeed("append", path=path, data="a")
        assert sent["headersSent"] == {"X-Count": number, "X-Token": "t1"}
        assert sent["paramsSent"] == {"n": number}
    assert suite.succeed("read", path=path)["headersSent"]["X-Count"] == "3"
    suite.succeed("clear-dynamic")
    assert "headersSent" not in suite.succeed("append", path=path, data="a")


@pytest.mark.parametrize(
    ("target", "valid"),
    [
        ({"target": "retry-options", "maxRetries": 3, "initialDelayMs": 100, "maxDelayMs": 1000}, True),
        ({"target": "retry-options", "maxRetries": -2}, False),
        ({"target": "retry-options", "initialDelayMs": 1000, "maxDelayMs": 10}, False),
        ({"target": "retry-options", "multiplier": 0.5}, False),
        ({"target": "idempotent-producer", "producerId": "p", "epoch": 1, "maxBatchBytes": 10}, True),
        ({"target": "idempotent-producer", "producerId": ""}, False),
        ({"target": "idempotent-producer", "producerId": "p", "epoch": -1}, False),
        ({"target": "idempotent-producer", "producerId": "p", "maxBatchBytes": 0}, False),
    ],
)
def test_validation(suite: Suite, target: dict[str, Any], valid: bool) -> None:
    assert suite.ask("validate", target=target)["success"] is valid


def test_a_refused_setting_is_named_as_the_suite_names_it(suite: Suite) -> None:
    target = {"target": "idempotent-producer", "producerId": "p", "maxBatchBytes": 0}
    refused = suite.fail("validate", target=target)
    assert refused["errorCode"] == "INVALID_ARGUMENT"
    assert "maxBatchBytes" in refused["message"]


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "create"},
        {"op": "append", "size": 100},
        {"op": "read"},
        {"op": "roundtrip", "size": 100, "live": "sse"},
        {"op": "throughput_append", "count": 50, "size": 10, "concurrency": 4},
    ],
    ids=lambda operation: operation["op"],
)
def test_benchmarks(suite: Suite, operation: dict[str, Any]) -> None:
    path = f"/adapter-{next(numbers)}"
    if operation["op"] not in {"create", "roundtrip"}:
        path = suite.fresh()
    done = suite.succeed("benchmark", iterationId="7", operation={**operation, "path": path})
    assert (done["iterationId"], int(done["durationNs"]) > 0) == ("7", True)


def test_benchmark_of_reading_messages(suite: Suite) -> None:
    path = suite.fresh("application/json", data="1")
    suite.succeed("append", path=path, data='{"a": 2}')
    operation = {"op": "throughput_read", "path": path}
    done = suite.succeed("benchmark", iterationId="8", operation=operation)
    assert done["metrics"]["messagesProcessed"] == 2


def test_a_dead_server_and_an_unknown_command(suite: Suite) -> None:
    assert suite.fail("dance")["errorCode"] == "NOT_SUPPORTED"
    suite.succeed("init", serverUrl="http://127.0.0.1:9")
    assert suite.fail("append", path="/x", data="a")["errorCode"] == "NETWORK_ERROR"
    suite.succeed("init", serverUrl=suite.root)
