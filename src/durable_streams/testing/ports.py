"""Ports that stay free for a server to be started, killed and started again on them.

They lie below the range from which the system takes ports for outgoing connections: a port out of that range can be
taken while its server is down. Another program may still take it first, so that the caller must be ready to try
other ports.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["free_ports"]

_LOWEST = 10_000
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_EPHEMERAL = 32_768  # of Linux; other systems begin at 49152


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of the loopback interface on which nothing listens."""
    found: list[int] = []
    candidates = random.SystemRandom().sample(range(_LOWEST, _highest()), 1000)
    for port in candidates:
        if len(found) == count:
            break
        if _is_free(port):
            found.append(port)
    return found


def _highest() -> int:
    try:
        lowest_ephemeral = int(_RANGE_FILE.read_text().split()[0])
    except OSError:
        lowest_ephemeral = _LOWEST_EPHEMERAL
    # A system that gives out almost every port leaves no better choice.
    return lowest_ephemeral if lowest_ephemeral >= 2 * _LOWEST else _LOWEST_EPHEMERAL


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
