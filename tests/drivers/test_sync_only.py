"""What only the sync API meets: signals, forks, the clients of its libraries."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
from typing import Any

import pytest
import urllib3
from facade import Loop
from scripted import ScriptedServer

from durable_streams import AsyncDurableStream, DurableStream, DurableStreamError, RetryPolicy, stream
from durable_streams.protocol.sse import encode_control

AT_ONCE = RetryPolicy(max_retries=0)


def test_ctrl_c_ends_a_blocked_read(scripted: ScriptedServer) -> None:
    """Pitfall 10."""
    scripted.replies = [scripted.stall(scripted.events(encode_control("1", up_to_date=True)))]
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with stream(scripted.root + "/s", live="sse") as reading:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            list(reading)
    assert scripted.gone.acquire(timeout=10)


FORKS = """
import os, sys
from durable_streams import DurableStream
handle = DurableStream(sys.argv[1])
handle.head()
child = os.fork()
if child == 0:
    try:
        handle.head()
    finally:
        os._exit(0)
os.waitpid(child, 0)
handle.head()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_opens_its_own_connections(scripted: ScriptedServer) -> None:
    scripted.replies = [scripted.send(scripted.response(200, stream_next_offset="1"))]
    # In a process of its own: forking one with threads, as a test's is, is warned of.
    subprocess.run([sys.executable, "-c", FORKS, scripted.root + "/s"], check=True, timeout=60)
    assert len(scripted.requests) == 3
    assert len(scripted.connections) == 2


def test_a_given_pool_is_used_and_not_closed(url: str) -> None:
    """Pitfall 8."""
    manager = urllib3.PoolManager(timeout=5.0)
    with DurableStream.create(url, client=manager, body=b"x") as handle:
        assert handle.stream(live=False).read_bytes() == b"x"
        response = handle.stream()
        threading.Timer(0.2, response.close).start()
        assert list(response) == [b"x"]
    assert manager.request("HEAD", url).status == 200
    manager.clear()


def test_calls_share_one_tls_context(url: str, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 14: loading the trusted certificates takes 50 ms."""
    # The server speaks no TLS, so every call connects again.
    address = url.replace("http:", "https:")
    made: list[Any] = []
    create = ssl.SSLContext.__new__

    def counted(*args: Any, **options: Any) -> ssl.SSLContext:
        made.append(args)
        return create(*args, **options)

    def call() -> None:
        with pytest.raises(DurableStreamError):
            DurableStream(address, retry=AT_ONCE).head()
        with pytest.raises(DurableStreamError):
            loop.call(AsyncDurableStream(address, retry=AT_ONCE).head)

    call()
    monkeypatch.setattr(ssl.SSLContext, "__new__", counted)
    for _ in range(5):
        call()
    assert made == []
