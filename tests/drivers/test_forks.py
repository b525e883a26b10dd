"""After a fork: handles go on in the child over connections of their own, and the parent notices nothing.

Each program forks in the middle of what it names, and looks at both processes; the server tells what either sent.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from scripted import ScriptedServer

from durable_streams.protocol.sse import encode_control, encode_data

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

WITHIN = 60.0
# Python 3.12 warns of every fork beside threads: that is what these tests are about.
_QUIET = ("-W", "ignore:This process:DeprecationWarning")

COMMON = """
import asyncio, importlib, os, sys, threading, time
from durable_streams import AsyncDurableStream, DurableStream, astream, stream
from durable_streams.firehose import FirehoseStream
root, library, kind = sys.argv[1:]

def make_client():
    return getattr(importlib.import_module(library), kind)() if kind else None

async def end(client):
    for name in ("aclose", "close"):
        if hasattr(client, name):
            return await getattr(client, name)()

def in_child(check):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def wait_until(check):
    end = time.monotonic() + 30
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)
"""

SYNC = [
    ("urllib3", ""),
    ("urllib3", "PoolManager"),
    ("httpx", "Client"),
    ("httpx2", "Client"),
    ("requests", "Session"),
]
ASYNC = [("aiohttp", ""), ("httpx", "AsyncClient"), ("httpx2", "AsyncClient")]


def run(program: str, root: str, library: str = "urllib3", kind: str = "") -> None:
    """Run a program to its good end."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    ended = subprocess.run(
        [sys.executable, *_QUIET, "-c", COMMON + program, root, library, kind],
        capture_output=True,
        timeout=WITHIN,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stderr.decode() == ""


def appended(scripted: ScriptedServer) -> list[str]:
    return sorted(request.body for request in scripted.requests if request.method == "POST")


@pytest.fixture
def slow(scripted: ScriptedServer) -> ScriptedServer:
    """Give a server that answers an append of ``slow`` once ``child`` has come, and everything else at once."""

    def reply(connection: socket.socket) -> None:
        if scripted.requests[-1].body == "slow":
            while "child" not in appended(scripted) and not scripted.ended.wait(0.01):
                pass
        connection.sendall(scripted.response(204, stream_next_offset="1"))

    scripted.replies = [reply]
    return scripted


@pytest.mark.parametrize(("library", "kind"), SYNC)
def test_a6_a_handle_goes_on_in_a_child_while_a_thread_of_the_parent_appends(
    slow: ScriptedServer, library: str, kind: str
) -> None:
    """The thread holds the handle's turn, which nobody in the child would ever give back."""
    program = """
handle = DurableStream(root + "/s", content_type="text/plain", client=make_client())
handle.append("first")
thread = threading.Thread(target=handle.append, args=("slow",))
thread.start()
wait_until(lambda: len(handle._turns._queue._taken) == 1 and handle._turns._queue._taken[0].data == "slow")
time.sleep(0.1)
in_child(lambda: handle.append("child"))
thread.join()
handle.append("last")
"""
    run(program, slow.root, library, kind)
    assert appended(slow) == ["child", "first", "last", "slow"]


@pytest.mark.parametrize(("library", "kind"), SYNC)
def test_a6_a_child_has_connections_of_its_own(slow: ScriptedServer, library: str, kind: str) -> None:
    """Idle ones of the parent's are not taken, by handles made before the fork and by those made after it."""
    program = """
client = make_client()
handle = DurableStream(root + "/s", content_type="text/plain", client=client, batching=False)
handle.append("first")

def check():
    threads = [threading.Thread(target=handle.append, args=(f"in {n}",)) for n in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    DurableStream(root + "/s", content_type="text/plain", client=client).append("new")

in_child(check)
handle.append("last")
"""
    run(program, slow.root, library, kind)
    assert appended(slow) == ["first", "in 0", "in 1", "in 2", "last", "new"]
    own = [[request.body for request in requests] for requests in slow.by_connection]
    assert own[0] == ["first", "last"]


