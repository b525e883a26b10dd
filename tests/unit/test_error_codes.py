"""docs/errors.md names every code that an error or an answer of the server can have, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import durable_streams

SOURCE = Path(durable_streams.__file__).parent
TABLE = Path(__file__).parents[2] / "docs" / "errors.md"
CODE = re.compile(r"[A-Z]{2,}(_[A-Z]+)*")
ANSWERS = {"RefusedError", "Refusal", "Rejection", "error_response"}  # their second argument is a code


def constants(node: ast.AST) -> Iterator[str]:
    """Yield the strings below a node that look like a code."""
    for below in ast.walk(node):
        if isinstance(below, ast.Constant) and isinstance(below.value, str) and CODE.fullmatch(below.value):
            yield below.value


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Yield the codes that a module gives to its errors."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="code", value=value):
                yield from constants(value)
            case ast.Assign(targets=[ast.Name(id="default_code")], value=value):
                yield from constants(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value))):
                if name == value and CODE.fullmatch(value):
                    yield value
            case ast.Call(func=ast.Name(id=name), args=[_, code, *_]) if name in ANSWERS:
                yield from constants(code)
            case ast.Tuple(elts=[ast.Constant(value=str(code)), *_, ast.Constant(value=str(message))]):
                # A row of a table of failures: a code, and what it means.
                if CODE.fullmatch(code) and " " in message:
                    yield code


def in_the_source() -> set[str]:
    paths = [path for path in SOURCE.rglob("*.py") if path.relative_to(SOURCE).parts[0] != "testing"]
    return {code for path in paths for code in codes_in(ast.parse(path.read_text()))}


def in_the_table() -> list[str]:
    return re.findall(r"^\| `([A-Z_]+)` \|", TABLE.read_text(), re.MULTILINE)


def test_the_table_has_every_code_and_no_other() -> None:
    assert set(in_the_table()) == in_the_source()


def test_the_table_is_sorted_and_names_each_code_once() -> None:
    assert in_the_table() == sorted(set(in_the_table()))
