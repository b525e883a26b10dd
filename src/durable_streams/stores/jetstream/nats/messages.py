"""Messages to and from JetStream: publishes, stored messages, subscriptions, answers of its API. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from durable_streams.stores.jetstream.layout import OPERATION, RECORD

__all__ = [
    "ELECTING",
    "ApiError",
    "Config",
    "Got",
    "Info",
    "JetStreamInfo",
    "Message",
    "NatsSubscription",
    "Stored",
    "decode_ack",
    "decode_direct",
    "decode_get",
    "decode_info",
    "decode_live",
    "decode_purge",
    "encode_json",
]

ELECTING = 10008  # the API error while the servers have no leader of the cluster

_SEQUENCE = b"\r\nNats-Sequence: "
_SUBJECT = b"\r\nNats-Subject: "
_PREVIOUS = b"\r\nNats-Last-Sequence: "
_RECORD = f"\r\n{RECORD}: ".encode()
_OPERATION = f"\r\n{OPERATION}: ".encode()


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message to publish. Header values contain no line breaks."""

    subject: str
    data: bytes = b""
    headers: dict[str, str] | None = None


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A message of the bucket's stream.

    Attributes:
        seq: The sequence.
        subject: The subject.
        record: The value of its header ``Durable``, b"" without one.
        data: The data.
        removed: Whether it is a delete marker of key-value clients.
        previous: The sequence before it on its subject, 0 for none; of live messages only.
    """

    seq: int
    subject: str
    record: bytes
    data: bytes
    removed: bool = False
    previous: int = 0


class NatsSubscription:
    """Interest in a subject, until ``cancel``."""

    __slots__ = ("_end",)

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def cancel(self) -> None:
        """End the interest. May be called again."""
        self._end()


class JetStreamInfo(msgspec.Struct, frozen=True):
    """Size and settings of the bucket. ``leader`` is the name of a server, "" for none or a single server."""

    last_seq: int
    messages: int
    bytes: int
    replicas: int
    storage: Literal["file", "memory"]
    leader: str


class ApiError(msgspec.Struct):
    """The reason of a refusal of JetStream."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PublishAck(msgspec.Struct):
    """The answer to a publish."""

    seq: int = 0
    error: ApiError | None = None


class Purged(msgspec.Struct):
    """The answer to a purge."""

    purged: int = 0
    error: ApiError | None = None


class _FoundMessage(msgspec.Struct):
    seq: int
    subject: str
    hdrs: bytes = b""
    data: bytes = b""


class Got(msgspec.Struct):
    """The answer of the leader of a stream to a read."""

    message: _FoundMessage | None = None
    error: ApiError | None = None

    @property
    def stored(self) -> Stored | None:
        """The message, None if there is none."""
        found = self.message
        return None if found is None else _stored(found.hdrs, found.data, found.seq, found.subject)


Config = dict[str, object]


class _Counts(msgspec.Struct):
    last_seq: int = 0
    messages: int = 0
    bytes: int = 0


class _Raft(msgspec.Struct):
    leader: str = ""


class Info(msgspec.Struct):
    """The answer to a request for the information on a stream, or to its creation."""

    config: Config = {}
    created: str = ""
    state: _Counts = msgspec.field(default_factory=_Counts)
    cluster: _Raft = msgspec.field(default_factory=_Raft)
    error: ApiError | None = None

    @property
    def summary(self) -> JetStreamInfo:
        """The part that the store uses."""
        return msgspec.convert(
            {
                "last_seq": self.state.last_seq,
                "messages": self.state.messages,
                "bytes": self.state.bytes,
                "replicas": self.config.get("num_replicas"),
                "storage": self.config.get("storage"),
                "leader": self.cluster.leader,
            },
            JetStreamInfo,
        )


encode_json = msgspec.json.Encoder().encode
decode_ack = msgspec.json.Decoder(PublishAck).decode
decode_get = msgspec.json.Decoder(Got).decode
decode_purge = msgspec.json.Decoder(Purged).decode
decode_info = msgspec.json.Decoder(Info).decode


def decode_direct(head: bytes, data: bytes) -> Stored:
    """Return a message of a direct read, from its header block."""
    return _stored(head, data, int(_value(head, _SEQUENCE)), _value(head, _SUBJECT).decode())


def decode_live(head: bytes, data: bytes) -> Stored:
    """Return a republished message, from its header block."""
    seq, subject = int(_value(head, _SEQUENCE)), _value(head, _SUBJECT).decode()
    return _stored(head, data, seq, subject, int(_value(head, _PREVIOUS) or b"0"))


def _stored(head: bytes, data: bytes, seq: int, subject: str, previous: int = 0) -> Stored:
    return Stored(seq, subject, _value(head, _RECORD), data, _OPERATION in head, previous)


def _value(head: bytes, name: bytes) -> bytes:
    at = head.find(name)
    if at < 0:
        return b""
    at += len(name)
    return head[at : head.index(b"\r", at)]
