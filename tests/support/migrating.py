"""Streams of every kind on a server, and whether they are still what they were when another server has them.

``World(server)`` makes them. ``matches`` changes nothing; ``goes_on`` does what clients do that were interrupted, after
which ``matches`` expects that, too; ``ends`` deletes and waits for what expires.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from durable_streams.protocol.offsets import format_offset, parse_offset

JSON = "application/json"
BYTES = "application/octet-stream"
HUGE = 9 << 20  # more than one message of NATS
MANY = 100
OFFSETS = 8  # of a stream that readers saved
SAME = (
    "content-type",
    "stream-next-offset",
    "stream-closed",
    "stream-ttl",
    "stream-expires-at",
    "etag",
    "stream-earliest-offset",
    "stream-retention-max-bytes",
)


class World:
    """Streams of a store and their known content; ``bulk`` more streams have 300 kB each."""

    def __init__(self, server: Any, *, bulk: int = 0) -> None:
        self._chance = random.Random(7)
        self._said: dict[str, dict[str, str]] = {}
        self._contents: dict[str, bytes] = {}
        self._offsets: dict[str, list[str]] = {}
        self._numbers = dict.fromkeys(("one", "two"), 0)
        for build in (
            self._plain,
            self._json,
            self._producers,
            self._closed,
            self._expiring,
            self._forks,
            self._trimmed,
        ):
            build(server)
        for number in range(bulk):
            self._create(server, f"bulk/{number % 10}/{number}")
            for _ in range(3):
                self._append(server, f"bulk/{number % 10}/{number}", self._chance.randbytes(100_000))
        for number in range(MANY):
            self._create(server, f"many/{number}")
        self._remember(server)

    def matches(self, server: Any) -> None:
        """Every stream says what it said, and is read from every saved offset."""
        for name, said in self._said.items():
            assert _said(server, name) == said, name
            assert server.read_all(quote(name)) == self._contents[name], name
        for name, offsets in self._offsets.items():
            for offset in self._chance.sample(offsets, min(len(offsets), OFFSETS)):
                assert server.read_all(quote(name), offset) == self._behind(name, offset), (name, offset)

    def _behind(self, name: str, offset: str) -> bytes:
        """Return what a reader at an offset has not read yet."""
        whole, position = self._contents[name], parse_offset(offset)
        assert position is not None
        if self._said[name]["content-type"] != JSON:
            return whole[position:]
        return b"[" + whole[1 + position :] if position < len(whole) - 1 else b"[]"

    def goes_on(self, server: Any) -> None:
        """Clients that were interrupted go on: none is refused, none writes twice."""
        for name, number in self._numbers.items():
            if number:
                assert self._produce(server, name, number - 1, b"again").status == 204
            assert self._produce(server, name, number + 7, b"gap").status == 409
            assert self._produce(server, name, number, b"%d of %s;" % (number, name.encode())).status == 200
            assert self._produce(server, name, 0, b"", epoch=0).status in {400, 403}
            self._numbers[name] += 1
        assert self._produce(server, "many-17", 0, b"again").status == 204
        closing = {"Producer-Id": "last", "Producer-Epoch": "4", "Producer-Seq": "0", "Stream-Closed": "true"}
        assert server.append("closed", b"end", **closing).status == 204
        assert server.append("closed", b"more").status == 409
        assert server.append("plain", b"x", **{"Stream-Seq": "a"}).status == 409
        for name in ("plain", "source", "fork", "fork/of/fork", "orphan", "süß/ein Pfad?"):
            self._append(server, name, self._chance.randbytes(1000))
        self._append(server, "json", b'[{"more": 1}, 2.50]', JSON)
        begin = self._offsets["json"][1]
        position = parse_offset(begin)
        assert position is not None
        inside = format_offset(1 + position)  # stands for the start of the append that holds it
        assert (
            server.request("GET", f"json?offset={inside}").body
            == server.request("GET", f"json?offset={begin}").body
        )
        self._remember(server)

    def ends(self, server: Any, eventually: Callable[[Callable[[], bool]], None]) -> None:
        """What was deleted and lives in its fork goes with it; what expires does so."""
        assert server.request("GET", "gone").status == 410
        assert server.request("DELETE", "orphan").status == 204
        assert server.request("GET", "gone").status == 404
        eventually(lambda: server.request("HEAD", "expiring").status == 404)
        assert server.request("HEAD", "ttl").status == 200

    # what there is

    def _plain(self, server: Any) -> None:
        self._create(server, "plain")
        for size in [1, 2, 300, 70_000, HUGE, 5] + [self._chance.randint(1, 3000) for _ in range(200)]:
            self._append(server, "plain", self._chance.randbytes(size))
        assert server.append("plain", b"numbered", **{"Stream-Seq": "b"}).status == 204
        self._create(server, "süß/ein Pfad?")
        self._append(server, "süß/ein Pfad?", b"hidden")
        self._create(server, "empty")

    def _json(self, server: Any) -> None:
        self._create(server, "json", JSON)
        for number in range(100):
            messages = [{"number": number, "text": "ä" * self._chance.randint(0, 50)}] * self._chance.randint(
                1, 9
            )
            self._append(server, "json", json.dumps(messages).encode(), JSON)

    def _trimmed(self, server: Any) -> None:
        """Streams that gave up their first appends; one has a fork, one gave up everything."""
        limits = {"Stream-Retention-Max-Bytes": "2000", "Stream-Retention-Max-Age": "86400"}
        cases = {"trimmed": 2000, "trimmed/forked": 3000, "trimmed/out": 4500, "limited": 0}
        for name, before in cases.items():
            self._create(server, name, **(limits if name == "limited" else {}))
            for number in range(50):
                self._append(server, name, b"%03d" % number * 30)
            if name == "trimmed/forked":
                self._fork(server, "trimmed/fork", name, None)
            asked = json.dumps({"before": format_offset(before)}).encode()
            assert server.request("POST", f"__ds/streams/{name}/trim", asked).status == 200
            # Readers' places are those of streams that keep everything.
            self._offsets[name].clear()
        self._offsets["trimmed/fork"].clear()

    def _producers(self, server: Any) -> None:
        self._create(server, "produced")
        for name in self._numbers:
            for number in range(5):
                assert self._produce(server, name, number, b"%d;" % number).status == 200
            self._numbers[name] = 5
        for number in range(MANY):
            assert self._produce(server, f"many-{number}", 0, b"%d;" % number).status == 200

    def _produce(self, server: Any, name: str, number: int, body: bytes, epoch: int = 3) -> Any:
        stamp = {"Producer-Id": name, "Producer-Epoch": str(epoch), "Producer-Seq": str(number)}
        return server.append("produced", body or b"stale", **stamp)

    def _closed(self, server: Any) -> None:
        self._create(server, "closed")
        closing = {"Producer-Id": "last", "Producer-Epoch": "4", "Producer-Seq": "0", "Stream-Closed": "true"}
        assert server.append("closed", b"end", **closing).status == 200
        self._create(server, "closed/empty", **{"Stream-Closed": "true"})

    def _expiring(self, server: Any) -> None:
        for name, seconds in (("expires", 3600), ("expiring", 5)):
            at = datetime.fromtimestamp(time.time() + seconds, timezone.utc)
            self._create(server, name, **{"Stream-Expires-At": at.strftime("%Y-%m-%dT%H:%M:%SZ")})
        self._create(server, "ttl", **{"Stream-TTL": "3600"})
        self._append(server, "ttl", b"for an hour")

    def _forks(self, server: Any) -> None:
        for name in ("source", "gone"):
            self._create(server, name)
            for number in range(10):
                self._append(server, name, b"%d of %s;" % (number, name.encode()))
        self._fork(server, "fork", "source", self._offsets["source"][4])
        self._append(server, "fork", b"its own;")
        self._fork(server, "fork/of/fork", "fork", self._offsets["source"][2])
        self._fork(server, "untouched", "fork", None)
        self._fork(server, "orphan", "gone", None)
        assert server.request("DELETE", "gone").status == 204

    def _create(self, server: Any, name: str, content_type: str = BYTES, **headers: str) -> None:
        created = server.create(quote(name), content_type, **headers)
        self._said[name] = {}
        self._offsets[name] = [created.next_offset]

    def _fork(self, server: Any, name: str, source: str, offset: str | None) -> None:
        at = {} if offset is None else {"Stream-Fork-Offset": offset}
        self._create(server, name, **{"Stream-Forked-From": f"/v1/stream/{source}", **at})

    def _append(self, server: Any, name: str, body: bytes, content_type: str = BYTES) -> None:
        appended = server.append(quote(name), body, content_type)
        assert appended.status == 204, appended
        self._offsets[name].append(appended.next_offset)

    def _remember(self, server: Any) -> None:
        for known in (self._said, self._offsets):
            known.pop("gone", None)  # it is deleted
            known.pop("expiring", None)
        for name in self._said:
            self._said[name] = _said(server, name)
            self._contents[name] = server.read_all(quote(name))


def _said(server: Any, name: str) -> dict[str, str]:
    answer = server.request("HEAD", quote(name))
    assert answer.status == 200, (name, answer)
    read = server.request("GET", f"{quote(name)}?offset=-1")
    return {key: answer.headers.get(key) or read.headers.get(key, "") for key in SAME}
