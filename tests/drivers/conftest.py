"""Fixtures of the driver suite: an API over a transport, a stream on a real server, a server with a script.

A test that takes ``facade`` runs on both APIs, each over its own HTTP library; marked ``every_transport``, over all of
them. ``url`` is a stream on SQLite; marked ``every_store``, one in memory too.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from facade import (
    ASYNC_TRANSPORTS,
    SYNC_TRANSPORTS,
    AsyncFacade,
    Facade,
    Loop,
    SyncFacade,
    is_installed,
    make_client,
)
from scripted import ScriptedServer

_numbers = count()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marked = metafunc.definition.get_closest_marker
    if "facade" in metafunc.fixturenames:
        every = [name for name in (*SYNC_TRANSPORTS, *ASYNC_TRANSPORTS) if is_installed(name)]
        names = every if marked("every_transport") else [SYNC_TRANSPORTS[0], ASYNC_TRANSPORTS[0]]
        metafunc.parametrize("facade", names, indirect=True)
    if "store" in metafunc.fixturenames and marked("every_store"):
        metafunc.parametrize("store", ["sqlite", "memory"], indirect=True)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    """Give the event loop that all async facades of this process share."""
    loop = Loop()
    yield loop
    gc.collect()
    loop.stop()
    assert loop.complaints == []


@pytest.fixture(scope="session")
def facades(loop: Loop) -> Iterator[dict[str, Facade]]:
    """Give the facades that were made in this process, by transport, and close their clients with it."""
    made: dict[str, Facade] = {}
    yield made
    for facade in made.values():
        if facade.client is not None:
            if isinstance(facade, AsyncFacade):
                loop.call(facade.client.aclose)
            else:
                facade.client.close()


@pytest.fixture
def facade(request: pytest.FixtureRequest, facades: dict[str, Facade], loop: Loop) -> Facade:
    """Give an API over a transport."""
    transport = request.param
    if transport not in facades:
        if transport in SYNC_TRANSPORTS:
            facades[transport] = SyncFacade(transport, make_client(transport))
        else:
            client = loop.run(_made(transport))
            facades[transport] = AsyncFacade(transport, loop, client)
    return facades[transport]


async def _made(transport: str) -> Any:
    return make_client(transport)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> str:
    """Give the kind of store that the test's server has."""
    return getattr(request, "param", "sqlite")


@pytest.fixture
def root(request: pytest.FixtureRequest, store: str) -> str:
    """Give the URL under which a real server, shared with other tests, has its streams."""
    server = request.getfixturevalue("shared_server" if store == "sqlite" else "shared_memory_server")
    return str(server.root)


@pytest.fixture
def url(root: str, request: pytest.FixtureRequest) -> str:
    """Give the URL of a stream that no other test uses."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")
    return f"{root}/drivers/{name[:60]}-{next(_numbers)}"


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    """Give a server that answers with what the test puts into its ``replies``."""
    server = ScriptedServer()
    yield server
    server.stop()
