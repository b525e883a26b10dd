"""create, head, close, delete, fork: results for people and for machines, and failures in one line."""

from __future__ import annotations

import json

import pytest


def test_a_stream_from_its_creation_to_its_end(cli):
    assert (
        cli.ok("create", "log", "-t", "text", "hello ") == f"created {cli.root}/log (text/plain)\n".encode()
    )
    cli.ok("append", "log", "world")
    assert cli.ok("read", "log") == b"hello world"
    assert b"closed              no" in cli.ok("head", "log")
    cli.ok("close", "log", "!")
    assert b"closed              yes" in cli.ok("head", "log")
    assert cli.ok("read", "log") == b"hello world!"
    assert "closed" in cli.error("append", "log", "more")
    cli.ok("delete", "log")
    assert "404" in cli.error("head", "log")


def test_a_stream_gives_up_its_first_data(cli):
    cli.ok("create", "s", "-t", "text", "one ")
    cli.ok("append", "s", "two ")
    offset = json.loads(cli.ok("append", "--json", "s", "three"))["offset"]
    fields = json.loads(cli.ok("trim", "--json", "s", "--max-bytes", "9"))
    assert fields == {
        "url": f"{cli.root}/s",
        "earliest_offset": f"{int(offset[:16]):016}_{4:016}",
        "offset": offset,
        "max_age": None,
        "max_bytes": None,
    }
    assert cli.ok("read", "s") == b"two three"
    assert b"keeps 2d and at most 5" in cli.ok("trim", "s", "--keep", "--max-age", "2d", "--max-bytes", "5")
    assert cli.ok("read", "s") == b"three"
    assert json.loads(cli.ok("head", "--json", "s"))["retention_max_age"] == 172800
    assert b"keeps everything" in cli.ok("trim", "s", "--keep")
    cli.ok("trim", "s", "--before", "now")
    assert cli.ok("read", "s") == b""
    assert "410" in cli.error("read", "s", "--offset", fields["earliest_offset"])
    for wrong in ([], ["--before", "now", "--max-bytes", "5"], ["--keep", "--before", "now"]):
        assert "trim --help" in cli.error("trim", "s", *wrong, code=2)


def test_an_append_and_a_close_on_condition(cli):
    cli.ok("create", "s", "-t", "text")
    empty = json.loads(cli.ok("head", "--json", "s"))["offset"]
    offset = json.loads(cli.ok("append", "--json", "s", "a", "--expected-offset", empty))["offset"]
    assert "412" in cli.error("append", "s", "b", "--expected-offset", empty)
    assert "412" in cli.error("close", "s", "--expected-offset", empty)
    cli.ok("close", "s", "c", "--expected-offset", offset)
    assert cli.ok("read", "s") == b"ac"


def test_create_is_idempotent_and_says_when_it_cannot_be(cli):
    cli.ok("create", "s", "-t", "json")
    cli.ok("create", "s", "-t", "json")
    assert "409" in cli.error("create", "s", "-t", "text")


def test_create_takes_its_content_from_a_file_or_standard_input(cli):
    data = bytes(range(256)) * 10
    (cli.folder / "data.bin").write_bytes(data)
    cli.ok("create", "a", "--file", "data.bin", "--closed")
    cli.ok("create", "b", "--file", "-", stdin=data)
    assert cli.ok("read", "a") == cli.ok("read", "b") == data
    assert json.loads(cli.ok("head", "a", "--json"))["closed"] is True


def test_head_for_machines(cli):
    cli.ok("create", "s", "-t", "json", "--ttl", "3600", '{"a": 1}')
    fields = json.loads(cli.ok("--json", "head", "s"))
    assert fields["url"] == f"{cli.root}/s"
    assert (fields["content_type"], fields["closed"], fields["ttl_seconds"]) == (
        "application/json",
        False,
        3600,
    )
    assert fields == json.loads(cli.ok("head", "--json", "s"))


def test_every_result_has_a_form_for_machines(cli):
    created = json.loads(cli.ok("create", "--json", "s", "-t", "json"))
    fields = {"url": f"{cli.root}/s", "content_type": "application/json", "closed": False}
    assert created == {**fields, "created": True}
    offset = json.loads(cli.ok("append", "--json", "s", "1"))["offset"]
    assert json.loads(cli.ok("fork", "--json", "s", "f"))["source"] == f"{cli.root}/s"
    assert json.loads(cli.ok("close", "--json", "s"))["final_offset"] == offset
    assert json.loads(cli.ok("delete", "--json", "s"))["url"] == f"{cli.root}/s"


def test_fork_goes_its_own_way(cli):
    cli.ok("create", "source", "-t", "json", "1")
    offset = json.loads(cli.ok("head", "--json", "source"))["offset"]
    cli.ok("append", "source", "2")
    cli.ok("append", "source", "3")
    cli.ok("fork", "source", "early", "--offset", offset, "--sub-offset", "1")
    cli.ok("append", "early", "4")
    assert cli.ok("read", "early") == b"[1,2,4]"
    assert cli.ok("read", "source") == b"[1,2,3]"


