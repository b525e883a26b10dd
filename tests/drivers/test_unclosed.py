"""Producers that nobody closed, at the end of their process, of their event loop, and in a process forked off.

Each program is a process of its own. What it wrote is looked for on the server, what it lost on its standard error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from scripted import ScriptedServer

from durable_streams import DurableStream, stream

WITHIN = 60.0
AWAY = "http://127.0.0.1:1/v1/stream/away"  # nobody listens there

COMMON = """
import asyncio, atexit, gc, os, signal, sys, threading, time, traceback
from durable_streams import *
url = sys.argv[1]

def producer(name="p", **options):
    return SyncIdempotentProducer(url, name, content_type="application/json", **options)

def aproducer(name="p", **options):
    return IdempotentProducer(url, name, content_type="application/json", **options)

def fill(producer, count=100):
    for number in range(count):
        producer.append(number)
    return producer
"""

ENDS = {
    "end": "",
    "sys.exit": "sys.exit(0)",
    "sys.exit in a function": "def leave(): sys.exit(0)\nleave()",
    "exception": "sys.excepthook = lambda *_: None\n1 / 0",
    "SIGTERM handled": "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); os.kill(os.getpid(), signal.SIGTERM)",
    "Ctrl-C": "sys.excepthook = lambda *_: None\nos.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "daemon thread": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
}

STORING = {
    **{f"ended by {end}": f"p = fill(producer(linger_ms=60_000))\n{code}" for end, code in ENDS.items()},
    "the content type is asked for": "p = fill(SyncIdempotentProducer(url, 'p'))",
    "garbage": "fill(producer(linger_ms=60_000)); gc.collect()",
    "made in a function": "def work(): fill(producer())\nwork()",
    "filled in a thread": """
p = producer(linger_ms=60_000)
thread = threading.Thread(target=fill, args=(p,))
thread.start()
""",
    "filled in a daemon thread": """
thread = threading.Thread(target=lambda: (fill(producer(linger_ms=60_000)), filled.set(), time.sleep(60)), daemon=True)
filled = threading.Event()
thread.start()
filled.wait()
""",
    "filled at exit": """
p = producer()
p.append(0); p.flush()
atexit.register(lambda: [p.append(number) for number in range(1, 100)])
""",
    "made at exit": "atexit.register(lambda: fill(producer(linger_ms=60_000)))",
    "made at exit, after another was closed": """
atexit.register(lambda: fill(producer(linger_ms=60_000)))
producer("other").close()
""",
    "many batches": "p = fill(producer(max_batch_bytes=20, linger_ms=60_000))",
    "several": """
kept = []
for name in range(4):
    kept.append(producer(str(name), linger_ms=60_000))
for number in range(100):
    kept[number % 4].append(number)
    kept[number % 4].flush() if number < 4 else None
""",
    "submitted": "p = producer(linger_ms=60_000)\nreceipts = [p.submit(number) for number in range(100)]",
    "a relay in a daemon thread": """
from durable_streams.relay import relay
def source():
    yield from range(100)
    given.set()
    time.sleep(60)
given = threading.Event()
threading.Thread(target=relay, args=(source(), url), daemon=True).start()
given.wait()
""",
    "multiprocessing, forked": """
import multiprocessing
def work():
    fill(producer(linger_ms=60_000))
if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start(); child.join()
    assert child.exitcode == 0
""",
    "multiprocessing, from a thread of the child": """
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
def work():
    executor = ThreadPoolExecutor()  # its idle thread ends after the exit functions of multiprocessing
    executor.submit(int).result()
    p = producer(linger_ms=60_000)
    p.append(0)
    threading.Thread(target=lambda: (time.sleep(0.3), [p.append(number) for number in range(1, 100)])).start()
if __name__ == "__main__":
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start(); child.join()
    assert child.exitcode == 0
""",
    "a pool of processes": """
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
def begin():
    global p
    p = producer(linger_ms=60_000)
def work(number):
    p.append(number)
if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"), initializer=begin) as pool:
        list(pool.map(work, range(100)))
