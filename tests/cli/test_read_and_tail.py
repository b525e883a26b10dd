"""read and tail: the stream's bytes untouched, in pipes, through restarts, and exactly once into a file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

MESSAGES = [b'{"n": %d, "text": "\xc3\xbc \\n"}' % number for number in range(1000)]


def append(cli, stream, *messages):
    cli.ok("append", stream, "--ndjson", stdin=b"\n".join(messages))


def test_read_gives_every_byte_over_many_chunks(cli):
    data = os.urandom(50_000)
    cli.ok("create", "s", "--file", "-", stdin=data)
    cli.ok("append", "s", "--file", "-", stdin=data)
    assert cli.ok("read", "s") == data + data


def test_a1_tail_gives_every_byte_of_text(cli, eventually):
    out = cli.folder / "out"
    lines = b"one\r\ntwo\rthree\xff\r"
    cli.ok("create", "s", "-t", "text", "--file", "-", stdin=b"first\r\n")
    process = cli.spawn("tail", "s", "--output", "out", "--checkpoint", "place")
    eventually(lambda: out.exists() and out.read_bytes() == b"first\r\n")
    for append in (lines, b"\nend"):
        cli.ok("append", "s", "--file", "-", stdin=append)
    cli.ok("close", "s")
    assert process.wait() == 0
    assert out.read_bytes() == b"first\r\n" + lines + b"\nend"


def test_read_of_json_is_one_array_and_ndjson_is_lines(cli):
    cli.ok("create", "s", "-t", "json")
    assert cli.ok("read", "s") == b"[]"
    assert cli.ok("read", "s", "--ndjson") == b""
    append(cli, "s", *MESSAGES)
    assert json.loads(cli.ok("read", "s")) == [json.loads(message) for message in MESSAGES]
    assert cli.ok("read", "s", "--ndjson") == b"\n".join(MESSAGES) + b"\n"


def test_messages_keep_their_bytes_on_their_line(cli):
    cli.ok("create", "s", "-t", "json", '{"b":1.50,\r\n "a" :123456789012345678901234567890}')
    assert cli.ok("read", "s", "--ndjson") == b'{"b":1.50,   "a" :123456789012345678901234567890}\n'
    assert cli.ok("read", "s") == b'[{"b":1.50,\r\n "a" :123456789012345678901234567890}]'


def test_read_from_an_offset(cli):
    cli.ok("create", "s", "-t", "text", "one ")
    offset = json.loads(cli.ok("head", "--json", "s"))["offset"]
    cli.ok("append", "s", "two")
    assert cli.ok("read", "s", "--offset", offset) == b"two"
    assert cli.ok("read", "s", "--offset", "now") == b""
    assert "400" in cli.error("read", "s", "--offset", "nonsense!")


def test_ndjson_of_a_stream_that_is_not_json(cli):
    cli.ok("create", "s", "-t", "text", "hello")
    assert "application/json" in cli.error("read", "s", "--ndjson")
    assert "application/json" in cli.error("tail", "s", "--ndjson")


def test_a_reader_of_the_pipe_that_leaves_is_no_error(cli):
    cli.ok("create", "s", "-t", "text", "--file", "-", stdin=b"line\n" * 100_000)
    process = cli.spawn("read", "s")
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")


def test_tail_ends_when_its_pipe_is_left_although_nothing_comes(cli):
    cli.ok("create", "s", "-t", "text", "line\n")
    process = cli.spawn("tail", "s")
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_that_does_not_fit(cli):
    cli.ok("create", "s", "-t", "text", "--file", "-", stdin=b"line\n" * 100_000)
    with Path("/dev/full").open("wb") as full:
        process = cli.spawn("read", "s", stdout=full)
        assert process.wait() == 1
    assert process.stderr.read().startswith(b"durable-streams: cannot write the output: ")


@pytest.mark.parametrize("live", ["auto", "sse", "long-poll"])
def test_tail_follows_until_the_stream_is_closed(cli, eventually, live):
    cli.ok("create", "s", "-t", "text", "one ")
    process = cli.spawn("tail", "s", "--live", live, "--output", "out")
    out = cli.folder / "out"
    eventually(lambda: out.exists() and out.read_bytes() == b"one ")
    cli.ok("append", "s", "two ")
    eventually(lambda: out.read_bytes() == b"one two ")
    cli.ok("close", "s", "three")
    assert process.wait() == 0
    assert out.read_bytes() == b"one two three"


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_binary_data_comes_through_live_reads(cli, live):
    data = os.urandom(20_000)
    cli.ok("create", "s", "--file", "-", stdin=data)
    cli.ok("close", "s")
    assert cli.ok("tail", "s", "--live", live) == data


def test_tail_of_an_empty_json_stream_prints_nothing(cli):
    cli.ok("create", "s", "-t", "json", "--closed")
    assert cli.ok("tail", "s") == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_tail_quietly(cli, eventually, number):
    cli.ok("create", "s", "-t", "text", "x")
    process = cli.spawn("tail", "s", "--output", "out")
    eventually(lambda: (cli.folder / "out").exists() and (cli.folder / "out").stat().st_size == 1)
    process.send_signal(number)
    assert process.wait() in (130, -signal.SIGTERM)
    assert process.stderr.read() == b""


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_tail_survives_a_killed_server(bare, serving, eventually, live):
    server = serving("--data-dir", "data", "--long-poll-timeout", "1")
    bare.ok("create", "s", "-t", "text", "one ")
    process = bare.spawn("tail", "s", "--live", live, "--output", "out")
    out = bare.folder / "out"
    eventually(lambda: out.exists() and out.read_bytes() == b"one ")
    server.kill()
    server.start()
    bare.ok("append", "s", "two ")
    eventually(lambda: out.read_bytes() == b"one two ")
    assert server.stop() == (0, b"")
    server.start()
    bare.ok("close", "s", "three")
    assert process.wait() == 0
    assert out.read_bytes() == b"one two three"


def test_checkpoint_goes_on_where_the_last_run_ended(cli):
    cli.ok("create", "s", "-t", "json", "1")
    process = cli.spawn("tail", "s", "--ndjson", "--checkpoint", "place")
    assert process.stdout.readline() == b"1\n"
    append(cli, "s", b"2")
    assert process.stdout.readline() == b"2\n"
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    append(cli, "s", b"3")
    cli.ok("close", "s")
    assert cli.ok("tail", "s", "--ndjson", "--checkpoint", "place") == b"3\n"
    assert cli.ok("tail", "s", "--ndjson", "--checkpoint", "place") == b""


def test_checkpoint_of_now_stays_at_that_place(cli, eventually):
    cli.ok("create", "s", "-t", "json", "1")
    process = cli.spawn("tail", "s", "--ndjson", "--offset", "now", "--checkpoint", "place")
    eventually((cli.folder / "place").exists)
    process.kill()
    process.wait()
    append(cli, "s", b"2")
    cli.ok("close", "s")
    assert cli.ok("tail", "s", "--ndjson", "--offset", "now", "--checkpoint", "place") == b"2\n"


def test_killed_again_and_again_a_tail_into_a_file_has_everything_once(cli, eventually):
    cli.ok("create", "s", "-t", "json")
    out, place = cli.folder / "out", cli.folder / "place"
    command = ("tail", "s", "--ndjson", "--output", "out", "--checkpoint", "place")
    for number in range(0, len(MESSAGES), 100):
        process = cli.spawn(*command)
        append(cli, "s", *MESSAGES[number : number + 100])
        eventually(lambda: out.exists() and out.read_bytes().count(b"\n") > number + 10)  # noqa: B023
        process.kill()
        process.wait()
        assert json.loads(place.read_bytes())["bytes"] <= out.stat().st_size
        with out.open("ab") as file:
            file.write(b'{"half a rec')  # as if it had died in the middle of a write
    cli.ok("close", "s")
    cli.ok(*command)
    assert out.read_bytes() == b"\n".join(MESSAGES) + b"\n"
    assert sorted(path.name for path in cli.folder.iterdir()) == ["out", "place"]


@pytest.mark.parametrize("damage", ["removed", "moved", "replaced"])
def test_f2_a_checkpoint_never_covers_an_output_that_is_gone(cli, eventually, damage):
    cli.ok("create", "s", "-t", "json", "1")
    out, place = cli.folder / "out", cli.folder / "place"
    command = ("tail", "s", "--ndjson", "--output", "out", "--checkpoint", "place")
    process = cli.spawn(*command)
    eventually(lambda: place.exists() and json.loads(place.read_bytes()).get("bytes") == 2)
    kept = cli.folder / "kept"
    out.rename(kept)
    if damage == "replaced":
        out.write_bytes(kept.read_bytes())
    append(cli, "s", b"2")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"out was moved, removed or replaced" in errors
    assert json.loads(place.read_bytes())["bytes"] == 2
    if damage == "moved":
        kept.rename(out)
        cli.ok("close", "s")
        cli.ok(*command)
        assert out.read_bytes() == b"1\n2\n"


def test_a_checkpoint_is_replaced_as_a_whole_and_never_ahead(cli):
    """Read it all the time while it changes: always complete, and the output always covers it."""
    cli.ok("create", "s", "-t", "json")
    process = cli.spawn("tail", "s", "--ndjson", "--output", "out", "--checkpoint", "place")
    writer = cli.spawn("append", "s", "--ndjson", "--close", "--batch-bytes", "100", stdin=subprocess.PIPE)
    writer.stdin.write(b"\n".join(MESSAGES))
    writer.stdin.close()
    out, place = cli.folder / "out", cli.folder / "place"
    while process.poll() is None:
        if place.exists():
            checkpoint = json.loads(place.read_bytes())
            assert out.stat().st_size >= checkpoint["bytes"]
    assert (process.returncode, writer.wait()) == (0, 0)
    assert json.loads(place.read_bytes())["bytes"] == out.stat().st_size == sum(map(len, MESSAGES)) + 1000


def test_a_checkpoint_that_does_not_fit_is_refused(cli):
    cli.ok("create", "s", "-t", "json", "1", "--closed")
    cli.ok("create", "other", "-t", "json", "1", "--closed")
    out, place = cli.folder / "out", cli.folder / "place"
    command = ("tail", "s", "--ndjson", "--output", "out", "--checkpoint", "place")
    out.write_bytes(b"mine")
    assert re.search("out holds data but there is no checkpoint place", cli.error(*command))
    assert out.read_bytes() == b"mine"
    out.unlink()
    cli.ok(*command)
    assert "is the checkpoint of" in cli.error("tail", "other", "--checkpoint", "place")
    out.write_bytes(b"")
    assert "out is shorter than the 2 bytes" in cli.error(*command)
    place.write_bytes(b"{}")
    assert "place is not a checkpoint" in cli.error(*command)
    place.unlink()
    cli.ok("tail", "s", "--checkpoint", "place")
    assert "was saved without a file" in cli.error(*command)


def test_two_tails_into_one_file_are_one_too_many(cli, eventually):
    cli.ok("create", "s", "-t", "json", "1")
    command = ("tail", "s", "--ndjson", "--output", "out", "--checkpoint", "place")
    cli.spawn(*command)
    eventually((cli.folder / "place").exists)
    assert "another process is writing out" in cli.error(*command)


def test_tail_of_a_stream_that_is_not_there(cli):
    assert "404" in cli.error("tail", "s", "--output", "out", "--checkpoint", "place")
    assert not any(cli.folder.iterdir())
