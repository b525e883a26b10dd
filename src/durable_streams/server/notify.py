"""Notices to systemd (``Type=notify``): ready, stopping, and that the event loop still turns.

The protocol is a datagram to the socket that ``NOTIFY_SOCKET`` names; without that name there is no systemd, and
nothing is sent. What cannot be sent is lost: the server runs all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

__all__ = ["READY", "STOPPING", "notify", "watchdog"]

READY, STOPPING, _ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"
_SHARE = 3  # notices within the time that systemd waits for one


def notify(state: str) -> None:
    """Send a notice.

    Args:
        state: Assignments, with line breaks between them.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if name[:1] not in ("/", "@"):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.setblocking(False)
        sending.sendto(state.encode(), address)


@contextlib.asynccontextmanager
async def watchdog() -> AsyncIterator[None]:
    """Say that the event loop turns, as often as ``WATCHDOG_USEC`` asks for, until the end of the block."""
    text = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not (meant and text.isascii() and text.isdigit() and int(text)):
        yield
        return
    task = asyncio.create_task(_say_alive(int(text) / 1e6 / _SHARE))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _say_alive(pause: float) -> None:
    while True:
        notify(_ALIVE)
        await asyncio.sleep(pause)
