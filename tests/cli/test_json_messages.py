"""What the commands take for a JSON message, and what they do with others."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from scripted import Received, ScriptedServer

STRANGE = [
    rb'{"id":1,"t":"a\ud83d"}',
    b"[" * 511 + b"1.50" + b"]" * 511,
    b"-1e400",
    b"9" * 4300,
    b'{"a":1,"a":2}',
]
INVALID = [b"[" * 513 + b"]" * 513, b"9" * 4301, b"NaN", b'"\xff"', b"{x"]


def test_a7_strange_lines_go_in_and_come_out(cli):
    cli.ok("create", "s", "-t", "json")
    cli.ok("append", "s", "--ndjson", stdin=b"\n".join(STRANGE) + b"\n")
    for message in STRANGE[:1] + STRANGE[2:]:
        cli.ok("append", "s", message.decode().lstrip("-") if message == STRANGE[2] else message.decode())
    for message in STRANGE:
        cli.ok("append", "s", "--file", "-", stdin=message)
    cli.ok("create", "s2", "-t", "json", "--file", "-", stdin=STRANGE[0])
    cli.ok("close", "s2", "--file", "-", stdin=STRANGE[1])
    lines = cli.ok("read", "s", "--ndjson").splitlines()
    assert lines == [*STRANGE, STRANGE[0], b"1e400", *STRANGE[3:], *STRANGE]
    assert cli.ok("tail", "s2", "--ndjson").splitlines() == STRANGE[:2]


@pytest.mark.parametrize("number", range(len(INVALID)))
def test_a7_what_the_rule_refuses_is_one_line_of_error(cli, number: int):
    bad = INVALID[number]
    cli.ok("create", "s", "-t", "json")
    for command in (("append", "s"), ("close", "s"), ("create", "new", "-t", "json")):
        assert "not valid JSON" in cli.error(*command, "--file", "-", stdin=bad)
    lines = b"1\n" + bad + b"\n2\n" + bad
    message = cli.error("append", "s", "--ndjson", stdin=lines)
    assert message.startswith("durable-streams: line 2 of standard input is not valid JSON: ")
    assert cli.ok("read", "s", "--ndjson") == b"1\n"
    done = cli.run("append", "s", "--ndjson", "--on-invalid", "skip", "--json", stdin=lines)
    assert done.returncode == 0
    told = done.stderr.decode().splitlines()
    assert told[0].startswith("durable-streams: left out: line 2 of standard input is not valid JSON: ")
    assert told[1:] == ["durable-streams: 2 invalid messages were left out"]
    assert {k: json.loads(done.stdout)[k] for k in ("records", "invalid")} == {"records": 2, "invalid": 2}
    assert cli.ok("read", "s", "--ndjson") == b"1\n1\n2\n"


@pytest.fixture
def old() -> Iterator[str]:
    """Give the URL of a stream on a server of an older version, which holds what is no message any more."""
    body = b'[1, "\xc3\xa9",%b,2,{"a":\n%b},3 ]' % (b"9" * 5000, b"[" * 940 + b"]" * 940)
    state = {"Stream-Next-Offset": "9", "Stream-Up-To-Date": "true", "Stream-Closed": "true"}

    def answer(request: Received) -> bytes:
        content = body if request.method == "GET" else b""
        headers = {"Content-Type": "application/json", **state}
        return ScriptedServer.response(200, content, length=len(body), **headers)

    with ScriptedServer(answer=answer) as server:
        yield f"{server.root}/s"


@pytest.mark.parametrize("command", ["read", "tail"])
def test_a8_poison_of_an_older_version_is_read_past_on_request(bare, old: str, command: str):
    done = bare.run(command, old, "--ndjson")
    assert done.returncode == 1
    assert done.stdout == b'1\n"\xc3\xa9"\n'
    message = done.stderr.decode()
    assert message.startswith(
        "durable-streams: Message 3 of the batch after offset -1 is not valid JSON: an integer"
    )
    assert message.endswith("--on-invalid skip leaves such messages out\n") or "--on-invalid skip" in message
    done = bare.run(command, old, "--ndjson", "--on-invalid", "skip")
    assert (done.returncode, done.stdout) == (0, b'1\n"\xc3\xa9"\n2\n3\n')
    assert done.stderr.decode().splitlines()[-1] == "durable-streams: 2 invalid messages were left out"
    # As bytes it comes as it is.
    assert b"9" * 5000 in bare.ok(command, old)


def test_a8_a_tail_goes_on_behind_what_it_left_out(bare, old: str):
    arguments = ("tail", old, "--ndjson", "--output", "out", "--checkpoint", "place")
    assert bare.run(*arguments).returncode == 1
    assert (bare.folder / "out").read_bytes() == b'1\n"\xc3\xa9"\n'
    assert bare.run(*arguments, "--on-invalid", "skip").returncode == 0
    assert (bare.folder / "out").read_bytes() == b'1\n"\xc3\xa9"\n2\n3\n'


def test_a8_a_relay_leaves_out_what_it_is_asked_to(cli, tmp_path):
    source = tmp_path / "in.ndjson"
    source.write_bytes(b"1\nNaN\n2\n")
    arguments = ("relay", str(source), "copy", "--state", str(tmp_path / "state"))
    failed = cli.run(*arguments)
    assert failed.returncode == 1
    assert "not valid JSON" in failed.stderr.decode()
    done = cli.run(*arguments, "--on-invalid", "skip", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["invalid"] == 1
    assert cli.ok("read", "copy", "--ndjson") == b"1\n2\n"