def test_a_stream_is_a_path_or_a_url(cli):
    cli.ok("create", "a b/c?d#e%20", "-t", "text", "x")
    assert cli.ok("read", f"{cli.root}/a%20b/c%3Fd%23e%2520") == b"x"
    assert cli.ok("read", "/a b/c?d#e%20") == b"x"
    cli.root, root = "http://127.0.0.1:1/elsewhere", cli.root
    assert cli.ok("--url", root, "read", "a b/c?d#e%20") == b"x"
    assert cli.ok("read", "--url", root, "a b/c?d#e%20") == b"x"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["read"],
        ["read", ""],
        ["read", "s", "--nonsense"],
        ["create", "s", "--ttl", "-1"],
        ["create", "s", "--ttl", "1", "--expires-at", "2030-01-01T00:00:00Z"],
        ["create", "s", "--content-type", "nonsense"],
        ["append", "s", "value", "--file", "-"],
        ["append", "s", "value", "--ndjson"],
        ["tail", "s", "--live", "carrier-pigeon"],
        ["serve", "--port", "65536"],
        ["serve", "--memory", "--data-dir", "x"],
        ["serve", "--long-poll-timeout", "0"],
        ["serve", "--chunk-size", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(bare, arguments):
    done = bare.run(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert arguments == [] or done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "command", ["", "serve", "create", "append", "read", "tail", "head", "close", "fork", "demo"]
)
def test_help_is_help(bare, command):
    assert b"Usage: durable-streams" in bare.ok(*command.split(), "--help")


def test_a_server_that_is_not_there(bare):
    assert "127.0.0.1:1" in bare.error("head", "http://127.0.0.1:1/v1/stream/x")


def test_a_url_that_is_none(bare):
    assert "http://[/x" in bare.error("head", "http://[/x")
    assert "http:///x" in bare.error("head", "http:///x")


def test_a_file_that_is_missing(cli):
    cli.ok("create", "s")
    assert cli.error("append", "s", "--file", "missing.bin") == (
        "durable-streams: missing.bin: No such file or directory.\n"
    )


def test_the_token_goes_out_as_a_bearer_header(bare, http_peer):
    bare.root = http_peer.root
    http_peer.answer(404, b"")
    bare.error("head", "s", env={"DURABLE_STREAMS_TOKEN": "secret\n"})
    bare.error("--token", "other", "head", "s", env={"DURABLE_STREAMS_TOKEN": "secret"})
    bare.error("head", "--token", "third", "s", env={"DURABLE_STREAMS_TOKEN": "secret"})
    assert http_peer.tokens == ["Bearer secret", "Bearer other", "Bearer third"]


def test_a_token_never_shows_in_an_error(bare):
    message = bare.error("head", "http://127.0.0.1:1/x", env={"DURABLE_STREAMS_TOKEN": "hush\x01hush"})
    assert "hush" not in message


def test_a_path_that_leads_elsewhere_is_refused(cli):
    cli.ok("create", "elsewhere")
    for path in ("a/../elsewhere", "a/./elsewhere", "..", f"{cli.root}/a/%2E%2e/elsewhere"):
        assert "a segment . or .." in cli.error("delete", path)
    cli.ok("head", "elsewhere")


@pytest.mark.parametrize("interface", ["argument", "file", "standard input"])
def test_a9_data_for_a_stream_that_exists_is_a_failure(cli, interface):
    (cli.folder / "data.txt").write_bytes(b"second")
    how, name = {
        "argument": (["second"], "VALUE"),
        "file": (["--file", "data.txt"], "data.txt"),
        "standard input": (["--file", "-"], "standard input"),
    }[interface]
    cli.ok("create", "s", "-t", "text", "first")
    expected = f"durable-streams: {cli.root}/s exists already; {name} was not stored\n"
    assert cli.error("create", "s", "-t", "text", *how, stdin=b"second") == expected
    done = cli.run("create", "--json", "s", "-t", "text", *how, stdin=b"second")
    assert (done.returncode, done.stderr.decode()) == (1, expected)
    assert json.loads(done.stdout) == {
        "url": f"{cli.root}/s",
        "content_type": "text/plain",
        "closed": False,
        "created": False,
    }
    assert cli.ok("read", "s") == b"first"


def test_a9_data_for_a_closed_stream_that_exists_is_a_failure(cli):
    cli.ok("create", "s", "-t", "json", "--closed", "1")
    assert "exists already; VALUE was not stored" in cli.error("create", "s", "-t", "json", "--closed", "2")
    assert cli.ok("read", "s") == b"[1]"


def test_a9_create_and_fork_say_whether_the_stream_is_new(cli):
    for created, text in ((True, "created"), (False, "exists already:")):
        assert json.loads(cli.ok("create", "--json", "s", "-t", "json"))["created"] is created
        assert cli.ok("create", "t", "-t", "json") == f"{text} {cli.root}/t (application/json)\n".encode()
        assert json.loads(cli.ok("fork", "--json", "s", "f"))["created"] is created
    assert cli.ok("fork", "s", "f") == f"exists already: {cli.root}/f, forked from {cli.root}/s\n".encode()


def test_a9_a_stream_that_exists_may_be_created_again_without_data(cli):
    (cli.folder / "empty").write_bytes(b"")
    cli.ok("create", "s")
    cli.ok("create", "s", "")
    cli.ok("create", "s", "--file", "empty")


@pytest.mark.parametrize("locale", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_b15_names_of_streams_in_any_locale(cli, locale):
    env = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    created = cli.run("create", "流/ö", "-t", "text", "data", env=env)
    assert (created.returncode, created.stderr) == (0, b"")
    assert created.stdout == f"created {cli.root}/%E6%B5%81/%C3%B6 (text/plain)\n".encode()
    assert cli.run("read", "流/ö", env=env).stdout == cli.ok("read", "流/ö") == b"data"
    cli.ok("delete", "流/ö")
