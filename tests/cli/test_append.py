"""append: one value from anywhere, and lines exactly once through whatever happens to the server."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
import tty

import pytest


def test_a_value_a_file_and_standard_input(cli):
    data = bytes(range(256))
    (cli.folder / "data.bin").write_bytes(data)
    cli.ok("create", "s")
    cli.ok("append", "s", "ünï")
    cli.ok("append", "s", "--file", "data.bin")
    cli.ok("append", "s", "--file", "-", stdin=data)
    cli.ok("append", "s", stdin=b"end")
    assert cli.ok("read", "s") == "ünï".encode() + data + data + b"end"


def test_the_offset_is_where_the_next_read_begins(cli):
    cli.ok("create", "s", "-t", "json")
    offset = json.loads(cli.ok("append", "--json", "s", '{"a": 1}'))["offset"]
    cli.ok("append", "s", "[1, 2]")
    assert cli.ok("read", "s", "--offset", offset) == b"[[1, 2]]"


def test_what_a_stream_cannot_take(cli):
    cli.ok("create", "s", "-t", "json")
    assert "not valid JSON" in cli.error("append", "s", "{")
    assert cli.ok("read", "s") == b"[]"
    assert "404" in cli.error("append", "missing", "1")
    cli.ok("create", "t", "-t", "text")
    cli.error("append", "t", "")


def test_seq_must_grow(cli):
    cli.ok("create", "s", "-t", "text")
    cli.ok("append", "s", "a", "--seq", "1")
    assert "409" in cli.error("append", "s", "a", "--seq", "1")
    cli.ok("append", "s", "b", "--seq", "2")
    assert cli.ok("read", "s") == b"ab"


def test_lines_become_messages_as_they_are(cli):
    lines = [b'{"b":1.50,"a" :12345678901234567890123}', b" [1,[2]] ", b'"\xe2\x80\xa8"', b"null", b"1e400"]
    cli.ok("create", "s", "-t", "json")
    stdin = b"\xef\xbb\xbf" + b"\r\n\n \t\n".join(lines)
    result = json.loads(cli.ok("append", "s", "--ndjson", "--json", stdin=stdin))
    assert (result["records"], result["duplicates"], result["closed"]) == (5, 0, False)
    assert result["offset"] == json.loads(cli.ok("head", "--json", "s"))["offset"]
    assert cli.ok("read", "s", "--ndjson") == b"".join(line.strip() + b"\n" for line in lines)


def test_no_lines_are_no_error(cli):
    cli.ok("create", "s", "-t", "json")
    assert cli.ok("append", "s", "--ndjson", stdin=b"\n\n").startswith(b"stored 0 records")
    cli.ok("append", "s", "--ndjson", "--close", stdin=b"")
    assert json.loads(cli.ok("head", "--json", "s"))["closed"] is True


@pytest.mark.parametrize("flaw", [b"{", b"nonsense", b'{"a": NaN}', b'"\xff"', b"1 2"])
def test_a_line_that_is_not_json_is_named_and_what_is_before_it_is_kept(cli, flaw):
    (cli.folder / "in.ndjson").write_bytes(b"1\n\n2\n" + flaw + b"\n3\n")
    cli.ok("create", "s", "-t", "json")
    message = cli.error("append", "s", "--ndjson", "--file", "in.ndjson")
    assert message.startswith("durable-streams: line 4 of in.ndjson is not valid JSON: ")
    assert "the 2 records before it were stored" in message
    assert cli.ok("read", "s", "--ndjson") == b"1\n2\n"


def test_lines_need_a_json_stream_that_is_there_and_open(cli):
    cli.ok("create", "t", "-t", "text")
    assert "application/json" in cli.error("append", "t", "--ndjson", stdin=b"1")
    assert "404" in cli.error("append", "missing", "--ndjson", stdin=b"1")
    cli.ok("create", "c", "-t", "json", "--closed")
    assert "0 records were acknowledged" in cli.error("append", "c", "--ndjson", stdin=b"1")


def test_a_named_producer_takes_the_next_epoch_and_refuses_a_used_one(cli):
    cli.ok("create", "s", "-t", "json")
    for number in range(3):
        told = cli.ok("append", "s", "--ndjson", "--json", "--producer-id", "p", stdin=b"%d" % number)
        assert json.loads(told)["epoch"] == number
    assert "epoch" in cli.error("append", "s", "--ndjson", "--producer-id", "p", "--epoch", "1", stdin=b"9")
    assert "epoch" in cli.error("append", "s", "--ndjson", "--producer-id", "p", "--epoch", "2", stdin=b"9")
    cli.ok("append", "s", "--ndjson", "--producer-id", "p", "--epoch", "7", stdin=b"3")
    assert cli.ok("read", "s") == b"[0,1,2,3]"


def test_every_line_goes_out_soon_although_the_pipe_stays_open(cli, eventually):
    cli.ok("create", "s", "-t", "json")
    process = cli.spawn("append", "s", "--ndjson", stdin=subprocess.PIPE)
    for number in range(3):
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        eventually(lambda: cli.ok("read", "s", "--ndjson").count(b"\n") == number + 1)  # noqa: B023
    process.stdin.close()
    assert process.wait() == 0


def test_lines_survive_a_server_that_is_killed_again_and_again(bare, serving, eventually):
    server = serving("--data-dir", "data")
    bare.ok("create", "s", "-t", "json")
    lines = [b'{"n":%d}' % number for number in range(3000)]
    process = bare.spawn("append", "s", "--ndjson", "--json", "--batch-bytes", "200", stdin=subprocess.PIPE)
    for number in range(0, 3000, 600):
        process.stdin.write(b"\n".join(lines[number : number + 600]) + b"\n")
        process.stdin.flush()
        eventually(lambda: bare.ok("read", "s", "--ndjson").count(b"\n") > number)  # noqa: B023
        server.kill()
        server.start()
    process.stdin.close()
    assert process.wait() == 0, process.stderr.read()
    assert json.loads(process.stdout.read())["records"] == 3000
    assert bare.ok("read", "s", "--ndjson") == b"\n".join(lines) + b"\n"


def test_a_server_that_stays_away_is_an_error_that_says_what_is_safe(bare, serving, eventually):
    server = serving("--data-dir", "data")
    bare.ok("create", "s", "-t", "json")
    process = bare.spawn("append", "s", "--ndjson", "--retry-for", "0.2", stdin=subprocess.PIPE)
    process.stdin.write(b"1\n2\n")
    process.stdin.flush()
    eventually(lambda: bare.ok("read", "s", "--ndjson") == b"1\n2\n")
    server.kill()
    process.stdin.write(b"3\n")
    process.stdin.close()
    assert process.wait() == 1
    message = process.stderr.read()
    assert message.endswith(b" (2 records were acknowledged before).\n")
    assert message.count(b"\n") == 1


def test_ctrl_c_does_not_wait_for_a_server_that_is_away(bare, serving, eventually):
    server = serving("--data-dir", "data")
    bare.ok("create", "s", "-t", "json")
    process = bare.spawn("append", "s", "--ndjson", stdin=subprocess.PIPE)
    process.stdin.write(b"1\n")
    process.stdin.flush()
    eventually(lambda: bare.ok("read", "s", "--ndjson") == b"1\n")
    server.kill()
    process.stdin.write(b"2\n")
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert b"Traceback" not in process.stderr.read()


def test_a5_ctrl_c_counts_what_it_loses(bare, serving, eventually):
    server = serving("--data-dir", "data")
    bare.ok("create", "s", "-t", "json")
    process = bare.spawn("append", "s", "--ndjson", stdin=subprocess.PIPE)
    process.stdin.write(b"1\n2\n")
    process.stdin.flush()
    eventually(lambda: bare.ok("read", "s", "--ndjson") == b"1\n2\n")
    server.kill()
    process.stdin.write(b"3\n4\n5\n")
    process.stdin.flush()
    eventually(lambda: _unread(process.stdin) == 0)
    time.sleep(0.3)  # what it has read, it takes
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read() == (
        b"durable-streams: interrupted; records acknowledged: 2, read and perhaps lost: 3\n"
    )


def test_a5_an_input_that_fails_loses_nothing_of_what_was_read(bare, serving, eventually):
    serving("--memory")
    bare.ok("create", "s", "-t", "json")
    ours, theirs = pty.openpty()  # reading from it fails once nobody has the other side
    tty.setraw(theirs)
    os.write(ours, b"1\n2\n3\n")
    eventually(lambda: _unread(theirs) == 6)
    process = bare.spawn("append", "s", "--ndjson", "--linger", "60", stdin=theirs)
    eventually(lambda: _unread(theirs) == 0)
    time.sleep(1.0)  # until the lines that it has read are with its producer
    os.close(theirs)
    os.close(ours)
    assert process.wait() in {0, 1}
    assert bare.ok("read", "s", "--ndjson") == b"1\n2\n3\n"


def test_the_progress_bar_is_for_terminals_only(cli):
    cli.ok("create", "s", "-t", "json")
    (cli.folder / "in.ndjson").write_bytes(b"1\n" * 2000)
    command = ("append", "s", "--ndjson", "--file", "in.ndjson")
    assert cli.ok(*command).startswith(b"stored 2,000 records")  # and nothing on standard error
    terminal, theirs = pty.openpty()
    process = cli.spawn(*command, stderr=theirs)
    os.close(theirs)
    drawn = b""
    while chunk := _read(terminal):
        drawn += chunk
    os.close(terminal)
    assert process.wait() == 0
    assert b"records acknowledged" in drawn


def _read(terminal):
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side is closed
        return b""


def _unread(file):
    """Return how many bytes wait to be read at the other side of a pipe or terminal."""
    return struct.unpack("i", fcntl.ioctl(file, termios.FIONREAD, bytes(4)))[0]
