"""The README's examples, run as they stand there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVED = "http://127.0.0.1:4437/v1/stream"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def python(cli, code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cli.folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_twenty_lines(cli):
    code = blocks("python")[0]
    assert SERVED in code
    for _ in range(2):  # it cleans up after itself
        done = python(cli, code.replace(SERVED, cli.root))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == "473 flights were late"
        assert done.stdout.splitlines()[1] == "{'flight': 'the last one', 'delay': 0}"


def test_the_same_with_await(cli):
    code = blocks("python")[1].replace(SERVED, cli.root)
    for _ in range(2):
        done = python(cli, code)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Every token arrives once .\n", "")


def test_the_asgi_application(cli):
    done = python(cli, blocks("python")[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_shell(cli, eventually):
    commands = next(block for block in blocks("sh") if "durable-streams create" in block).splitlines()
    (cli.folder / "data").symlink_to(ROOT / "data")
    *first, read, tail = [shlex.split(line, comments=True) for line in commands]
    for command in first:
        cli.ok(*command[1:])
    assert read[-3:] == ["|", "head", "-3"]
    records = (ROOT / "data" / "us-flights-2001.ndjson").read_bytes()
    assert cli.ok(*read[1:-3]) == records
    cli.spawn(*tail[1:])
    copy = cli.folder / "copy.ndjson"
    eventually(lambda: copy.exists() and copy.read_bytes() == records)


@pytest.mark.parametrize("target", ["demo", "serve", "test", "lint", "types", "conformance", "bench"])
def test_every_target_named_is_in_the_makefile(target):
    assert f"`make {target}" in README or f"make {target} " in README or f"make lint {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_recording_is_there_and_small():
    names = re.findall(r"^!\[.+\]\((docs/\S+)\)$", README, re.MULTILINE)
    assert "docs/chat.png" in names
    for name in names:
        picture = (ROOT / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 500_000
    assert b"acTL" in (ROOT / "docs/chat.png").read_bytes()[:64]  # it moves
