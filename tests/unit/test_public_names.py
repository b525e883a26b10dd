from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import durable_streams
import durable_streams.ai
import durable_streams.embedded
import durable_streams.server
import durable_streams.state
import durable_streams.testing

PUBLIC = [
    durable_streams,
    durable_streams.testing,
    durable_streams.server,
    durable_streams.embedded,
    durable_streams.ai,
    durable_streams.state,
]
MODULES = sorted(
    module.name
    for package in ("ai", "client", "embedded", "protocol", "server", "state", "stores", "testing")
    for module in pkgutil.walk_packages(
        importlib.import_module(f"durable_streams.{package}").__path__, f"durable_streams.{package}."
    )
)
PROMISED = {
    "AsyncDurableStream",
    "DurableStream",
    "DurableStreamError",
    "HeadersLike",
    "IdempotentProducer",
    "LiveMode",
    "Offset",
    "ParamsLike",
    "RetentionGoneError",
    "SSENotSupportedError",
    "SeqConflictError",
    "StreamClosedError",
    "StreamExistsError",
    "StreamNotFoundError",
    "astream",
    "stream",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_exists_and_all_is_without_repetition(module: object) -> None:
    names: list[str] = module.__all__  # type: ignore[attr-defined]
    for name in names:
        assert getattr(module, name) is not None
    assert len(set(names)) == len(names)
    assert set(names) <= set(dir(module))


def test_a_star_import_gives_exactly_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from durable_streams import *", names)
    assert set(names) - {"__builtins__"} == set(durable_streams.__all__)


def test_every_promised_name_is_there() -> None:
    assert set(durable_streams.__all__) >= PROMISED


def test_a_type_checker_sees_the_names_that_are_imported_late() -> None:
    tree = ast.parse(Path(inspect.getfile(durable_streams)).read_text(encoding="utf-8"))
    [checked] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.asname or alias.name
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(durable_streams.__all__)


def test_every_error_and_result_is_public() -> None:
    from durable_streams import errors, types

    for name in (*errors.__all__, *types.__all__):
        value = getattr(errors, name, None) or getattr(types, name)
        # Aliases of callbacks are for annotations of our own.
        if inspect.isclass(value):
            assert name in durable_streams.__all__


@pytest.mark.parametrize("name", MODULES)
def test_every_module_names_what_it_exports(name: str) -> None:
    module = importlib.import_module(name)
    for exported in getattr(module, "__all__", ()):
        assert hasattr(module, exported), exported


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        durable_streams.nothing  # noqa: B018


def test_importing_the_package_loads_no_http_library() -> None:
    libraries = ("urllib3", "aiohttp", "httpx", "httpx2", "requests", "msgspec", "granian", "pydantic")
    program = f"import sys, durable_streams; print([m for m in {libraries} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "absent"),
    [("stream", ("asyncio", "aiohttp", "httpx", "pydantic")), ("astream", ("urllib3", "httpx", "pydantic"))],
)
def test_each_api_loads_its_own_http_library_only(name: str, absent: tuple[str, ...]) -> None:
    program = (
        f"import sys; from durable_streams import {name}; print([m for m in {absent} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
