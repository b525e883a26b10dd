"""demo: whatever the input, every record is counted, and nothing stays behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

# Enough for the demo to be in the middle of it when its reader leaves, or when a signal comes.
RECORDS = b"".join(b'{"number":%d}\n' % number for number in range(2_000))


@pytest.fixture
def scratch(bare, tmp_path):
    """Run with a folder for temporary files of its own, to see what stays behind in it."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    bare.environment = lambda extra=None: {**os.environ, "TMPDIR": str(folder)} | (extra or {})
    return folder


def processes_of(folder):
    """The processes whose command line names a file in the folder; only where the system tells."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command)
    return found


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("one record", b'{"a":1}', 1),
        ("three records and blank lines", b'\n{"a":1}\r\n\n  [2]\n\n"3"\n\n', 3),
        ("equal records", b"1\n" * 500, 500),
        ("long records", b"".join(b'{"n":%d,"pad":"%s"}\n' % (n, b"x" * 20_000) for n in range(100)), 100),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_input_survives(bare, scratch, name, content, count):
    (bare.folder / "in.ndjson").write_bytes(content)
    done = bare.run("demo", "--json", "--input", "in.ndjson")
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    records = b"".join(line.strip() + b"\n" for line in content.split(b"\n") if line.strip())
    assert report["sent"] == count
    assert report["sha256"] == hashlib.sha256(records).hexdigest()
    assert [party["name"] for party in report["accounts"]] == ["stored", "SSE reader", "long-poll reader"]
    for party in report["accounts"]:
        assert party == {
            "name": party["name"],
            "records": count,
            "lost": 0,
            "duplicated": 0,
            "sha256": report["sha256"],
        }
    assert (len(report["outages"]), report["reader_kills"]) == (3, 1)
    assert (report["lost"], report["duplicated"], report["equal"]) == (0, 0, True)
    assert not any(scratch.iterdir())


def test_every_record_is_handled_by_workers_that_are_killed(bare, scratch):
    (bare.folder / "in.ndjson").write_bytes(b"1\n" * 300)
    done = bare.run("demo", "--workers", "--json", "--input", "in.ndjson", "--kills", "1")
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert [(party["name"], party["records"], party["lost"]) for party in report["accounts"]] == [
        ("stored", 300, 0),
        ("handled", 300, 0),
    ]
    assert (len(report["outages"]), report["worker_kills"], report["equal"]) == (1, 4, True)
    assert report["batches"] > 1
    assert not any(scratch.iterdir())
    assert not processes_of(scratch)


def test_the_table(bare, scratch):
    (bare.folder / "in.ndjson").write_bytes(b"1\n2\n3\n")
    shown = bare.ok("demo", "--input", "in.ndjson").decode()
    assert "server killed at record" in shown
    assert "equal: nothing lost, nothing twice, all in order" in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\n\n{nonsense\n", "in.ndjson, line 3, is not valid JSON: "),
        (b"\n\n", "in.ndjson holds no records"),
        (None, "in.ndjson: No such file or directory."),
    ],
)
def test_an_input_that_is_none(bare, scratch, content, message):
    if content is not None:
        (bare.folder / "in.ndjson").write_bytes(content)
    assert message in bare.error("demo", "--input", "in.ndjson")
    assert not any(scratch.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(bare, scratch, eventually, number):
    (bare.folder / "in.ndjson").write_bytes(RECORDS)
    process = bare.spawn("demo", "--input", "in.ndjson")
    assert b"serving" in process.stdout.readline()
    assert b"server killed" in process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert errors == b""
    assert not any(scratch.iterdir())
    assert not processes_of(scratch)


def test_its_reader_may_leave(bare, scratch):
    (bare.folder / "in.ndjson").write_bytes(RECORDS)
    process = bare.spawn("demo", "--input", "in.ndjson", stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")
    assert not any(scratch.iterdir())
    assert not processes_of(scratch)
