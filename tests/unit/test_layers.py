"""Dependencies point one way: cli to client, server to stores to protocol."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable_streams

HOME = Path(durable_streams.__file__).parent
# What each layer may import of ours, besides itself.
ALLOWED = {
    "errors": set(),
    "lazy": set(),
    "types": set(),
    "protocol": {"errors", "types"},
    "stores": {"protocol"},
    "server": {"stores", "protocol"},
    "client": {"protocol", "errors", "types"},
    "firehose": {"client", "protocol", "errors", "types", "lazy"},
    "relay": {"firehose", "client", "protocol", "errors", "types"},
    "testing": {"server", "stores", "protocol", "client", "errors", "types", "lazy"},
    "cli": {"relay", "client", "server", "stores", "protocol", "errors", "types", "__init__"},
}


def layer_of(path: Path) -> str:
    return path.relative_to(HOME).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield the layers of ours that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "durable_streams":
                yield rest.partition(".")[0] or "__init__"


@pytest.mark.parametrize("path", sorted(HOME.rglob("*.py")), ids=lambda path: str(path.relative_to(HOME)))
def test_nothing_imports_upward(path: Path) -> None:
    layer = layer_of(path)
    if layer == "__init__":
        return
    assert layer in ALLOWED, f"{layer} has no place in the order yet"
    assert set(imported(path)) <= ALLOWED[layer] | {layer}


def test_only_adapters_know_the_http_server() -> None:
    for path in HOME.rglob("*.py"):
        source = path.read_text()
        if "import granian" in source or "from granian" in source:
            assert path.relative_to(HOME).as_posix() in {"server/rsgi.py", "server/run.py"}
        if layer_of(path) != "stores":
            assert "import sqlite3" not in source, path