@pytest.mark.parametrize("given", ["before", "after"])
@pytest.mark.parametrize(("library", "kind"), ASYNC)
def test_a6_an_async_handle_goes_on_in_a_child(
    slow: ScriptedServer, library: str, kind: str, given: str
) -> None:
    """Also where a task of the parent's event loop has the handle's turn."""
    program = """
async def main():
    client = make_client()
    handle = AsyncDurableStream(root + "/s", content_type="text/plain", client=client)
    await handle.append("first")
    task = asyncio.ensure_future(handle.append("slow"))
    await asyncio.sleep(0.2)

    async def in_own_loop():
        other = handle if GIVEN else AsyncDurableStream(root + "/s", content_type="text/plain", client=client)
        await asyncio.gather(other.append("child"), other.append("twin"))

    def check():
        asyncio._set_running_loop(None)
        asyncio.run(in_own_loop())
    in_child(check)
    await task
    await handle.append("last")
    await end(client)
asyncio.run(main())
""".replace("GIVEN", str(given == "before"))
    run(program, slow.root, library, kind)
    bodies = appended(slow)
    assert "".join(bodies).count("child") == "".join(bodies).count("twin") == 1
    assert [body for body in bodies if body in {"first", "last", "slow"}] == ["first", "last", "slow"]


def test_a6_the_same_event_loop_object_goes_on_in_a_child(slow: ScriptedServer) -> None:
    """Between two runs of a loop there may be tasks that have the handle's turn: they belong to the parent."""
    program = """
loop = asyncio.new_event_loop()
handle = AsyncDurableStream(root + "/s", content_type="text/plain")
loop.run_until_complete(handle.append("first"))
in_child(lambda: loop.run_until_complete(handle.append("child")))
loop.run_until_complete(handle.append("last"))
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
"""
    run(program, slow.root)
    assert appended(slow) == ["child", "first", "last"]
    own = [[request.body for request in requests] for requests in slow.by_connection]
    assert ["child"] in own


def test_a6_a_child_that_ends_normally_leaves_the_parents_event_loop_alone(slow: ScriptedServer) -> None:
    """Closing an inherited connection would take it out of the selector that both processes share."""
    program = """
async def main():
    handle = AsyncDurableStream(root + "/s", content_type="text/plain")
    await handle.append("first")
    live = await astream(root + "/live", live="sse")
    chunks = aiter(live)
    assert await anext(chunks) == b"one"
    child = os.fork()
    if child == 0:
        sys.exit(0)  # unwinds the copy of the loop, and collects everything
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        await asyncio.sleep(0.01)
    await asyncio.wait_for(handle.append("last"), 20)
    assert await asyncio.wait_for(anext(chunks), 20) == b"two"
    await live.aclose()
asyncio.run(main())
"""
    appends = slow.replies[0]
    slow.replies = [_events_after("last", slow, appends)]
    run(program, slow.root)
    assert appended(slow) == ["first", "last"]


def _events_after(
    body: str, scripted: ScriptedServer, otherwise: Callable[[socket.socket], None]
) -> Callable[[socket.socket], None]:
    """Answer reads with an event stream: one event at once, another when an append of ``body`` has come."""

    def event(text: bytes, offset: str) -> bytes:
        return encode_data(text, text=True) + encode_control(offset, up_to_date=True)

    def reply(connection: socket.socket) -> None:
        request = scripted.requests[-1]
        if request.method != "GET":
            otherwise(connection)
            return
        since = request.query.get("offset", "-1")
        wire = event(b"one", "1") if since == "-1" else b""
        connection.sendall(scripted.events(wire))
        while body not in appended(scripted) and not scripted.ended.wait(0.01):
            pass
        connection.sendall(event(b"two", "2"))
        scripted.ended.wait()

    return reply


