"""One exchange as a machine: the whole answer, as far as it is worth waiting for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from durable_streams.errors import FetchError
from durable_streams.protocol.effects import READ, RELEASE, Call, Send
from durable_streams.protocol.exchange import fetch
from durable_streams.protocol.request import ERROR_BODY_LIMIT, Request, Response

REQUEST = Request("GET", "http://host/s")


def play(*pieces: bytes | FetchError | float, **headers: str) -> tuple[Response, list[Any]]:
    """Return the response and the effects; a number among the pieces is the seconds that pass before the next one."""
    clock, left, effects = [0.0], list(pieces), []
    machine = fetch(REQUEST, lambda: clock[0], trickle=10.0)
    given: Any = None
    while True:
        try:
            effect = machine.throw(given) if isinstance(given, FetchError) else machine.send(given)
        except StopIteration as done:
            return done.value, effects
        effects.append(effect)
        given = None
        if isinstance(effect, Send):
            given = SimpleNamespace(
                status=503, headers={key.replace("_", "-"): value for key, value in headers.items()}
            )
        elif effect is READ:
            given = left.pop(0) if left else b""
            while isinstance(given, float):
                clock[0] += given
                given = left.pop(0)


def test_the_whole_body_is_read_and_its_connection_released() -> None:
    response, effects = play(b"ab", b"c")
    assert (response.status, response.body) == (503, b"abc")
    assert effects == [Send(REQUEST), READ, READ, READ, RELEASE]


@pytest.mark.parametrize("pieces", [(b"ab", FetchError("cut")), (b"a", 11.0, b"b", b"never asked for")])
def test_a_body_that_is_cut_or_slow_is_no_failure(pieces: tuple[Any, ...]) -> None:
    response, effects = play(*pieces)
    assert response.body == b"ab"
    assert effects[-1] is RELEASE


def test_no_more_is_read_than_an_error_needs() -> None:
    response, effects = play(b"x" * ERROR_BODY_LIMIT, b"y")
    assert len(response.body) == ERROR_BODY_LIMIT
    assert effects.count(READ) == 1


def test_a_request_for_a_pause_is_reported() -> None:
    response, effects = play(retry_after="90")
    assert effects[-1] == Call("on_refusal", (REQUEST, response))


def test_a_request_without_an_answer_raises() -> None:
    machine = fetch(REQUEST, lambda: 0.0, trickle=10.0)
    next(machine)
    with pytest.raises(FetchError, match="refused"):
        machine.throw(FetchError("refused"))
