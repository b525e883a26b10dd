"""Every block of code in README and docs, run as it stands there: page by page, from the first block to the last.

Only the address is another one: that of the test's own server, and of its own feed. A new block runs too, or it stands
in `NOT_RUN` with the reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from scripted import Received, ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "xdk" / "README.md"]
SERVED = "http://127.0.0.1:4437/v1/stream"
FEED = "https://stream.wikimedia.org/v2/stream/recentchange"
PATIENCE = 100.0  # seconds

NOT_RUN = {
    "make serve": "tests/interop/walk.test.mjs has it, in a browser beside it",
    "make demo": "tests/cli/test_demo.py has it, and `make test` is what runs this",
    "durable-streams serve --store": "tests/cluster has it, with three NATS servers",
    "tls-cert.pem": "tests/cli/test_deploy.py follows it from an empty folder",
    "--data-dir streams backup": "the same",
    "X_BEARER_TOKEN": "it needs an account; tests/firehose runs the same against an imitation",
    "const source = new EventSource(`/events/": "tests/interop/runs.test.mjs has it",
    "from durable_streams.django import": "tests/embedded/test_django.py has it, in a project",
    'from "@durable-streams/client"': "tests/interop/client.test.mjs has it, where the package is",
    "<ul id": "test_e7_the_page_in_a_browser has it",
}
"""What a block contains that runs elsewhere, and where."""

ENDLESS = {"# follows it: Ctrl-C ends it", "FirehoseStream(", "# until Ctrl-C"}
"""What a block contains that Ctrl-C ends."""

# Those that stand side by side, in tabs, are indented.
BLOCK = re.compile(r"^( {4})?```(python|sh|js|html)\n(.*?)^(?(1) {4})```$", re.MULTILINE | re.DOTALL)
FOUND = {
    page: [(language, dedent(code)) for _, language, code in BLOCK.findall(page.read_text(encoding="utf-8"))]
    for page in PAGES
}


@pytest.fixture
def feed() -> Iterator[str]:
    """Give the URL of a feed of server-sent events, as endless as the real one."""

    def endless(connection: socket.socket) -> None:
        connection.sendall(ScriptedServer.events(b""))
        number = 0
        while not server.ended.wait(0.05):
            number += 1
            record = json.dumps({"title": f"page {number}", "meta": {"id": str(number)}})
            connection.sendall(f"id: {number}\ndata: {record}\n\n".encode())
        raise ConnectionAbortedError

    with ScriptedServer(replies=[endless]) as server:
        yield f"{server.root}/feed"


class Typed:
    """What runs blocks as somebody types them, in a folder with what a checkout has."""

    def __init__(self, cli, feed: str, page: Path) -> None:
        self.folder = cli.folder
        (self.folder / "data").symlink_to(ROOT / "data")
        programs = self.folder / "bin"
        programs.mkdir()
        command = programs / "durable-streams"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m durable_streams "$@"\n')
        command.chmod(0o700)
        modules = os.pathsep.join(map(str, (ROOT / "examples", ROOT / "xdk" / "src")))
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = cli.environment({"PATH": path, "PYTHONPATH": modules})
        self._feed = feed
        # Subscriptions are beside the streams of the whole server, not below those of the test.
        self._root = cli.root.rpartition("/")[0] if "/__ds/" in page.read_text() else cli.root

    def run(self, language: str, code: str) -> None:
        code = code.replace(SERVED, self._root).replace(FEED, self._feed)
        command = {
            "python": [sys.executable, "-u", "-W", "error", "-c", code],
            "sh": ["bash", "-e", "-u", "-o", "pipefail", "-c", code],
            "js": ["node", "--input-type=module", "-e", code],
        }[language]
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                self._wait(process, code)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def _wait(self, process: subprocess.Popen[bytes], code: str) -> None:
        if not any(mark in code for mark in ENDLESS):
            _, errors = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, errors.decode()
            return
        assert process.stdout is not None
        if "--output" not in code and "durable-streams relay" not in code:
            assert process.stdout.readline(), process.communicate()
        else:  # it shows nothing: it goes on, as it should
            time.sleep(3)
            assert process.poll() is None, process.communicate()
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode in {0, 130, -signal.SIGINT}, errors.decode()


def parts_of(language: str, code: str) -> list[str]:
    """Return what is run one after the other: a line of a shell that Ctrl-C ends is a part of its own."""
    if language != "sh" or "# until Ctrl-C" not in code:
        return [code]
    lines = [line for line in code.splitlines() if " demo" not in line]  # tests/cli/test_demo.py has it
    endless = [line for line in lines if "# until Ctrl-C" in line]
    return ["\n".join(line for line in lines if line not in endless), *endless]


def is_run(code: str) -> bool:
    return not any(mark in code for mark in NOT_RUN)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_e7_every_block_runs(cli, feed, page):
    blocks = [(language, code) for language, code in FOUND[page] if is_run(code)]
    if not blocks:
        pytest.skip("no block to run")
    typed = Typed(cli, feed, page)
    for language, code in blocks:
        program = {"js": "node", "sh": "bash"}.get(language)
        if program is not None and shutil.which(program) is None:
            pytest.skip(f"{program} is missing")
        for part in parts_of(language, code):
            typed.run(language, part)


def test_e7_blocks_are_found():
    assert sum(len(blocks) for blocks in FOUND.values()) > 30
    everything = "".join(code for blocks in FOUND.values() for _, code in blocks)
    for mark in (*NOT_RUN, *ENDLESS):
        assert mark in everything, mark


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is missing")
def test_e7_the_page_in_a_browser(cli, tmp_path):
    page = next(code for language, code in FOUND[ROOT / "docs" / "browsers.md"] if language == "html")
    cli.ok("create", "hello", "-t", "json", '{"text": "Hello, browser"}')
    cli.ok("close", "hello", '{"text": "the end"}')
    (tmp_path / "page.html").write_text(page.replace(SERVED, cli.root))

    def answer(_request: Received) -> bytes:
        return ScriptedServer.response(200, (tmp_path / "page.html").read_bytes(), content_type="text/html")

    with ScriptedServer(answer=answer) as server:
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            profile,
            "--virtual-time-budget=20000",
            "--dump-dom",
        ]
        address = f"{server.root.replace('127.0.0.1', 'localhost')}/page.html"
        done = subprocess.run(
            ["chromium", *flags, address], capture_output=True, timeout=PATIENCE, check=False
        )
    assert b"<li>Hello, browser</li><li>the end</li>" in done.stdout, done.stderr.decode()