@pytest.mark.parametrize(("library", "kind"), SYNC)
def test_a6_a_read_goes_on_in_both_processes(slow: ScriptedServer, library: str, kind: str) -> None:
    """The child asks again from where the read was, and takes no byte of the answer that is the parent's."""
    program = """
client = make_client()
res = stream(root + "/live", live="sse", client=client)
chunks = iter(res)
assert next(chunks) == b"one"

def check():
    assert next(chunks) == b"two"
    assert res.offset == "2"

def append():
    time.sleep(1.0)
    DurableStream(root + "/s", content_type="text/plain").append("go")
thread = threading.Thread(target=append)
thread.start()
in_child(check)
thread.join()
assert next(chunks) == b"two"
res.close()
"""
    slow.replies = [_events_after("go", slow, slow.replies[0])]
    run(program, slow.root, library, kind)
    assert [request.query.get("offset") for request in slow.requests if request.method == "GET"] == [
        "-1",
        "1",
    ]


@pytest.mark.parametrize(("library", "kind"), ASYNC)
def test_a6_an_async_read_goes_on_in_both_processes(slow: ScriptedServer, library: str, kind: str) -> None:
    program = """
async def main():
    client = make_client()
    res = await astream(root + "/live", live="sse", client=client)
    chunks = aiter(res)
    assert await anext(chunks) == b"one"

    async def go_on():
        assert await anext(chunks) == b"two"
        await res.aclose()

    def check():
        asyncio._set_running_loop(None)
        asyncio.run(go_on())

    def append():
        time.sleep(1.0)
        DurableStream(root + "/s", content_type="text/plain").append("go")
    thread = threading.Thread(target=append)
    thread.start()
    in_child(check)
    thread.join()
    assert await anext(chunks) == b"two"
    await res.aclose()
    await end(client)
asyncio.run(main())
"""
    slow.replies = [_events_after("go", slow, slow.replies[0])]
    run(program, slow.root, library, kind)
    assert [request.query.get("offset") for request in slow.requests if request.method == "GET"] == [
        "-1",
        "1",
    ]


@pytest.mark.parametrize(("library", "kind"), SYNC)
def test_a6_closing_a_read_in_a_child_ends_nothing_of_the_parents(
    slow: ScriptedServer, library: str, kind: str
) -> None:
    program = """
res = stream(root + "/live", live="sse", client=make_client())
chunks = iter(res)
assert next(chunks) == b"one"
in_child(res.close)
DurableStream(root + "/s", content_type="text/plain").append("go")
assert next(chunks) == b"two"
res.close()
"""
    slow.replies = [_events_after("go", slow, slow.replies[0])]
    run(program, slow.root, library, kind)
    assert len([request for request in slow.requests if request.method == "GET"]) == 1


@pytest.mark.parametrize(("library", "kind"), SYNC)
def test_a6_a_feed_goes_on_in_both_processes(scripted: ScriptedServer, library: str, kind: str) -> None:
    program = """
feed = FirehoseStream(root + "/feed", client=make_client())
assert next(feed) == {"n": 1}
in_child(lambda: (next(feed), feed.close()))
assert next(feed) == {"n": 2}
feed.stop()
"""

    def reply(connection: socket.socket) -> None:
        connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"n":1}\r\n')
        if len(scripted.requests) == 1:
            while len(scripted.requests) == 1 and not scripted.ended.wait(0.01):
                pass
            scripted.ended.wait(0.3)  # had the child closed it, it would be gone by now
            connection.sendall(b'{"n":2}\r\n')
        scripted.ended.wait()

    scripted.replies = [reply]
    run(program, scripted.root, library, kind)
    assert len(scripted.requests) == 2


@pytest.mark.parametrize(("library", "kind"), SYNC)
def test_a6_a_feed_begins_again_in_a_child_while_a_thread_of_the_parent_waits_in_it(
    scripted: ScriptedServer, library: str, kind: str
) -> None:
    program = """
feed = FirehoseStream(root + "/feed", client=make_client())
seen = []
threading.Thread(target=lambda: seen.extend(feed), daemon=True).start()
wait_until(lambda: len(seen) == 2)
in_child(lambda: (next(iter(feed)), next(feed), feed.close()))
assert len(seen) == 2, seen
feed.stop()
"""

    def reply(connection: socket.socket) -> None:
        connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"n":1}\r\n{"n":2}\r\n')
        scripted.ended.wait()

    scripted.replies = [reply]
    run(program, scripted.root, library, kind)
    assert len(scripted.requests) == 2
