"""The head of an answer is what http.client makes of it, though most heads do not pass through its parser."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import pytest

from durable_streams.client.transports.httpclient import WholeAnswer, watching

_PLAIN = "Stream-Next-Offset: 7"

HEADS = {
    "one": [_PLAIN],
    "none": [],
    "framed": [_PLAIN, "Content-Length: 2"],
    "chunked": [_PLAIN, "Transfer-Encoding: chunked"],
    "closing": [_PLAIN, "Connection: close"],
    "kept alive by HTTP/1.0": [_PLAIN, "Connection: keep-alive", "Content-Length: 2"],
    "twice": [_PLAIN, "Vary: a", "vary: b"],
    "spaces": ["A:1", "B:\t 2 \t", "C:", "D:   "],
    "latin-1": ["A: caf\xe9"],
    "folded": ["A: 1", " 2", _PLAIN],
    "without a colon": ["A: 1", "nonsense", _PLAIN],
    "space before the colon": ["A : 1", _PLAIN],
    "control character": ["A: \x01", _PLAIN],
    "many": [f"A{n}: {n}" for n in range(99)],
    "too many": [f"A{n}: {n}" for n in range(100)],
    "larger than a buffer": [f"A{n}: {'x' * 1000}" for n in range(50)],
}


def _read(kind: Any, version: str, lines: list[str]) -> Any:
    ours, peer = socket.socketpair()
    head = "\r\n".join([f"HTTP/{version} 200 OK", *lines, "", ""])
    peer.sendall(head.encode("latin-1") + b"ok")
    peer.close()
    watching(5.0)
    answer = kind(ours)
    try:
        answer.begin()
    except http.client.HTTPException as error:
        return type(error)
    finally:
        ours.close()
    framing = answer.version, answer.status, answer.length, answer.chunked, answer.will_close
    return framing, answer.msg.items(), answer.msg.get_payload(), answer.fp.read()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("lines", HEADS.values(), ids=HEADS)
def test_a_head_is_read_as_by_http_client(lines: list[str], version: str) -> None:
    theirs = _read(http.client.HTTPResponse, version, lines)
    mine = _read(WholeAnswer, version, lines)
    if isinstance(theirs, tuple) and isinstance(mine, tuple):
        stripped = [(name, value.strip()) for name, value in theirs[1]]
        theirs = theirs[0], stripped, *theirs[2:]
        mine = mine[0], [(name, value.strip()) for name, value in mine[1]], *mine[2:]
    assert mine == theirs