""",
}


def run(program: str, url: str, *, code: int | None = 0, text: str = COMMON) -> str:
    """Run a program to its end, and return what it said on its standard error."""
    quiet = "ignore:This process:DeprecationWarning"  # that it forks with threads: just that is tested
    command = [sys.executable, "-W", quiet, "-c", text + program, url]
    ended = subprocess.run(command, capture_output=True, timeout=WITHIN, check=False)
    assert code is None or ended.returncode == code, ended.stderr.decode()
    return ended.stderr.decode()


def read(url: str) -> Any:
    with stream(url, live=False) as res:
        return res.read_json()


@pytest.mark.parametrize("name", STORING)
def test_a5_what_is_queued_at_the_end_is_stored(name: str, url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    assert run(STORING[name], url, code=None) == ""
    items = read(url)
    assert sorted(items) == list(range(100))
    assert name == "several" or items == list(range(100))


def test_a5_an_exit_function_that_runs_after_the_producers_turn_stores_at_once(url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    before = "import atexit, threading\natexit.register(lambda: fill(producer(linger_ms=60_000)))\n"
    assert run("", url, text=before + COMMON) == ""
    assert read(url) == list(range(100))


@pytest.mark.parametrize("end", ENDS)
def test_a5_what_is_lost_at_the_end_is_one_line_that_counts_it(end: str) -> None:
    told = run(f"p = fill(producer(exit_timeout=2))\n{ENDS[end]}", AWAY, code=None)
    assert re.fullmatch(r"ResourceWarning: [^\n]*\n", told)
    for part in ("'p'", AWAY, "100 records", "lost", "2 s", "Connection refused"):
        assert part in told


def test_a5_an_error_that_nobody_asked_for_is_reported(url: str) -> None:
    """There is no such stream: all of it failed long before the end."""
    told = run("p = fill(producer())\nwhile p.pending_count: time.sleep(0.01)", url)
    assert re.fullmatch(
        r"ResourceWarning: [^\n]*'p' of [^\n]*: 100 records are lost \([^\n]*404[^\n]*\n", told
    )


def test_a5_a_producer_that_was_closed_or_given_up_is_not_reported(url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    program = """
with producer() as p:
    fill(p)
p = fill(producer("q", linger_ms=60_000))
p.abandon()
p = producer("r")
"""
    assert run(program, url) == ""
    assert len(read(url)) == 100


def test_a5_an_exit_timeout_of_0_does_not_wait() -> None:
    assert "100 records may be lost" in run("p = fill(producer(exit_timeout=0, linger_ms=60_000))", AWAY)


def test_a5_a_second_ctrl_c_ends_the_wait() -> None:
    program = """
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
p = fill(producer(exit_timeout=1000))
atexit.register(lambda: threading.enumerate())
"""
    # A timer is no daemon thread: Python waits for it before the exit functions run.
    program = program.replace("threading.Timer(", "t = threading.Timer(").replace(
        ".start()", "; t.daemon = True; t.start()"
    )
    assert re.fullmatch(r"ResourceWarning: [^\n]*100 records may be lost[^\n]*\n", run(program, AWAY))


def test_a5_who_waits_for_a_receipt_at_the_end_is_notified() -> None:
    program = """
p = producer(exit_timeout=0.2)
receipt = p.submit(1)
receipt.add_done_callback(lambda done: print(done.exception(), file=sys.stderr))
"""
    told = run(program, AWAY).splitlines()
    assert len(told) == 2
    assert "1 record may be lost" in told[0]
    assert "before 1 records were acknowledged" in told[1]


def test_a5_all_that_is_queued_shares_one_wait(scripted: ScriptedServer) -> None:
    """A server that is silent: five producers wait at the same time, and each is reported."""
    scripted.replies = [scripted.stall()]
    program = "kept = [fill(producer(str(name), exit_timeout=0.5), 3) for name in range(5)]"
    told = run(program, f"{scripted.root}/s").splitlines()
    assert len(told) == 5
    assert all("3 records may be lost" in line for line in told)


def test_a5_the_blocks_own_error_does_not_hide_what_was_lost(url: str) -> None:
    program = """
sys.excepthook = lambda *_: None
with producer(retry_timeout=0) as p:
    fill(p)
    1 / 0
"""
    told = run(program, AWAY, code=1)
    assert re.fullmatch(r"ResourceWarning: [^\n]*100 records are lost[^\n]*\n", told)


def test_a5_a_relay_that_is_interrupted_counts_what_its_source_will_not_give_again(url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    program = """
from durable_streams.relay import relay
def source():
    yield from range(100)
    raise KeyboardInterrupt
try:
    relay(source(), url)
except KeyboardInterrupt:
    pass
