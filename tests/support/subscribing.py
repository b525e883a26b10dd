"""What tests of subscriptions need: short requests to a server, and a receiver of webhooks that answers as asked."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import socket
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import quote

from scripted import Received, ScriptedServer
from servers import Answer, answer

JSON = "application/json"
WITHIN = 20.0  # seconds; nothing takes as long
_names = count()


class Api:
    """Requests to the server at ``port()``, which may be another one after a restart."""

    def __init__(self, port: Callable[[], int]) -> None:
        self.port = port

    def call(
        self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
    ) -> Answer:
        """Send one request; a body that is no bytes is sent as JSON."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            names.setdefault("content-type", JSON)
        if token is not None:
            names["authorization"] = f"Bearer {token}"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port(), timeout=WITHIN)) as line:
            line.request(method, f"/v1/stream/{path}", data, names)
            return answer(line.getresponse())

    def append(self, stream: str, *messages: Any) -> None:
        """Append messages of JSON, to a stream that is created if it is not there."""
        body = json.dumps(list(messages)).encode()
        if self.call("POST", stream, body).status == 404:
            assert self.call("PUT", stream, body).status == 201

    def tail(self, stream: str) -> str:
        return self.call("HEAD", stream).next_offset

    def messages(self, stream: str) -> list[Any]:
        found = self.call("GET", stream).json
        assert isinstance(found, list)
        return found

    def pull(self, pattern: str = "", *, streams: list[str] | None = None, **settings: Any) -> Subscribed:
        """Make a subscription of pull-wake, with a wake stream of its own."""
        name = f"sub-{next(_names)}"
        wakes = settings.pop("wake_stream", f"wakes/{name}")
        self.call("PUT", wakes, b"[]")
        asked = {
            "type": "pull-wake",
            "pattern": pattern,
            "streams": streams or [],
            "wake_stream": wakes,
            **settings,
        }
        return Subscribed(self, name, asked)

    def webhook(self, url: str, pattern: str, **settings: Any) -> Subscribed:
        """Make a webhook subscription."""
        asked = {"type": "webhook", "pattern": pattern, "webhook": {"url": url}, **settings}
        return Subscribed(self, f"sub-{next(_names)}", asked)


class Subscribed:
    """One subscription. ``made`` is the answer to its creation."""

    def __init__(self, api: Api, name: str, asked: dict[str, Any]) -> None:
        self.api, self.name, self.asked = api, name, asked
        self.path = f"__ds/subscriptions/{quote(name, safe='')}"
        self.made = api.call("PUT", self.path, asked)
        assert self.made.status == 201, self.made

    @property
    def wake_stream(self) -> str:
        return str(self.asked["wake_stream"])

    def shown(self) -> dict[str, Any]:
        shown = self.api.call("GET", self.path)
        assert shown.status == 200, shown
        return parsed(shown)

    def links(self) -> dict[str, str]:
        """Return the cursors by path."""
        return {link["path"]: link["acked_offset"] for link in self.shown()["streams"]}

    def claim(self, worker: str = "worker") -> Claim:
        claimed = self.api.call("POST", f"{self.path}/claim", {"worker": worker})
        assert claimed.status == 200, claimed
        return Claim(self, parsed(claimed))

    def refused_claim(self) -> Answer:
        claimed = self.api.call("POST", f"{self.path}/claim", {"worker": "another"})
        assert claimed.status == 409, claimed
        return claimed

    def refusal(self) -> dict[str, Any]:
        """Return the error of a claim that is refused."""
        error: dict[str, Any] = parsed(self.refused_claim())["error"]
        return error

    def wakes(self, least: int = 1) -> list[dict[str, Any]]:
        """Wait for events on the wake stream, and return them."""
        found: list[dict[str, Any]] = eventually(
            lambda: self.api.messages(self.wake_stream), lambda found: len(found) >= least
        )
        return found

    def delete(self) -> None:
        assert self.api.call("DELETE", self.path).status == 204


def parsed(answer: Answer) -> dict[str, Any]:
    """Return the JSON object of an answer."""
    found = answer.json
    assert isinstance(found, dict), answer
    return found


class Claim:
    """A lease, or the wake of a webhook: what a worker got."""

    def __init__(self, of: Subscribed, got: dict[str, Any]) -> None:
        self.of, self.got = of, got
        self.token = got.get("token") or got["callback_token"]
        self.action = "ack" if "token" in got else "callback"

    @property
    def streams(self) -> dict[str, dict[str, Any]]:
        return {stream["path"]: stream for stream in self.got["streams"]}

    @property
    def generation(self) -> int:
        return int(self.got["generation"])

    def send(self, action: str, **changes: Any) -> Answer:
        token = changes.pop("token", self.token)
        body = {"wake_id": self.got["wake_id"], "generation": self.generation, **changes}
        return self.of.api.call("POST", f"{self.of.path}/{action}", body, token)

    def ack(self, *, done: bool = False, **offsets: str) -> Answer:
        """Acknowledge; in the names of streams ``__`` stands for a slash."""
        acks = [{"stream": path.replace("__", "/"), "offset": offset} for path, offset in offsets.items()]
        return self.send(self.action, acks=acks, done=done)

    def ack_all(self, *, done: bool = True) -> Answer:
        """Acknowledge all that was pending."""
        acks = [
            {"stream": path, "offset": stream["tail_offset"]}
            for path, stream in self.streams.items()
            if stream["has_pending"]
        ]
        return self.send(self.action, acks=acks, done=done)

    def release(self) -> Answer:
        return self.send("release")


class Delivery(NamedTuple):
    """A webhook that was received."""

    path: str
    headers: dict[str, str]
    raw: bytes
    at: float

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.raw)
        return body


Reply = tuple[int, bytes]
DONE: Reply = (200, b'{"done":true}')
ACCEPTED: Reply = (202, b"")


class Receiver:
    """Receives webhooks, and answers each as ``answers`` says: with a reply, or what a function of it returns."""

    def __init__(self, answers: Reply | Callable[[Delivery], Reply] = ACCEPTED) -> None:
        self.answers = answers
        self.received: queue.Queue[Delivery] = queue.Queue()
        self._server = ScriptedServer(answer=self._receive)
        self.url = self._server.root
        self.close = self._server.stop

    def _receive(self, request: Received) -> Callable[[socket.socket], None]:
        delivery = Delivery(request.target, request.headers, request.content, time.monotonic())
        self.received.put(delivery)

        # Apart, because what answers may wait, while other webhooks come.
        def reply(connection: socket.socket) -> None:
            status, body = self.answers(delivery) if callable(self.answers) else self.answers
            headers: dict[str, Any] = {"location": f"{self.url}/elsewhere"} if 300 <= status < 400 else {}
            connection.sendall(ScriptedServer.response(status, body, **headers))

        return reply

    def next(self) -> Delivery:
        """Return the next delivery; fails if there is none."""
        return self.received.get(timeout=WITHIN)


@contextlib.contextmanager
def receiving(answers: Reply | Callable[[Delivery], Reply] = ACCEPTED) -> Iterator[Receiver]:
    receiver = Receiver(answers)
    try:
        yield receiver
    finally:
        receiver.close()


def eventually(ask: Callable[[], Any], holds: Callable[[Any], object]) -> Any:
    """Ask until the answer is as expected, and return it."""
    until = time.monotonic() + WITHIN
    while True:
        found = ask()
        if holds(found):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.01)
