"""Fixtures of the driver suite: an API over a transport, a stream on a real server, a server with a script.

A test that takes ``facade`` runs on both APIs, each over its own HTTP library; marked ``every_transport``, over all of
them. ``url`` is a stream on SQLite; marked ``every_store``, one in memory too.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
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
FOLDER = Path(__file__).parent

# httpx2 is httpx under another name, and one adapter serves both: these are run over it in any case, all others with
# --every-httpx2.
OVER_HTTPX2 = {
    "test_a_client_of_the_other_kind_is_refused",
    "test_a_connection_reset_in_the_body",
    "test_a_little_that_decodes_to_much_comes_in_pieces",
    "test_a_streams_life",
    "test_an_answer_is_what_the_server_sent",
    "test_an_interrupt_wakes_a_wait_for_the_head",
    "test_bytes_are_handed_over_as_they_come",
    "test_close_from_another_thread_wakes_a_blocked_read",
    "test_close_wakes_a_read_that_waits_for_the_answers_head",
    "test_nobody_listens",
    "test_records_are_batched_and_come_back_in_order",
    "test_redirects_are_handed_over",
    "test_the_callers_client_stays_open_and_keeps_its_timeout",
    "test_tls_to_a_server_that_speaks_none",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what httpx has shown for httpx2."""
    if config.getoption("--every-httpx2"):
        return
    over = [item for item in items if "httpx2" in item.name and item.path.parent == FOLDER]
    left_out = [item for item in over if getattr(item, "originalname", item.name) not in OVER_HTTPX2]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]


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
