"""The test server: where it runs, how it ends, how a test gets one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from durable_streams import DurableStream, RetryPolicy, stream, testing
from durable_streams.server import ServerConfig
from durable_streams.server.run import ServerStartError
from durable_streams.testing import InMemoryStreamServer

NEVER = RetryPolicy(max_retries=0)
# An installation names the plugin; a source tree on the path does not.
INSTALLED = any(found.name == "durable_streams" for found in entry_points(group="pytest11"))
PLUGIN = [] if INSTALLED else ["-p", "durable_streams.testing.pytest_plugin"]


def test_it_answers_as_soon_as_it_exists() -> None:
    began = time.monotonic()
    with InMemoryStreamServer() as server:
        DurableStream.create(server.url("/test"), retry=NEVER)
        assert server.url("test") == server.url("/test") == f"{server.base_url}/v1/stream/test"
    assert time.monotonic() - began < 10


def test_the_fixture_gives_a_fresh_server(durable_streams_server: InMemoryStreamServer) -> None:
    handle = DurableStream.create(durable_streams_server.url("/test"), content_type="text/plain")
    handle.append("hello")
    assert stream(handle.url, live=False).read_text() == "hello"
    assert durable_streams_server.faults.pending == 0


def test_two_servers_know_nothing_of_each_other() -> None:
    with InMemoryStreamServer() as one, InMemoryStreamServer() as two:
        for server, text in ((one, "one"), (two, "two")):
            DurableStream.create(server.url("/test"), content_type="text/plain", body=text)
        one.faults.respond(503)
        assert stream(two.url("/test"), live=False, retry=NEVER).read_text() == "two"
        assert one.faults.pending == 1
        one.faults.clear()
        assert stream(one.url("/test"), live=False, retry=NEVER).read_text() == "one"


def test_a_stream_names_itself_by_the_address_that_was_asked(server: InMemoryStreamServer) -> None:
    import http.client
    from contextlib import closing

    with closing(http.client.HTTPConnection(server.base_url.removeprefix("http://"))) as connection:
        connection.request("PUT", "/v1/stream/test", headers={"content-type": "text/plain"})
        assert connection.getresponse().headers["location"] == server.url("/test")


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_stopping_ends_a_live_read(live: str) -> None:
    server = InMemoryStreamServer(config=ServerConfig(long_poll_timeout=60))
    handle = DurableStream.create(server.url("/test"), content_type="text/plain", body="a")
    seen: list[bytes] = []
    first = threading.Event()
    reading = stream(handle.url, live="sse" if live == "sse" else "long-poll", retry=NEVER)

    def read() -> None:
        try:
            for piece in reading:
                seen.append(piece)
                first.set()
        except Exception:  # noqa: BLE001 - that the server is gone is what it should find
            pass

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(10)
    began = time.monotonic()
    server.stop()
    server.stop()
    assert time.monotonic() - began < 10
    thread.join(20)
    reading.close()
    assert not thread.is_alive()
    assert seen == [b"a"]


def test_it_may_be_used_and_stopped_in_other_threads() -> None:
    server = InMemoryStreamServer()
    texts: list[str] = []

    def use(number: int) -> None:
        handle = DurableStream.create(server.url(f"/{number}"), content_type="text/plain", body=str(number))
        texts.append(stream(handle.url, live=False).read_text())

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(texts) == list("01234567")
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    stopping.join(20)
    assert not stopping.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_may_use_it_and_leaves_it_running(server: InMemoryStreamServer) -> None:
    handle = DurableStream.create(server.url("/test"), content_type="text/plain")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            handle.append(b"child ")
            server.stop()  # its parent's server, not its own
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    handle.append(b"parent")
    assert stream(handle.url, live=False).read_bytes() == b"child parent"


def test_a_taken_port_is_a_clear_error(server: InMemoryStreamServer) -> None:
    port = int(server.base_url.rpartition(":")[2])
    with pytest.raises(ServerStartError, match="choose another port"):
        InMemoryStreamServer(port=port)
    with pytest.raises(ServerStartError, match="cannot listen on"):
        InMemoryStreamServer("no.such.host.invalid")


def test_a_port_may_be_chosen_and_used_again() -> None:
    with InMemoryStreamServer() as server:
        port = int(server.base_url.rpartition(":")[2])
    for _ in range(2):
        with InMemoryStreamServer(port=port) as server:
            assert server.base_url == f"http://127.0.0.1:{port}"
            DurableStream.create(server.url("/test"), retry=NEVER)


def test_a_store_that_cannot_open_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerStartError):
        InMemoryStreamServer(config=ServerConfig(data_dir=tmp_path / "file"))


# Development mode makes asyncio warn of callbacks that are slow, as they are on a busy machine.
QUIET = "import logging; logging.getLogger('asyncio').setLevel(logging.ERROR)\n"


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", QUIET + program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        check=False,
    )


def test_a_program_that_never_stops_it_ends(tmp_path: Path) -> None:
    program = """
from durable_streams.testing import InMemoryStreamServer
from durable_streams import DurableStream, stream
server = InMemoryStreamServer()
handle = DurableStream.create(server.url("/test"), content_type="text/plain", body="a")
with stream(handle.url) as reading:
    print(next(iter(reading)))
"""
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'a'\n", "")


def test_the_plugin_gives_the_fixture_to_any_project(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_it.py").write_text(
        """
from durable_streams import DurableStream, RetryPolicy, stream

def test_one(durable_streams_server):
    DurableStream.create(durable_streams_server.url("/test"), content_type="text/plain", body="one")
    durable_streams_server.faults.respond(503, retry_after=0)
    assert stream(durable_streams_server.url("/test"), live=False).read_text() == "one"

def test_two(durable_streams_server):
    DurableStream.create(durable_streams_server.url("/test"), content_type="text/plain")
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_loads_no_server_before_it_is_asked_to(tmp_path: Path) -> None:
    program = (
        "import sys, durable_streams.testing.pytest_plugin as p; "
        "print([m for m in ('granian', 'urllib3', 'msgspec', 'uvloop') if m in sys.modules])"
    )
    assert run(program, tmp_path).stdout == "[]\n"


def test_an_installation_names_the_plugin() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    _, _, declared = project.partition('[project.entry-points.pytest11]\ndurable_streams = "')
    assert import_module(declared.partition('"')[0]).durable_streams_server is not None


def test_every_public_name_exists() -> None:
    assert all(getattr(testing, name) is not None for name in testing.__all__)
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError):
        _ = testing.nothing
