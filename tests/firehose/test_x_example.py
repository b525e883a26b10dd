"""The example for X runs as it stands, against the imitation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from durable_streams import DurableStream, StreamNotFoundError
from durable_streams.testing import InMemoryStreamServer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "x_filtered_stream.py"


def wait_for_records(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if len(read(url)) >= 3:
                return
        except StreamNotFoundError:
            pass
        time.sleep(0.1)


def read(url: str) -> list[str]:
    with DurableStream(url) as handle, handle.stream(live=False) as res:
        return [record["data"]["id"] for record in res.read_json()]


def test_the_example_fills_a_stream_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    with InMemoryStreamServer() as server:
        url = server.url("posts")
        command = [sys.executable, str(EXAMPLE), url, "--imitation", "--backfill", "--rule", "cat"]
        folders = {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)}
        environment = {**os.environ, **folders, "PYTHONPATH": str(ROOT / "xdk" / "src")}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
            try:
                wait_for_records(url)
                running.send_signal(signal.SIGINT)
                said, _ = running.communicate(timeout=60)
            finally:
                running.kill()
        assert running.returncode == 0
        assert said.startswith("exactly once")
        ids = read(url)
    assert len(ids) >= 3
    assert len(set(ids)) == len(ids)
    assert said.splitlines()[-1].startswith(f"{len(ids)} stored")


def test_the_example_needs_a_token_or_the_imitation() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "X_BEARER_TOKEN"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "http://127.0.0.1:1/v1/stream/posts"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1
    assert "X_BEARER_TOKEN" in done.stderr
