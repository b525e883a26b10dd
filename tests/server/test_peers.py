"""What the server asks the kernel about its connections leaves every other file of the process alone."""

from __future__ import annotations

import os
import socket

import pytest

from durable_streams.server.peers import Peers


@pytest.mark.parametrize("peer", [":0", "127.0.0.1:0", "127.0.0.1:1", "[::1]:0"])
def test_g1_a_peer_that_is_not_known_costs_no_file(peer: str) -> None:
    """A client that left before it was looked at has no address; a loop's own sockets have peers without a port."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peers = Peers()
        for ask in (peers.limit, peers.reset):
            ask(peer)
            for one in (ours, theirs):
                assert os.fstat(one.fileno())
        ours.send(b"still here")
        assert theirs.recv(100) == b"still here"
