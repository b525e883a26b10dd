"""What the process shares: after a fork, in several threads and event loops, and what is left of it at the end.

Each program runs with warnings as errors and in development mode: a socket, a session or a loop left open would be
reported on its standard error, which has to stay empty.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from scripted import ScriptedServer

from durable_streams.protocol.sse import encode_control, encode_data

WITHIN = 60.0

COMMON = """
import asyncio, gc, logging, os, sys, threading
from durable_streams import AsyncDurableStream, DurableStream, DurableStreamError, astream, stream
root = sys.argv[1]
logging.getLogger("asyncio").setLevel(logging.ERROR)  # not how long a step of a busy machine took


def read():
    with stream(root + "/text", live=False) as res:
        assert res.read_bytes() == b"hello"

async def aread():
    async with astream(root + "/text", live=False) as res:
        assert await res.read_bytes() == b"hello"

def in_child(check):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def in_threads(check):
    failed = []
    def run():
        try:
            check()
        except BaseException as error:
            failed.append(error)
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failed, failed
"""

PROGRAMS = {
    "sync": """
# to the end
read(); read()
# an error
try:
    stream(root + "/missing")
except DurableStreamError as error:
    assert error.status == 404
# left in the middle
for chunk in stream(root + "/live", live="sse"):
    break
gc.collect()
# closed in the middle
with stream(root + "/live", live="sse") as res:
    assert next(iter(res)) == b"hello"
# an exception in the middle
class Stop(Exception): pass
try:
    with stream(root + "/live", live="sse") as res:
        for chunk in res:
            raise Stop
except Stop:
    pass
# never read
res = stream(root + "/live", live="sse")
# two threads
read(); in_threads(read)
""",
    "sync forks": """
# a fork
read(); in_child(read); read()
# a fork of a reader
with stream(root + "/live", live="sse") as res:
    chunks = iter(res)
    assert next(chunks) == b"hello"
    in_child(read)
read()
""",
    "async": """
# to the end
asyncio.run(aread())
# an error
async def main():
    try:
        await astream(root + "/missing")
    except DurableStreamError as error:
        assert error.status == 404
asyncio.run(main())
# left in the middle
async def main():
    async for chunk in await astream(root + "/live", live="sse"):
        break
asyncio.run(main())
# closed in the middle
async def main():
    async with astream(root + "/live", live="sse") as res:
        async for chunk in res:
            assert chunk == b"hello"
            break
asyncio.run(main())
# an exception in the middle
class Stop(Exception): pass
async def main():
    async with astream(root + "/live", live="sse") as res:
        async for chunk in res:
            raise Stop
try:
    asyncio.run(main())
except Stop:
    pass
# cancelled in the middle
async def main():
    async def follow():
        async with astream(root + "/live", live="sse") as res:
            async for chunk in res:
                begun.set()
    begun = asyncio.Event()
    task = asyncio.create_task(follow())
    await begun.wait()
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
asyncio.run(main())
# a task left to the end of the loop
async def main():
    async def follow():
        async with astream(root + "/live", live="sse") as res:
            async for chunk in res:
                begun.set()
    begun = asyncio.Event()
    main.task = asyncio.create_task(follow())
    await begun.wait()
asyncio.run(main())
""",
    "async loops": """
# a loop closed in the middle
async def main():
    res = await astream(root + "/live", live="sse")
    chunks = aiter(res)
    assert await anext(chunks) == b"hello"
    return res, chunks
loop = asyncio.new_event_loop()
kept = loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
del kept
gc.collect()
asyncio.run(aread())
# a loop closed in the middle of a read
async def main():
    async def follow():
        async with astream(root + "/live", live="sse") as res:
            async for chunk in res:
                begun.set()
    begun = asyncio.Event()
    main.task = asyncio.ensure_future(follow())
    await begun.wait()
    await asyncio.sleep(0.05)
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
main.task.cancel()
try:
    loop.run_until_complete(main.task)
except asyncio.CancelledError:
    pass
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
asyncio.run(aread())
# one loop after the other
asyncio.run(aread()); asyncio.run(aread())
# two loops at once
in_threads(lambda: [asyncio.run(aread()) for _ in range(3)])
""",
    "async forks": """
# a fork between loops
asyncio.run(aread())
in_child(lambda: asyncio.run(aread()))
asyncio.run(aread())
# a fork inside a loop
async def main():
    await aread()
    def check():
        asyncio._set_running_loop(None)
        asyncio.run(aread())
    in_child(check)
    await aread()
asyncio.run(main())
""",
}


@pytest.fixture
def root(scripted: ScriptedServer) -> str:
    """Give the URL of a server with a closed stream, ``text``, and an endless event stream, ``live``."""
    closed = {"stream_next_offset": "5", "stream_closed": "true", "content_type": "text/plain"}
    event = encode_data(b"hello", text=True) + encode_control("5", up_to_date=True)

    def reply(connection: socket.socket) -> None:
        target = scripted.requests[-1].target
        if target.startswith("/live"):
            scripted.stall(scripted.events(event))(connection)
        elif target.startswith("/text"):
            connection.sendall(scripted.response(200, b"hello", **closed))
        else:
            connection.sendall(scripted.response(404))

    scripted.replies = [reply]
    return scripted.root


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_left_open(name: str, root: str) -> None:
    if "fork" in name and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    assert run(COMMON + PROGRAMS[name], root, "-X", "dev", "-W", "error") == ""


def test_a_loop_that_was_not_shut_down_does_the_next_one_no_harm(root: str) -> None:
    program = """
loop = asyncio.new_event_loop()
loop.run_until_complete(aread())
loop.close()
asyncio.run(aread())
"""
    run(COMMON + program, root)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize(
    ("read", "connections"), [("read()", 2), ("asyncio.run(aread())", 3)], ids=["sync", "async"]
)
def test_a_child_has_connections_of_its_own(
    read: str, connections: int, root: str, scripted: ScriptedServer
) -> None:
    """One of the parent's, which it uses again (unless its loop ended meanwhile), and one of the child's."""
    run(f"{COMMON}\n{read}\nin_child(lambda: {read})\n{read}", root)
    assert len(scripted.requests) == 3
    assert len(scripted.connections) == connections


def run(program: str, root: str, *options: str) -> str:
    """Run a program to its good end, and return what it said on its standard error."""
    ended = subprocess.run(
        [sys.executable, *options, "-c", program, root], capture_output=True, timeout=WITHIN, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stderr.decode()
