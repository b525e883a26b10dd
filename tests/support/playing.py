"""A feed's machine, played against a script with a clock of its own: no socket, no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.firehose.config import Attempt, StreamConfig
from durable_streams.firehose.errors import StreamError
from durable_streams.firehose.machine import Feed
from durable_streams.protocol.effects import READ, RELEASE, Call, Give, Pause, Send
from durable_streams.protocol.request import Request

REFUSED = FetchError("refused", code="CONNECT", may_have_been_sent=False)
CUT = FetchError("cut", code="NETWORK")
STALL = FetchError("silent", code="TIMEOUT")


@dataclass
class Answer:
    """An answer's head and body; an error in the body is raised, a number is the seconds that pass."""

    status: int = 200
    body: tuple[Any, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)


class Player:
    """What happened, in order, when a script of answers and errors was played."""

    def __init__(self, config: StreamConfig, *, now: float = 1_000_000.0, chance: float = 0.0) -> None:
        self.time = 0.0
        self.log: list[Any] = []
        self.pauses: list[float] = []
        self.attempts: list[Attempt] = []
        self.requests: list[Request] = []
        self.error: StreamError | None = None
        self.feed = Feed(
            "http://feed.test/",
            config,
            clock=lambda: self.time,
            now=lambda: now + self.time,
            random=lambda: chance,
        )
        self.state = self.feed.state
        self._body: Iterator[Any] = iter(())
        self._attempt = Attempt()

    def play(self, *script: Answer | DurableStreamError) -> Player:
        """Play until the script is over (the next attempt is not made) or the feed fails."""
        return self.play_all(iter(script))

    def play_all(self, left: Iterator[Any]) -> Player:
        """Play a script that is made on the way."""
        flow = self.feed.run()
        try:
            effect = next(flow)
            while True:
                try:
                    answer = self._perform(effect, left)
                except DurableStreamError as error:
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StreamError as error:
            self.error = error
        except _OverError:
            pass
        return self

    def _perform(self, effect: Any, script: Iterator[Any]) -> Any:
        if effect is READ:
            for piece in self._body:
                if isinstance(piece, float):
                    self.time += piece
                elif isinstance(piece, DurableStreamError):
                    raise piece
                else:
                    return piece
            return b""
        if isinstance(effect, Pause):
            self.pauses.append(effect.seconds)
            self.time += effect.seconds
        elif isinstance(effect, Call) and effect.name == "request":
            self._attempt = effect.arguments[0]
            return Request("GET", self.feed.url)
        elif isinstance(effect, Call):
            self.log.append(effect.name)
        elif isinstance(effect, Give):
            self.log += effect.value
            self.state.total_items_received += len(effect.value)
        elif isinstance(effect, Send):
            self.requests.append(effect.request)
            return self._answer(script)
        else:
            assert effect is RELEASE
        return None

    def _answer(self, script: Iterator[Any]) -> Answer:
        for answer in script:
            self.attempts.append(self._attempt)
            if isinstance(answer, DurableStreamError):
                raise answer
            self._body = iter(answer.body)
            return answer  # type: ignore[no-any-return]
        raise _OverError


class _OverError(Exception):
    """The script is over."""
