"""JetStream as the store needs it: atomic publishes with expectations, reads, and live messages.

Invariants:
* an exception of ``publish`` says that nothing was stored, or that the outcome is unknown (StoreUncertainError);
* ``last`` and ``next`` ask the leader of the bucket, ``peek``, ``peek_last`` and ``scan`` any server, which may lag;
* a deleted bucket is not replaced by a new one of the same name: every call raises StoreLostError from then on;
* no call exceeds its time, whatever the state of NATS; no exception of another library leaves this module.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NoReturn, TypeVar

from durable_streams.stores.base import (
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    StoreUncertainError,
)
from durable_streams.stores.commits import copied
from durable_streams.stores.jetstream.config import JetStreamConfig
from durable_streams.stores.jetstream.layout import Layout
from durable_streams.stores.jetstream.nats.guard import Guard
from durable_streams.stores.jetstream.nats.messages import (
    ELECTING,
    ApiError,
    Got,
    Info,
    JetStreamInfo,
    Message,
    NatsSubscription,
    Stored,
    decode_ack,
    decode_direct,
    decode_get,
    decode_info,
    decode_live,
    decode_purge,
    encode_json,
)

if TYPE_CHECKING:  # nats-py is an extra: imported when a bus is opened
    from durable_streams.stores.jetstream.nats.connection import NatsAnswer, NatsConnection

__all__ = ["Bus", "ConflictError", "JetStreamInfo", "Message", "NatsSubscription", "Stored", "patiently"]

T = TypeVar("T")
R = TypeVar("R", Got, Info)

_PUBLISH_SECONDS = 1.0
_BATCH_BYTES_PER_SECOND = 8 << 20  # the extra time of a large batch
_READ_SECONDS = 1.5
_PEEK_SECONDS = 0.5  # then the question is repeated, perhaps to another server
_PAUSE_SECONDS = 0.05
_PURGE_SECONDS = 5.0
_BYTES_AHEAD = 2 << 20  # of a batch, sent without waiting for the server
_HEADER_ROOM = 16 << 10
_LARGEST_MESSAGE = 4 << 20
_LONGEST_IDENTITY = 64

_CONFLICTS = frozenset({10071, 10164})
_FULL = frozenset({10002, 10023, 10028, 10047})
_STORE_FAILED = 10077  # for several reasons, "maximum bytes exceeded" among them
_NOT_FOUND = 10037


class ConflictError(Exception):
    """An expectation did not hold. Nothing was stored."""


class Bus:
    """The bucket, for one server.

    Attributes:
        config: The cluster and the bucket.
        layout: The subjects of the bucket.
        guard: Watches whether the bucket still exists.
        on_restored: Called when live messages may have been missed.
        on_turn: Called with the question of every `ask_turn`, from any server.
        max_message: The most bytes of data in one message; known once the bus is open.
        reconnects: How often the connection was made again.

    Args:
        config: The cluster and the bucket.
    """

    def __init__(self, config: JetStreamConfig) -> None:
        self.config = config
        self.layout = Layout(config.name)
        self.on_restored: list[Callable[[], None]] = []
        self.on_turn: Callable[[bytes], None] = lambda _: None
        self.guard = Guard(config.name, self._look)
        self.max_message = 0
        self.reconnects = 0
        self._current: NatsConnection | None = None
        stream = self.layout.stream
        self._get = f"$JS.API.STREAM.MSG.GET.{stream}"
        self._direct = f"$JS.API.DIRECT.GET.{stream}"
        self._purge = f"$JS.API.STREAM.PURGE.{stream}"
        self._info = f"$JS.API.STREAM.INFO.{stream}"
        self._deleted = f"$JS.EVENT.ADVISORY.STREAM.DELETED.{stream}"
        self._seen = 0  # the highest sequence of a stored message
        self._elected = f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}"

    async def open(self, *, make: bool = True) -> None:
        """Connect, and check the bucket.

        Args:
            make: Whether to create a missing bucket.

        Raises:
            StoreError: NATS or the bucket cannot be used; one sentence says why.
        """
        try:
            from durable_streams.stores.jetstream.nats.connection import NatsConnection  # noqa: PLC0415 - an extra
        except ImportError as error:
            message = 'the NATS store needs nats-py: pip install "nats-py>=2.15,<3"'
            raise StoreError(message) from error
        from durable_streams.stores.jetstream.nats.startup import prepare  # noqa: PLC0415 - behind the extra

        connection = NatsConnection(self.config, self._reconnected)
        await connection.open()
        try:
            self.max_message = min(connection.max_payload - _HEADER_ROOM, _LARGEST_MESSAGE)
            await prepare(connection, self.config, self.layout, make=make)
            await connection.subscribe(self._elected, lambda *_: self._restored(), _READ_SECONDS)
            await connection.subscribe(self._deleted, lambda *_: self.guard.note_deletion(), _READ_SECONDS)
            await connection.subscribe(self.layout.turn, lambda *said: self.on_turn(said[2]), _READ_SECONDS)
        except BaseException as error:
            await connection.close()
            if isinstance(error, (ConnectionError, TimeoutError)):
                raise StoreUnavailableError(f"NATS went away at start: {error}") from error
            raise
        self._current = connection
        self._seen = 0
        try:
            self.guard.start((await self._ask_leader(self._info, b"", decode_info)).created)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection, at once even if NATS is down. Running calls end with their errors."""
        connection, self._current = self._current, None
        if connection is not None:
            await connection.close()
        await self.guard.stop()

    async def _look(self) -> Info:
        answer = await self._ask(self._info, b"", _READ_SECONDS)
        self._check(answer)
        return decode_info(answer.data)

    @property
    def connected(self) -> bool:
        """Whether a message can be sent now."""
        return self._current is not None and self._current.connected

    def _reconnected(self) -> None:
        self.reconnects += 1
        self._restored()

    def _restored(self) -> None:
        self.guard.look()
        for callback in self.on_restored:
            callback()

    @property
    def _connection(self) -> NatsConnection:
        if self.guard.lost is not None:
            raise copied(self.guard.lost)
        if self._current is None:
            raise StoreUnavailableError("the store on NATS is closed")
        return self._current

    # writing

    async def publish(self, messages: Sequence[Message]) -> int:
        """Store messages, all or none.

        Args:
            messages: At most 1000 messages.

        Returns:
            The sequence of the last message; sequences are consecutive.

        Raises:
            ConflictError: An expectation did not hold; nothing was stored.
            StoreFullError: The bucket is full; nothing was stored.
            StoreUncertainError: The outcome is unknown.
            StoreUnavailableError: Nothing was stored.
        """
        connection = self._connection
        reply = connection.new_reply()
        timeout, seen = _PUBLISH_SECONDS, self._seen
        if len(messages) == 1:
            wire = connection.encode(messages[0].subject, reply, messages[0].headers, messages[0].data)
        else:
            wire = await _send_but_end(connection, messages, reply)
            timeout += sum([len(message.data) for message in messages]) / _BATCH_BYTES_PER_SECOND
        try:
            answer = await connection.answer(reply, wire, timeout)
        except (ConnectionError, TimeoutError) as error:
            raise StoreUncertainError(f"{error}: the messages may be stored") from error
        if answer.status:
            raise StoreUnavailableError(f"the bucket {self.config.name} has no leader in NATS now")
        ack = decode_ack(answer.data)
        if ack.error is not None:
            self._refuse(ack.error)
        if ack.seq <= seen:  # sequences only grow, in one bucket
            self.guard.lose()
            raise StoreUncertainError(f"the bucket {self.config.name} in NATS was deleted, and made again")
        self._seen = max(self._seen, ack.seq)
        return ack.seq

    def _refuse(self, error: ApiError) -> NoReturn:
        if error.err_code in _CONFLICTS:
            raise ConflictError(error.description)
        if error.err_code in _FULL or (error.err_code == _STORE_FAILED and "maximum" in error.description):
            raise StoreFullError(f"the bucket {self.config.name} is full: {error.description}")
        raise self._unavailable(error)

    def _unavailable(self, error: ApiError) -> StoreUnavailableError:
        return StoreUnavailableError(f"the bucket {self.config.name} in NATS: {error.description}")

    # reading

    async def last(self, subject: str) -> Stored | None:
        """Return the last message of a subject according to the leader, None if there is none."""
        return await self._from_leader({"last_by_subj": subject})

    async def identity(self) -> str:
        """Return the identity of the bucket, in letters and digits."""
        stored = await self.last(self.layout.identity)
        noted = "" if stored is None or stored.removed else stored.data.decode("ascii", "ignore")
        return "".join(filter(str.isalnum, noted))[:_LONGEST_IDENTITY]

    async def next(self, subject: str, seq: int) -> Stored | None:
        """Return the first message from ``seq`` on of a subject (wildcards allowed) according to the leader."""
        return await self._from_leader({"seq": seq, "next_by_subj": subject})

    async def _from_leader(self, question: dict[str, object]) -> Stored | None:
        return (await self._ask_leader(self._get, encode_json(question), decode_get)).stored

    async def peek_last(self, subject: str) -> Stored | None:
        """Return the last message of a subject according to some server; needs no leader."""
        return await self._from_any({"last_by_subj": subject})

    async def last_before(self, subject: str, moment: float) -> Stored | None:
        """Return the last message of a subject up to a moment, according to some server.

        Args:
            subject: The subject.
            moment: In seconds since 1970, by the clocks of the servers.
        """
        until = datetime.fromtimestamp(moment, timezone.utc).isoformat()
        parts: list[NatsAnswer] = []
        question = encode_json({"multi_last": [subject], "up_to_time": until})
        answer = await self._ask(self._direct, question, _PEEK_SECONDS, parts)
        if answer.status not in {204, 404}:
            self._check(answer)
        return decode_direct(*parts[0]) if parts else None

    async def peek(self, subject: str, seq: int) -> Stored | None:
        """Return the first message from ``seq`` on of a subject according to some server; needs no leader."""
        return await self._from_any({"seq": seq, "next_by_subj": subject})

    async def _from_any(self, question: dict[str, object]) -> Stored | None:
        answer = await self._ask(self._direct, encode_json(question), _PEEK_SECONDS)
        if answer.status == 404:
            return None
        self._check(answer)
        return decode_direct(*answer)

    async def scan(self, subject: str, seq: int, max_bytes: int, max_messages: int = 1000) -> list[Stored]:
        """Return messages from ``seq`` on of a subject according to some server, in order.

        Args:
            subject: The subject.
            seq: The first sequence.
            max_bytes: The scan ends with the message that reaches this many bytes.
            max_messages: The most messages.

        Returns:
            At least one message if the server has any.
        """
        question = {"seq": seq, "next_by_subj": subject, "batch": max_messages, "max_bytes": max_bytes}
        parts: list[NatsAnswer] = []
        answer = await self._ask(self._direct, encode_json(question), _PEEK_SECONDS, parts)
        if answer.status not in {204, 404}:
            self._check(answer)
        return [decode_direct(*part) for part in parts]

    def _check(self, answer: NatsAnswer) -> None:
        if answer.status:
            said = answer.head[12:].partition(b"\r")[0].strip().decode() or "no server has it now"
            raise StoreUnavailableError(f"the bucket {self.config.name} in NATS: {said}")

    async def _ask_leader(self, subject: str, question: bytes, decode: Callable[[bytes], R]) -> R:
        """Return the answer of a leader; the question is repeated while the servers elect one."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + _READ_SECONDS
        while True:
            answer = await self._ask(subject, question, _READ_SECONDS, deadline=deadline)
            self._check(answer)
            said = decode(answer.data)
            if said.error is None or said.error.err_code == _NOT_FOUND:
                return said
            if said.error.err_code != ELECTING or clock() + _PAUSE_SECONDS >= deadline:
                raise self._unavailable(said.error)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(
        self,
        subject: str,
        question: bytes,
        each: float,
        parts: list[NatsAnswer] | None = None,
        *,
        deadline: float | None = None,
    ) -> NatsAnswer:
        """Return the answer of NATS, with retries, or raise StoreUnavailableError in time."""
        connection = self._connection
        clock = asyncio.get_running_loop().time
        deadline = deadline or clock() + _READ_SECONDS
        while True:
            if not await connection.wait_connected(deadline - clock()):
                raise StoreUnavailableError("NATS cannot be reached")
            try:
                answer = await connection.request(subject, question, min(each, deadline - clock()), parts)
                if answer.status != 503 or clock() + _PAUSE_SECONDS >= deadline:
                    return answer
                await asyncio.sleep(_PAUSE_SECONDS)  # the server that answers has just left or joined
            except ConnectionError:
                pass
            except TimeoutError as error:
                if clock() >= deadline - each / 2:
                    raise StoreUnavailableError(str(error)) from error
            if parts is not None:
                parts.clear()

    # the rest

    async def purge(self, subject: str, before: int = 0) -> int:
        """Remove the messages of a subject (wildcards allowed), all or those ``before`` a sequence; return how many."""
        connection = self._connection
        try:
            question = encode_json({"filter": subject, "seq": before})
            answer = await connection.request(self._purge, question, _PURGE_SECONDS)
        except (ConnectionError, TimeoutError) as error:
            raise StoreUnavailableError(str(error)) from error
        self._check(answer)
        purged = decode_purge(answer.data)
        if purged.error is not None:
            raise self._unavailable(purged.error)
        return purged.purged

    async def subscribe(self, subject: str, deliver: Callable[[Stored], None]) -> NatsSubscription:
        """Deliver messages that are stored after this call returns, on a live subject of the layout or a pattern.

        Interest spreads to the other servers of the cluster a moment later.
        """

        def take(_: bytes, head: bytes, data: bytes) -> None:
            deliver(decode_live(head, data))

        try:
            return await self._connection.subscribe(subject, take, _READ_SECONDS)
        except (ConnectionError, TimeoutError) as error:
            raise StoreUnavailableError(str(error)) from error

    def ask_turn(self, question: bytes) -> None:
        """Send a question to every server of the bucket, including this one; it may be lost, and has no answer."""
        self.send(self.layout.turn, question)

    def send(self, subject: str, data: bytes) -> None:
        """Send a message that is not stored to all that listen, including this server; it may be lost."""
        with contextlib.suppress(StoreError):
            self._connection.write(self._connection.encode(subject, b"", None, data))

    async def listen(self, subject: str, deliver: Callable[[bytes], None]) -> NatsSubscription:
        """Deliver what is sent on a subject."""
        try:
            return await self._connection.subscribe(subject, lambda *said: deliver(said[2]), _READ_SECONDS)
        except (ConnectionError, TimeoutError) as error:
            raise StoreUnavailableError(str(error)) from error

    async def info(self) -> JetStreamInfo:
        """Return the size and the settings of the bucket."""
        return (await self._ask_leader(self._info, b"", decode_info)).summary


async def patiently(ask: Callable[[], Awaitable[T]], seconds: float, pause: float) -> T:
    """Return the answer to a question; retry every ``pause`` seconds, for ``seconds``, while NATS is away."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    while True:
        try:
            return await ask()
        except StoreUnavailableError:
            if clock() > until:
                raise
        await asyncio.sleep(pause)


async def _send_but_end(connection: NatsConnection, messages: Sequence[Message], reply: bytes) -> bytes:
    """Send an atomic batch except its last message, which is returned encoded.

    Raises StoreUnavailableError if the connection is lost: without its last message none of a batch is stored.
    """
    batch, last = reply.decode(), len(messages)
    wire: list[bytes] = []
    ahead = 0
    for number, message in enumerate(messages, 1):
        headers = {
            **(message.headers or {}),
            "Nats-Batch-Id": batch,
            "Nats-Batch-Sequence": str(number),
        }
        if number == last:
            headers["Nats-Batch-Commit"] = "1"
        to = reply if number == last else b""
        wire.append(connection.encode(message.subject, to, headers, message.data))
        ahead += len(wire[-1])
        if ahead >= _BYTES_AHEAD and number < last:
            connection.write(b"".join(wire))
            wire.clear()
            ahead = 0
            try:
                await connection.barrier(_PUBLISH_SECONDS)
            except (ConnectionError, TimeoutError) as error:
                raise StoreUnavailableError(str(error)) from error
    return b"".join(wire)
