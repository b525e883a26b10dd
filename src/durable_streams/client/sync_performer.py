# Made from client/aio_performer.py by tools/make_sync.py: change that file, then run `make generate`.

"""The sync performer: does what a machine asks for (`protocol.effects`), over a sync transport.

Invariants: at most one answer is open, and it is released on every way out; `_close`, from another thread, ends
whatever the thread that performs is blocked in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from durable_streams.client.base import CallOptions, log_refusal, random
from durable_streams.client.spans import SPANS, TracedTransport
from durable_streams.client.transports import Exchange, Interrupt, Transport, transport_for
from durable_streams.errors import DurableStreamError, FetchError
from durable_streams.protocol.effects import READ, RELEASE, Call, Effect, Machine, Pause, Send
from durable_streams.protocol.exchange import fetch
from durable_streams.protocol.request import Op, Request, Response, text_of, with_caller, with_credentials
from durable_streams.protocol.retry import with_retry

__all__ = ["Performer", "next_effect", "open_exchange", "resolved", "run", "send"]

T = TypeVar("T")


class Performer:
    """Performs the effects of one machine.

    The owner of the machine is a subclass, so that there is no reference cycle: an owner that is dropped is
    collected at once, and its connection with it.
    """

    _thrown: ClassVar[type[DurableStreamError]] = FetchError
    """The errors that are thrown into the machine; any other one ends it."""

    _exchange: Exchange | None = None
    _paused_at = 0.0
    _waiting = False
    """Whether the machine is still where it was: the present effect is not done yet."""

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self._interrupt = interrupt or Interrupt()

    def _open(self, request: Request) -> Exchange:
        """Send a request; return its open answer."""
        raise NotImplementedError

    def _called(self, call: Call) -> Any:
        """Call the function that the machine names; return its result."""
        raise NotImplementedError

    def _perform(self, machine: Machine[Any], effect: Effect) -> Effect | None:
        """Do what the machine asks for; return its next effect, None at its end or once it was interrupted."""
        interrupt, answer = self._interrupt, None
        if interrupt.is_set():
            return None
        self._waiting = True
        try:
            with interrupt:
                answer = self._do(effect)
            self._waiting = False
        except self._thrown as error:
            self._waiting = False
            # Once interrupted, the break is our own and no failure.
            return None if interrupt.is_set() else _after_failure(machine, error)
        finally:
            if interrupt.is_set():
                self._release()
        return None if interrupt.is_set() else next_effect(machine, answer)

    def _do(self, effect: Effect) -> Any:
        if effect is READ:
            return self._exchange.read() if self._exchange is not None else b""
        if effect is RELEASE:
            return self._release()
        if isinstance(effect, Send):
            self._exchange = self._open(effect.request)
            return self._exchange
        if isinstance(effect, Pause):
            self._paused_at = time.monotonic()
            return self._interrupt.pause(effect.seconds)
        return self._called(effect) if isinstance(effect, Call) else None

    def _broken_off(self, effect: Effect) -> Effect | None:
        """Return what goes on in place of an effect that was broken off; None where its answer is lost."""
        self._release()
        if isinstance(effect, Pause):
            return Pause(max(0.0, effect.seconds - (time.monotonic() - self._paused_at)))
        return None if effect is READ else effect

    def _close(self) -> None:
        """Interrupt the machine for good and release its answer."""
        self._interrupt.set()
        # A thread that is blocked releases its answer itself: it alone knows when it is done with it.
        if not self._interrupt.busy:
            self._release()

    def _release(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()


def next_effect(machine: Machine[Any], answer: Any = None) -> Effect | None:
    """Send the last effect's result into the machine; return its next effect, None at its end."""
    try:
        return machine.send(answer)
    except StopIteration:
        return None


def _after_failure(machine: Machine[Any], error: DurableStreamError) -> Effect | None:
    try:
        return machine.throw(error)
    except StopIteration:
        return None


class _Exchanges(Performer):
    """Performs machines of whole exchanges: one-shot operations, and the requests of a producer."""

    def __init__(self, options: CallOptions, interrupt: Interrupt | None = None) -> None:
        super().__init__(interrupt)
        self._options = options

    def run(self, machine: Machine[T]) -> T:
        """Run the machine to its end; return its result."""
        try:
            effect = next(machine)
            while True:
                try:
                    answer = self._do(effect)
                except self._thrown as error:
                    effect = machine.throw(error)
                else:
                    effect = machine.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            self._release()

    def _open(self, request: Request) -> Exchange:
        return open_exchange(request, self._options, self._interrupt)

    def _called(self, call: Call) -> None:
        log_refusal(*call.arguments)


def run(op: Op[T], options: CallOptions) -> T:
    """Run a one-shot operation to its result, with retries as its ``options`` say."""
    machine = with_retry(op, options.policy, random, time.monotonic, options.trickle)
    return _Exchanges(options).run(machine)


def send(request: Request, options: CallOptions, interrupt: Interrupt | None = None) -> Response:
    """Send one request and return the whole answer; raises FetchError. Setting the interrupt ends it."""
    machine = fetch(request, time.monotonic, options.trickle)
    return _Exchanges(options, interrupt).run(machine)


def open_exchange(request: Request, options: CallOptions, interrupt: Interrupt) -> Exchange:
    """Send one request with the caller's headers and parameters, resolved now; raises FetchError."""
    transport: Transport = options.transport or transport_for(None)
    if options.headers or options.params:
        request = with_caller(request, resolved(options.headers), resolved(options.params))
    if "@" in request.url:
        request = with_credentials(request)
    if request.trickle != options.trickle:
        request = replace(request, trickle=options.trickle)
    if SPANS.tracer is not None:
        transport = TracedTransport(transport)
    return transport.open(request, interrupt, options.timeout)


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of headers or parameters as text; each may be given by a function. None is left out."""
    found = {}
    for name, given in values.items():
        value = given() if callable(given) else given
        if value is not None:
            found[name] = text_of(value)
    return found
