"""What the process shares: after a fork, in several threads and event loops, and what is left of it at the end.

Each program runs with warnings as errors and in development mode: a socket, a session or a loop left open would be
told on its standard error, which has to stay empty.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from scripted import ScriptedServer

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
    "sync": "read(); read()",
    "sync, an error": """
try:
    stream(root + "/missing")
except DurableStreamError as error:
    assert error.status == 404
""",
    "sync, left in the middle": """
for chunk in stream(root + "/live", live="sse"):
    break
gc.collect()
""",
    "sync, closed in the middle": """
with stream(root + "/live", live="sse") as res:
    assert next(iter(res)) == b"hello"
""",
    "sync, an exception in the middle": """
class Stop(Exception): pass
try:
    with stream(root + "/live", live="sse") as res:
        for chunk in res:
            raise Stop
except Stop:
    pass
""",
    "sync, never read": 'res = stream(root + "/live", live="sse")',
    "sync, two threads": "read(); in_threads(read)",
    "sync, a fork": "read(); in_child(read); read()",
    "sync, a fork of a reader": """
with stream(root + "/live", live="sse") as res:
    chunks = iter(res)
    assert next(chunks) == b"hello"
    in_child(read)
read()
""",
    "async": "asyncio.run(aread())",
    "async, an error": """
async def main():
    try:
        await astream(root + "/missing")
    except DurableStreamError as error:
        assert error.status == 404
asyncio.run(main())
""",
    "async, left in the middle": """
async def main():
    async for chunk in await astream(root + "/live", live="sse"):
        break
asyncio.run(main())
""",
    "async, closed in the middle": """
async def main():
    async with astream(root + "/live", live="sse") as res:
        async for chunk in res:
            assert chunk == b"hello"
            break
asyncio.run(main())
""",
    "async, an exception in the middle": """
class Stop(Exception): pass
async def main():
    async with astream(root + "/live", live="sse") as res:
        async for chunk in res:
            raise Stop
try:
    asyncio.run(main())
except Stop:
    pass
""",
    "async, cancelled in the middle": """
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
""",
    "async, a task left to the end of the loop": """
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
    "async, one loop after the other": "asyncio.run(aread()); asyncio.run(aread())",
    "async, two loops at once": "in_threads(lambda: [asyncio.run(aread()) for _ in range(3)])",
    "async, a fork between loops": """
asyncio.run(aread())
in_child(lambda: asyncio.run(aread()))
asyncio.run(aread())
""",
    "async, a fork inside a loop": """
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


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_left_open(name: str, scripted: ScriptedServer) -> None:
    if "fork" in name and not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    closed = {"stream_next_offset": "5", "stream_closed": "true", "content_type": "text/plain"}
    event = b'event: data\ndata: hello\n\nevent: control\ndata: {"streamNextOffset":"5","upToDate":true}\n\n'

    def reply(connection: object) -> None:
        target = scripted.requests[-1].target
        if target.startswith("/missing"):
            scripted.send(scripted.response(404))(connection)  # type: ignore[arg-type]
        elif target.startswith("/live"):
            scripted.stall(scripted.events(event))(connection)  # type: ignore[arg-type]
        else:
            scripted.send(scripted.response(200, b"hello", **closed))(connection)  # type: ignore[arg-type]

    scripted.replies = [reply]
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", COMMON + PROGRAMS[name], scripted.root],
        capture_output=True,
        timeout=WITHIN,
        check=False,
    )
    assert run.stderr.decode() == ""
    assert run.returncode == 0
