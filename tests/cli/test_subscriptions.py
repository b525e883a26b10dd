"""subscribe, subscriptions and worker."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import time

import pytest


@pytest.fixture
def whole(bare, shared_server):
    """Give commands with the root of the whole server: subscriptions are beside its streams."""
    bare.root = shared_server.root
    return bare


def until(condition, within=30.0):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_subscription_from_its_creation_to_its_end(whole):
    whole.ok("create", "life/wakes", "-t", "json")
    arguments = (
        "subscribe",
        "cycle",
        "--pattern",
        "cycle/*",
        "--wake-stream",
        "life/wakes",
        "--lease",
        "2s",
    )
    assert whole.ok(*arguments) == b"created cycle (pull-wake, 0 streams now)\n"
    assert whole.ok(*arguments) == b"found cycle (pull-wake, 0 streams now)\n"
    whole.ok("create", "cycle/1", "-t", "json", '{"n": 1}')
    assert b"cycle\n" in whole.ok("subscriptions", "ls")
    shown = json.loads(whole.ok("subscriptions", "show", "cycle", "--json"))
    assert (shown["type"], shown["lease_ttl_ms"], shown["wake_stream"]) == ("pull-wake", 2000, "life/wakes")
    until(lambda: b"cycle/1  glob  -1  9 bytes behind" in whole.ok("subscriptions", "show", "cycle"))
    assert json.loads(whole.ok("subscriptions", "show", "cycle", "--json"))["lag_bytes"] == 9
    assert b" cycle (9 bytes behind)\n" in whole.ok("info", "cycle/1")
    (follower,) = json.loads(whole.ok("info", "cycle/1", "--json"))["subscriptions"]
    assert follower == {"id": "cycle", "acked_offset": "-1", "lag_bytes": 9}
    assert b"subscriptions" not in whole.ok("info", "life/wakes")
    whole.ok("subscriptions", "delete", "cycle")
    assert "404" in whole.error("subscriptions", "show", "cycle")


NO_SENSE = [
    (["subscribe", "x", "--pattern", "a"], "--wake-stream or --webhook", 2),
    (["subscribe", "x", "--pattern", "a", "--webhook", "https://a.com", "--wake-stream", "w"], "either", 2),
    (["subscribe", "x", "--wake-stream", "w"], "needs a pattern", 1),
    (["subscribe", "x", "--pattern", "a", "--wake-stream", "missing"], "create it first", 1),
    (["subscriptions", "show"], "take one", 2),
    (["worker", "x"], "--exec", 2),
    (["worker", "missing", "--exec", "true"], "missing", 1),
    (["worker", "x", "--exec", "true", "--max-failures", "2"], "--dead-letter", 2),
    (["worker", "x", "--exec", "true", "--ack", "manual"], "--ack", 2),
    (["worker", "x", "--exec", "true", "--max-concurrent-streams", "0"], "--max-concurrent-streams", 2),
]


def test_what_makes_no_sense(whole):
    for arguments, said, code in NO_SENSE:
        assert said in whole.error(*arguments, code=code), arguments


def test_a_worker_runs_a_command_for_each_batch(whole):
    whole.ok("create", "run/wakes", "-t", "json")
    whole.ok("subscribe", "work", "--pattern", "work/**", "--wake-stream", "run/wakes")
    handled = whole.folder / "handled"
    # It fails the first time that it sees a message 2.
    command = (
        f'data=$(cat); echo "$DURABLE_STREAMS_PATH $data" >> {handled}; '
        f'if [ "$data" = 2 ] && ! [ -e {handled}.failed ]; then touch {handled}.failed; exit 3; fi'
    )
    process = whole.spawn("worker", "work", "--exec", command)
    whole.ok("create", "work/json", "-t", "json", "1")
    until(lambda: handled.exists() and handled.read_text() == "work/json 1\n")
    whole.ok("append", "work/json", "2")
    until(lambda: handled.read_text().count("work/json 2\n") == 2)
    whole.ok("create", "work/text/a", "-t", "text", "some text")
    until(lambda: "work/text/a some text\n" in handled.read_text())

    def acknowledged():
        shown = json.loads(whole.ok("subscriptions", "show", "work", "--json"))
        return all(link["acked_offset"] != "-1" for link in shown["streams"])

    until(acknowledged)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"exit code 3; again in 1 s" in errors


def test_what_a_command_fails_on_is_a_dead_letter(whole):
    whole.ok("create", "poison/wakes", "-t", "json")
    whole.ok("subscribe", "poisoned", "--pattern", "poisoned/*", "--wake-stream", "poison/wakes")
    whole.ok("create", "poisoned/a", "-t", "json", '{"n": 1e2}')
    whole.ok("create", "poisoned/b", "-t", "json", "2")
    handled = whole.folder / "handled"
    process = whole.spawn(
        "worker",
        "poisoned",
        "--exec",
        f"case $DURABLE_STREAMS_PATH in */a) exit 3;; esac; cat >> {handled}",
        *("--dead-letter", "poison/dead", "--max-failures", "1", "--max-concurrent-streams", "2"),
    )
    until(lambda: handled.exists() and handled.read_text() == "2\n")
    until(lambda: b"poisoned/a" in whole.run("read", "poison/dead").stdout)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    (letter,) = json.loads(whole.ok("read", "poison/dead"))
    assert (letter["items"], letter["failures"]) == ([{"n": 1e2}], 1)
    assert letter["error"].endswith("exit code 3")


def test_a_new_key_for_webhooks(bare, serving):
    server = serving("--data-dir", "data")

    def keys():
        with contextlib.closing(http.client.HTTPConnection(server.root.split("/")[2])) as connection:
            connection.request("GET", "/v1/stream/__ds/jwks.json")
            return [key["kid"] for key in json.loads(connection.getresponse().read())["keys"]]

    (first,) = keys()
    assert "data" in bare.error("webhook-key", "rotate", "--data-dir", "data")  # a server has it open
    server.stop()
    assert "signs_from" in json.loads(bare.ok("webhook-key", "rotate", "--data-dir", "data", "--json"))
    assert "--store" in bare.error("webhook-key", "rotate", code=2)
    server = serving("--data-dir", "data")
    published = keys()
    assert len(published) == 2
    assert first in published
