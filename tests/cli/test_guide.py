"""The examples of the guide to the client, run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
SERVED = "http://127.0.0.1:4437/v1/stream"


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_each_example_runs(cli, code):
    for name in ("events", "flights"):
        cli.ok("create", name, "-t", "json")
        cli.ok("append", name, '{"origin": "LAS", "delay": 42}')
    cli.ok("close", "events")
    (cli.folder / "token.txt").write_text("secret\n")
    assert SERVED in code
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace(SERVED, cli.root)],
        cwd=cli.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