"""
    told = run(program, url)
    found = re.fullmatch(r"ResourceWarning: [^\n]* (\d+) records? may be lost \(the relay was[^\n]*\n|", told)
    assert found is not None, told
    assert len(read(url)) >= 100 - int(found[1] or 0)


@pytest.mark.parametrize("early", [False, True], ids=["known type", "unknown type"])
@pytest.mark.parametrize("moment", ["at once", "in flight", "garbage", "kept", "cancelled"])
def test_a5_an_async_producer_is_flushed_when_its_loop_shuts_down(moment: str, early: bool, url: str) -> None:
    """However its tasks end. It is reported, because it should be closed."""
    DurableStream.create(url, content_type="application/json")
    then = {
        "at once": "",
        "in flight": "await asyncio.sleep(0.001)",
        "garbage": "del p; gc.collect()",
        "kept": "main.kept = p",
        "cancelled": "[task.cancel() for task in asyncio.all_tasks() if task is not asyncio.current_task()]",
    }[moment]
    made = 'IdempotentProducer(url, "p")' if early else "aproducer()"
    program = f"""
async def main():
    p = fill({made})
    {then or "pass"}
asyncio.run(main())
"""
    told = run(program, url)
    assert told == "" or re.fullmatch(
        r"ResourceWarning: [^\n]*'p' of [^\n]* records? went out only[^\n]*\n", told
    )
    assert told != "" or moment == "in flight"
    assert read(url) == list(range(100))


@pytest.mark.parametrize("library", ["aiohttp", "httpx", "httpx2"])
def test_a5_an_async_producer_over_a_client_of_the_callers(library: str, url: str) -> None:
    """Open, it is used to the end; closed, there is nothing to wait for."""
    pytest.importorskip(library)
    DurableStream.create(url, content_type="application/json")
    made = "ClientSession" if library == "aiohttp" else "AsyncClient"
    program = f"""
import {library}
async def main():
    client = {library}.{made}()
    main.kept = client, fill(aproducer(client=client))
    if len(sys.argv) > 2:
        await client.{"close" if library == "aiohttp" else "aclose"}()
asyncio.run(main())
"""
    assert "100 records went out only" in run(program, url)
    assert len(read(url)) == 100
    told = run(f"sys.argv.append('closed')\n{program}", url)
    assert re.search(r"100 records are lost \([^)]*The client passed as client= is closed", told)


@pytest.mark.parametrize(
    "end",
    [
        "asyncio.run(main())",
        "loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close()",
        "loop = asyncio.new_event_loop(); loop.run_until_complete(main())",
        """
loop = asyncio.new_event_loop(); loop.run_until_complete(main()); loop.close(); asyncio.run(empty())
print("----", file=sys.stderr)
""",
    ],
    ids=["run", "closed", "not closed", "another loop"],
)
def test_a5_what_an_async_producer_lost_is_one_line(end: str) -> None:
    program = f"""
async def main():
    fill(aproducer(exit_timeout=0.2))
async def empty():
    p = aproducer()
    p.append(1)
    await p.abandon()
{end}
"""
    told = run(program, AWAY, code=None)
    assert (
        len(re.findall(r"^ResourceWarning: [^\n]*'p' of [^\n]*100 records may be lost", told, re.MULTILINE))
        == 1
    )
    if "----" in end:
        assert told.index("ResourceWarning") < told.index("----")


def test_a5_an_async_producer_in_a_loop_of_another_thread(url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    program = """
async def main():
    main.kept = fill(aproducer(linger_ms=60_000))
loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
asyncio.run_coroutine_threadsafe(main(), loop).result()
"""
    assert "100 records went out only" in run(program, url)
    assert read(url) == list(range(100))


def test_a5_a_cancelled_block_says_what_it_lost() -> None:
    program = """
async def main():
    async with aproducer() as p:
        fill(p)
        asyncio.current_task().cancel()
        await asyncio.sleep(1)
try:
    asyncio.run(main())
except asyncio.CancelledError:
    pass
"""
    assert re.fullmatch(
        r"ResourceWarning: [^\n]*100 records may be lost \(its block was[^\n]*\n", run(program, AWAY)
    )


def test_a5_appends_of_a_handle_hold_up_no_end(scripted: ScriptedServer) -> None:
    """They have not returned: nobody takes them for stored."""
    scripted.replies = [scripted.stall()]
    program = """
handle = DurableStream(url, content_type="text/plain")
for _ in range(3):
    threading.Thread(target=handle.append, args=(b"x",), daemon=True).start()
"""
    assert run(program, f"{scripted.root}/s") == ""


# -- after a fork

FORKS = (
    COMMON
    + """
def in_child(check):
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(30)  # a child that hangs must not outlive the test
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def refused(use, *args, code="FORKED"):
    try:
        use(*args)
    except DurableStreamError as error:
        assert error.code == code, error
    else:
        raise AssertionError(f"{use} was not refused")
