"""Dependencies point one way: cli to client, server to stores to protocol. A class name stands for one thing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import durable_streams

HOME = Path(durable_streams.__file__).parent
# What each layer may import of ours, besides itself.
ALLOWED = {
    "__main__": {"cli"},
    "errors": set(),
    "file_lock": set(),
    "lazy": set(),
    "types": {"errors"},
    "version": set(),
    "protocol": {"errors", "types"},
    "stores": {"protocol", "file_lock"},
    "server": {"stores", "protocol", "types", "version"},
    "client": {"protocol", "errors", "types", "version"},
    "firehose": {"client", "protocol", "errors", "types", "lazy"},
    "embedded": {"client", "server", "stores", "protocol", "errors"},
    "django": {"embedded", "server", "lazy"},
    "ai": {"embedded", "client", "protocol", "errors", "types"},
    "relay": {"file_lock", "firehose", "client", "protocol", "errors", "types"},
    "state": {"client", "protocol", "errors", "types"},
    "worker": {"client", "protocol"},
    "testing": {"server", "stores", "protocol", "client", "errors", "types", "lazy"},
    "cli": {
        "file_lock",
        "worker",
        "testing",
        "relay",
        "client",
        "server",
        "stores",
        "protocol",
        "errors",
        "types",
        "version",
        "__init__",
    },
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


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(HOME.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in HOME.rglob("*.py")}


def modules_imported(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a module imports: at its top, in a function, or for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module or ""


def test_no_import_leads_back_to_where_it_began() -> None:
    graph = {name: MODULES.keys() & set(modules_imported(path)) for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # its error names the circle


def test_a_class_name_stands_for_one_thing() -> None:
    """A name with an underscore is its module's own: so are the sync and the async side of one performer."""
    places = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_only_adapters_know_the_http_server() -> None:
    for path in HOME.rglob("*.py"):
        source = path.read_text()
        if "import granian" in source or "from granian" in source:
            assert path.relative_to(HOME).as_posix() in {"server/rsgi.py", "server/http_server.py"}
        if layer_of(path) not in {"stores", "state"}:
            assert "import sqlite3" not in source, path


def test_only_the_connection_knows_the_client_of_nats() -> None:
    knowing = {
        path.relative_to(HOME).as_posix()
        for path in HOME.rglob("*.py")
        if re.search(r"^\s*(import|from) nats\b", path.read_text(), re.MULTILINE)
    }
    assert knowing == {"stores/jetstream/nats/client.py", "stores/jetstream/nats/connection.py"}


def test_the_client_of_nats_is_needed_for_streams_on_nats_only() -> None:
    program = """
import sys
sys.modules["nats"] = None  # as if it were not installed
from durable_streams.cli import main
sys.exit(main())
"""
    command = [sys.executable, "-c", program, "serve", "--port", "0"]
    with subprocess.Popen([*command, "--memory"], stdout=subprocess.PIPE) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline().startswith(b"durable-streams: serving http://")
        serving.terminate()
    refused = subprocess.run([*command, "--store", "nats://h"], capture_output=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert b'pip install "nats-py>=2.15,<3"' in refused.stderr
    assert refused.stderr.count(b"\n") == 1


def test_the_table_of_folders_is_complete() -> None:
    """CONTRIBUTING.md names every folder of the sources and of the tests, and none that is not there."""
    root = HOME.parents[1]
    table = re.findall(r"^\| `.*", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {path for row in table for path in re.findall(r"`([\w/.]+/[\w.]*)`", row)}
    assert [path for path in named if not (root / path).exists()] == []
    folders = [
        folder for parent in (HOME, root / "tests") for folder in parent.iterdir() if any(folder.glob("*.py"))
    ]
    assert {f"{folder.relative_to(root)}/" for folder in folders} - named == set()
