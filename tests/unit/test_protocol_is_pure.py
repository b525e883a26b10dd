from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable_streams

FOLDER = Path(durable_streams.__file__).parent / "protocol"
OURS = {"durable_streams.errors", "durable_streams.types", "durable_streams.protocol"}
# What has a clock, a lock, a socket or a file in it. A source of chance is passed in; its type may be named.
IMPURE = {
    "asyncio",
    "concurrent",
    "http",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "queue",
    "secrets",
}
IMPURE |= {
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "socketserver",
    "sqlite3",
    "ssl",
    "subprocess",
}
IMPURE |= {"tempfile", "threading", "time", "uuid"}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield node.module or ""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_protocol_imports_nothing_that_does_io(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        if top == "durable_streams":
            assert name in OURS or name.startswith("durable_streams.protocol."), name
        else:
            assert top == "msgspec" or (top in sys.stdlib_module_names and top not in IMPURE), name
