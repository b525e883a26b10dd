"""What grants allow with subscriptions: nobody sees through one what the own grants do not show."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from granting import ALL, by_header, client_of

from durable_streams.server import ServerConfig

BASE = "subscribe:pub/** read:pub/** append:wakes/pub"  # what the subscription "pub" takes to make
JSON = {"content-type": "application/json"}


def pull(pattern: str | None = None, streams: list[str] | None = None, wakes: str = "pub") -> dict[str, Any]:
    asked = {"type": "pull-wake", "pattern": pattern, "streams": streams, "wake_stream": f"wakes/{wakes}"}
    return {name: value for name, value in asked.items() if value is not None}


class Caller:
    """Sends requests with some grants."""

    def __init__(self, client: httpx.AsyncClient, grants: str | None) -> None:
        self._client = client
        self._headers = {} if grants is None else {"x-grant": grants}

    async def ask(self, method: str, path: str, body: Any = None, token: str = "") -> httpx.Response:
        headers = {**self._headers, **({"authorization": f"Bearer {token}"} if token else {})}
        return await self._client.request(method, f"__ds/subscriptions{path}", json=body, headers=headers)


async def prepare(client: httpx.AsyncClient) -> None:
    """Make streams, and three subscriptions: of a pattern, of a named stream, and of everything."""
    for path in ("wakes/pub", "wakes/other", "pub/a", "secret/a"):
        made = await client.put(path, headers={**ALL, **JSON}, content=b"[]")
        assert made.status_code == 201
    for name, asked in (
        ("pub", pull("pub/*")),
        ("named", pull(streams=["secret/a"], wakes="other")),
        ("all", pull("**", wakes="other")),
    ):
        assert (await Caller(client, "*:**").ask("PUT", f"/{name}", asked)).status_code == 201
    for path in ("pub/a", "secret/a"):
        assert (await client.post(path, headers={**ALL, **JSON}, content=b"[1]")).status_code == 204


def run(work: Any, **settings: Any) -> None:
    async def main() -> None:
        async with client_of(ServerConfig(**settings), by_header) as client:
            await prepare(client)
            await work(client)

    asyncio.run(main())


CREATIONS = [
    # what is asked for, the grants that are enough, and grants of which each lacks something
    (
        pull("pub/*"),
        BASE,
        [
            "read:** append:**",
            "subscribe:** append:**",
            "subscribe:** read:**",
            "subscribe:pub/a read:** append:**",
            "subscribe:** read:pub/a append:**",
            "subscribe:** read:** append:wakes/other",
        ],
    ),
    (
        pull("**"),
        "subscribe,read:** append:wakes/*",
        ["subscribe:** append:** read:pub/**", "subscribe:pub/** read,append:**"],
    ),
    (pull("*/a"), "subscribe,read:** append:wakes/*", ["subscribe,read:pub/** append:**"]),
    (
        pull(streams=["secret/a"]),
        "subscribe:secret/a read:secret/* append:wakes/pub",
        [BASE, "subscribe:** append:** read:pub/**"],
    ),
    (pull("pub/*", ["secret/a"]), f"{BASE} subscribe,read:secret/a", [BASE]),
    (
        {"type": "webhook", "pattern": "pub/*", "webhook": {"url": "http://127.0.0.1:9/"}},
        "subscribe,read:pub/**",
        ["subscribe:**", "read:**", "subscribe,read:secret/**"],
    ),
]


@pytest.mark.parametrize(("asked", "enough", "lacking"), CREATIONS)
def test_what_a_creation_needs(asked: dict[str, Any], enough: str, lacking: list[str]) -> None:
    async def work(client: httpx.AsyncClient) -> None:
        for grants in ["", *lacking]:
            refused = await Caller(client, grants).ask("PUT", "/new", asked)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "FORBIDDEN"), grants
        assert (await Caller(client, None).ask("PUT", "/new", asked)).status_code == 401
        made = await Caller(client, enough).ask("PUT", "/new", asked)
        assert made.status_code == 201, made.text
        assert (await Caller(client, enough).ask("PUT", "/new", asked)).status_code == 200
        assert (await Caller(client, lacking[0]).ask("PUT", "/new", asked)).status_code == 403

    run(work, webhook_allow_http_localhost=True, public_url="http://server")


REQUESTS: list[tuple[str, str, Any, str]] = [
    # and which of the operations on the streams of a subscription it needs
    ("GET", "", None, "subscribe,read"),
    ("HEAD", "", None, "subscribe,read"),
    ("POST", "/claim", {"worker": "w"}, "subscribe,read"),
    ("POST", "/streams", {"streams": ["pub/more"]}, "subscribe,read"),
    ("DELETE", "/streams/pub/more", None, "subscribe"),
    ("DELETE", "", None, "subscribe"),
]


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize(("name", "place"), [("pub", "pub/**"), ("named", "secret/a pub/**"), ("all", "**")])
def test_what_a_request_needs(request_: tuple[str, str, Any, str], name: str, place: str) -> None:
    method, action, body, needed = request_

    def on(operations: str) -> str:
        return " ".join(f"{operations}:{pattern}" for pattern in place.split())

    async def work(client: httpx.AsyncClient) -> None:
        path = f"/{name}{action}"
        for lacking in (
            "",
            "*:wakes/**",
            "*:pub/a",
            *("subscribe,read:pub/**" for _ in range(name != "pub")),
            *(on("read,append,admin,list") for _ in range(1)),
            *(on("subscribe") for _ in range("read" in needed)),
        ):
            refused = await Caller(client, lacking).ask(method, path, body)
            assert refused.status_code == 403, (lacking, refused.text)
        assert (await Caller(client, None).ask(method, path, body)).status_code == 401
        done = await Caller(client, on(needed)).ask(method, path, body)
        assert done.status_code in (200, 204), done.text

    run(work)


def test_streams_that_are_added_need_grants_of_their_own() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        body = {"streams": ["pub/x/y", "secret/a"]}
        for grants in (BASE, f"{BASE} subscribe:secret/a", f"{BASE} read:secret/a"):
            assert (await Caller(client, grants).ask("POST", "/pub/streams", body)).status_code == 403
        more = Caller(client, f"{BASE} subscribe,read:secret/a")
        assert (await more.ask("POST", "/pub/streams", body)).status_code == 204
        # It is part of the subscription now: those who may not read it see nothing of the subscription any more.
        assert (await Caller(client, BASE).ask("GET", "/pub")).status_code == 403
        assert (await Caller(client, BASE).ask("POST", "/pub/claim", {"worker": "w"})).status_code == 403
        assert (await Caller(client, BASE).ask("PUT", "/pub", pull("pub/*"))).status_code == 403
        assert (await more.ask("GET", "/pub")).status_code == 200

    run(work)


def test_the_list_shows_what_its_caller_may_see() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        for grants, names in (
            (BASE, ["pub"]),
            ("subscribe,read:secret/*", ["named"]),
            ("subscribe,read:**", ["all", "named", "pub"]),
            ("subscribe:**", []),
        ):
            listed = await Caller(client, grants).ask("GET", "")
            assert [one["id"] for one in listed.json()["subscriptions"]] == names
        assert (await Caller(client, "read:**").ask("GET", "")).status_code == 403

    run(work)


def test_a_path_with_an_empty_segment_is_linked_by_its_name_only() -> None:
    """Grants count an empty segment, patterns of subscriptions do not: it would be seen without a grant."""

    async def work(client: httpx.AsyncClient) -> None:
        narrow = "subscribe,read:pub/* append:wakes/pub"
        assert (await client.put("pub//old", headers={**ALL, **JSON}, content=b"[1]")).status_code == 201
        assert (await Caller(client, narrow).ask("PUT", "/new", pull("pub/*"))).status_code == 201
        for path in ("pub//new", "http://server/v1/stream//pub/new", "pub/new/"):
            assert (await client.put(path, headers={**ALL, **JSON}, content=b"[1]")).status_code == 201
            assert (await client.get(path, headers={"x-grant": narrow})).status_code == 403
        claimed = await Caller(client, narrow).ask("POST", "/new/claim", {"worker": "w"})
        assert claimed.json()["error"]["code"] == "NO_PENDING_WORK"
        shown = await Caller(client, narrow).ask("GET", "/new")
        assert [link["path"] for link in shown.json()["streams"]] == ["pub/a"]

    run(work)


def test_ids_are_not_told_to_those_without_credentials() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        nobody = Caller(client, None)
        requests = [(method, action, body) for method, action, body, _ in REQUESTS]
        tokens = [("POST", f"/{action}", {}) for action in ("ack", "callback", "release")]
        for method, action, body in [*requests, *tokens, ("PUT", "", pull("pub/*"))]:
            for token in ("", "x.y"):
                there, not_there = [
                    await nobody.ask(method, f"/{name}{action}", body, token) for name in ("pub", "missing")
                ]
                assert there.status_code == not_there.status_code == 401
                assert there.content == not_there.content

    run(work)


def test_the_token_of_a_wake_is_enough_to_acknowledge() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        held = (await Caller(client, BASE).ask("POST", "/pub/claim", {"worker": "w"})).json()
        assert [stream["path"] for stream in held["streams"]] == ["pub/a"]
        nobody, wake = Caller(client, None), {name: held[name] for name in ("wake_id", "generation")}
        other = await nobody.ask("POST", "/all/ack", wake, held["token"])
        assert (other.status_code, other.json()["error"]["code"]) == (401, "TOKEN_INVALID")
        done = await nobody.ask("POST", "/pub/ack", {**wake, "done": True}, held["token"])
        assert (done.status_code, done.json()) == (200, {"ok": True, "next_wake": True})
        assert (await Caller(client, "subscribe:**").ask("DELETE", "/pub")).status_code == 204
        assert (await nobody.ask("POST", "/pub/ack", wake, held["token"])).status_code == 404
        again = await Caller(client, BASE).ask("PUT", "/pub", pull("pub/*"))
        assert again.status_code == 201
        assert (await nobody.ask("POST", "/pub/ack", wake, held["token"])).status_code == 401

    run(work)


def test_hidden_subscriptions_answer_like_missing_ones() -> None:
    async def work(client: httpx.AsyncClient) -> None:
        caller = Caller(client, "subscribe:secret/** append:**")
        for method, action, body, _ in REQUESTS:
            if body == {"streams": ["pub/more"]}:
                body = {"streams": []}  # noqa: PLW2901 - nothing that is refused for itself
            there, not_there = [await caller.ask(method, f"/{name}{action}", body) for name in ("all", "zzz")]
            assert there.status_code == not_there.status_code
            assert there.text.replace("'all'", "") == not_there.text.replace("'zzz'", "")
        assert (await Caller(client, "*:**").ask("GET", "/all")).status_code == 200, "it was not deleted"

    run(work, hide_forbidden=True)
