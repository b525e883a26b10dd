from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable_streams

HOME = Path(durable_streams.__file__).parent
PURE_FOLDERS = ("protocol",)
PURE_MODULES = (
    "errors",
    "types",
    "firehose.config",
    "firehose.errors",
    "firehose.machine",
    "firehose.records",
)
FILES = [
    *(path for folder in PURE_FOLDERS for path in sorted((HOME / folder).glob("*.py"))),
    *((HOME / module.replace(".", "/")).with_suffix(".py") for module in PURE_MODULES),
]
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


def is_pure(module: str) -> bool:
    """Return whether a module of ours, or a package that imports nothing at once, is on the list."""
    ours = module.removeprefix("durable_streams.")
    return ours in PURE_MODULES or ours.partition(".")[0] in PURE_FOLDERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(HOME).as_posix())
def test_a_pure_module_imports_nothing_that_does_io(path: Path) -> None:
    for name in imports(path):
        top = name.partition(".")[0]
        if top == "durable_streams":
            assert is_pure(name), name
        else:
            pure = top in sys.stdlib_module_names and top not in IMPURE
            assert pure or top in {"msgspec", "typing_extensions"}, name
