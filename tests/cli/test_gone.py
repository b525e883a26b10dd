"""``--on-gone``: a stream has given up data before they were read."""

from __future__ import annotations

import json


def trimmed(cli, stream: str = "s", kind: str = "text") -> str:
    """Make a stream that gave up its first two of three appends; return the offset between these."""
    cli.ok("create", stream, "-t", kind)
    texts = ["one\n", "two\n", "three\n"] if kind == "text" else ['"one"', '"two"', '"three"']
    offsets = [json.loads(cli.ok("append", "--json", stream, text))["offset"] for text in texts]
    cli.ok("trim", stream, "--before", offsets[1])
    return offsets[0]


def test_read_ends_with_an_error_or_goes_on(cli):
    offset = trimmed(cli)
    assert "410" in cli.error("read", "s", "--offset", offset)
    done = cli.run("read", "s", "--offset", offset, "--on-gone", "earliest")
    assert (done.returncode, done.stdout) == (0, b"three\n")
    assert done.stderr.count(b"data were given up before they were read: going on from 0") == 1


def test_tail_goes_on_and_saves_its_place(cli):
    offset = trimmed(cli, kind="json")
    cli.ok("close", "s")
    place = cli.folder / "place.json"
    arguments = ["tail", "s", "--ndjson", "--offset", offset, "--checkpoint", str(place)]
    assert "410" in cli.error(*arguments)
    done = cli.run(*arguments, "--on-gone", "earliest")
    assert (done.returncode, done.stdout) == (0, b'"three"\n')
    assert b"going on from" in done.stderr
    assert cli.ok(*arguments) == b""


def test_a_relay_notes_a_gap_where_its_source_gave_up_data(cli):
    """It stops after the first record, and its source gives up the second."""
    cli.ok("create", "s", "-t", "json")
    cli.ok("append", "s", '"one"')
    arguments = ["relay", "s", "copy", "--no-follow", "--gap-events", "--state", str(cli.folder / "state")]
    arguments[1] = f"{cli.root}/s"
    cli.run(*arguments)
    offset = json.loads(cli.ok("append", "--json", "s", '"two"'))["offset"]
    cli.ok("append", "s", '"three"')
    cli.ok("trim", "s", "--before", offset)
    assert "410" in cli.run(*arguments).stderr.decode()
    done = cli.run("--json", *arguments, "--on-gone", "earliest")
    assert done.returncode == 0, done.stderr
    assert b"going on from" in done.stderr
    one, gap, three = json.loads(cli.ok("read", "copy"))
    assert (one, three) == ("one", "three")
    assert gap["relay"] == "gap"