"""
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@needs_fork
@pytest.mark.parametrize("known", [True, False], ids=["known type", "unknown type"])
@pytest.mark.parametrize("state", ["open batch", "in flight", "idle", "failed", "held lock"])
def test_a6_every_use_of_a_producer_in_a_child_is_refused(state: str, known: bool, url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    began = {
        "open batch": "p.append(0)",
        "in flight": "p.append(0); p.flush(); [p.append(number) for number in range(1, 50)]",
        "idle": "p.append(0); p.flush()",
        "failed": "p._machine.fail(DurableStreamError('x', code='OTHER'))",
        "held lock": """
def hold():
    with p._lock, p._learning:
        held.set()
        done.wait()
held, done = threading.Event(), threading.Event()
threading.Thread(target=hold, daemon=True).start()
held.wait()
""",
    }[state]
    made = "producer(linger_ms=200)" if known else "SyncIdempotentProducer(url, 'p', linger_ms=200)"
    program = f"""
p = {made}
receipt = None
{began}
if {state!r} == "open batch":
    receipt = p.submit(1)
def check():
    for use in (p.append, p.append_nowait, p.put, p.submit, p.close_stream):
        refused(use, 9)
    for use in (p.close_stream, p.flush, p.restart, p.close):
        refused(use)
    if receipt is not None:
        refused(receipt.result)
        refused(receipt.exception)
    assert p.pending_count == p.in_flight_count == 0
    p.abandon()
    with SyncIdempotentProducer(url, "child") as own:
        own.append('"child"')
in_child(check)
if {state!r} == "held lock":
    done.set()
if {state!r} != "failed":
    p.append('"parent"')
    p.close()
else:
    p.abandon()
"""
    assert run(program, url, text=FORKS) == ""
    items = read(url)
    assert items.count("child") == 1
    assert [item for item in items if item != "child"] == {
        "open batch": [0, 1, "parent"],
        "in flight": [*range(50), "parent"],
        "idle": [0, "parent"],
        "failed": [],
        "held lock": ["parent"],
    }[state]


@needs_fork
@pytest.mark.parametrize("end", ["sys.exit(0)", "pass", "raise SystemExit"])
def test_a6_a_child_that_ends_sends_and_tells_nothing_of_its_parents(end: str, url: str) -> None:
    """Python's exit functions are its parent's too."""
    DurableStream.create(url, content_type="application/json")
    program = f"""
p = fill(producer(linger_ms=300))
if os.fork() == 0:
    {end}
else:
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    p.append(100)
"""
    assert run(program, url, text=FORKS) == ""
    assert read(url) == list(range(101))


@needs_fork
def test_a6_a_childs_own_producer_is_flushed_at_its_end(url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    program = """
p = fill(producer(linger_ms=60_000), 10)
if os.fork() == 0:
    own = fill(producer("child", linger_ms=60_000))
else:
    os.wait()
"""
    assert run(program, url, text=FORKS) == ""
    items = read(url)
    assert len(items) == 110
    assert items[:100] == list(range(100))
    assert items[100:] == list(range(10))


@needs_fork
def test_a6_an_async_producer_in_a_child_is_refused(url: str) -> None:
    DurableStream.create(url, content_type="application/json")
    program = """
async def main(name, known):
    kind = "application/json" if known else None
    p = IdempotentProducer(url, name, content_type=kind, linger_ms=200)
    p.append(0)
    async def use():
        for use in (p.append, p.append_nowait, p.submit):
            refused(use, 9)
        for use in (p.put(9), p.close_stream(), p.flush(), p.restart(), p.close()):
            try:
                await use
            except DurableStreamError as error:
                assert error.code == "FORKED", error
            else:
                raise AssertionError
        await p.abandon()
        async with aproducer(f"child-of-{name}") as own:
            own.append('"child"')
    def check():
        asyncio._set_running_loop(None)
        asyncio.run(use())
    in_child(check)
    p.append('"parent"')
    await p.close()
asyncio.run(main("p", True))
asyncio.run(main("q", False))
"""
    assert run(program, url, text=FORKS) == ""
    items = read(url)
    assert [item for item in items if item != "child"] == [0, "parent", 0, "parent"]
    assert items.count("child") == 2


@needs_fork
def test_a6_many_forks_while_threads_append(url: str) -> None:
    """Whatever the threads of the parent were in the middle of."""
    DurableStream.create(url, content_type="application/json")
    program = """
p = producer(max_batch_bytes=200)
def work(name):
    for number in range(2000):
        p.append([name, number])
threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
for thread in threads: thread.start()
for _ in range(20):
    in_child(lambda: (refused(p.append, 9), refused(p.flush)))
for thread in threads: thread.join()
p.close()
"""
    assert run(program, url, text=FORKS) == ""
    items = read(url)
    assert len(items) == 6000
    for name in range(3):
        assert [number for other, number in items if other == name] == list(range(2000))
