"""Who may do what, with an ``authorize`` of the application's: every operation with every grant, on every store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from granting import ALL, by_header, client_of

from durable_streams.protocol.grants import OPERATIONS, Grant
from durable_streams.server import ServerConfig, ServerRequest, access
from durable_streams.server.access import operation_on_resource
from durable_streams.testing.nats import NatsCluster

# One request for each thing that can be done, and the operations that it needs.
REQUESTS: list[tuple[str, str, dict[str, str], bytes, set[str]]] = [
    ("GET", "there", {}, b"", {"read"}),
    ("GET", "there?offset=-1&live=long-poll", {}, b"", {"read"}),
    ("GET", "closed?offset=-1&live=sse", {}, b"", {"read"}),
    ("HEAD", "there", {}, b"", {"read"}),
    ("POST", "there", {"content-type": "text/plain"}, b"x", {"append"}),
    ("POST", "to-close", {"stream-closed": "true"}, b"", {"append"}),
    ("PUT", "new", {}, b"", {"create"}),
    ("PUT", "new", {"content-type": "text/plain"}, b"x", {"create", "append"}),
    ("PUT", "new", {"stream-closed": "true"}, b"", {"create", "append"}),
    ("PUT", "new", {"stream-forked-from": "/v1/stream/there"}, b"", {"create", "read"}),
    ("DELETE", "to-delete", {}, b"", {"delete"}),
    ("GET", "__ds/streams/{}there", {}, b"", {"list"}),
    ("GET", "__ds/producers/{}there", {}, b"", {"read"}),
    ("POST", "__ds/streams/{}there/trim", {}, b'{"max_bytes": 0}', {"trim"}),
    ("POST", "__ds/streams/{}there/retention", {}, b'{"max_bytes": 9}', {"admin"}),
]
GRANTS = [
    set(),
    *({str(operation)} for operation in OPERATIONS),
    {"create", "append"},
    {"create", "read"},
    {str(operation) for operation in OPERATIONS},
]


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with NatsCluster(tmp_path_factory.mktemp("nats"), 1) as cluster:
        yield cluster.store


@pytest.fixture(params=["memory", "sqlite", "nats"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ServerConfig:
    if request.param == "nats":
        return ServerConfig(store=request.getfixturevalue("nats"), nats_replicas=1)
    return ServerConfig(data_dir=tmp_path if request.param == "sqlite" else None)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(work())  # type: ignore[arg-type]


async def prepare(client: httpx.AsyncClient, folder: str = "", paths: Collection[str] = ("there",)) -> None:
    for path in paths:
        headers = {**ALL, "content-type": "text/plain"} | (
            {"stream-closed": "true"} if path == "closed" else {}
        )
        created = await client.put(folder + path, content=b"data", headers=headers)
        assert created.status_code == 201


def test_every_operation_with_every_grant(config: ServerConfig) -> None:
    async def work() -> None:
        async with client_of(config, by_header) as client:
            for number, (method, target, headers, body, needed) in enumerate(REQUESTS):
                for turn, granted in enumerate(GRANTS):
                    folder = f"{number}/{turn}/"
                    path = target.partition("?")[0]
                    await prepare(client, folder, {"there"} if "{}" in path else {"there", path} - {"new"})
                    given = {"x-grant": f"{','.join(sorted(granted))}:**" if granted else ""}
                    if "stream-forked-from" in headers:
                        given["stream-forked-from"] = f"/v1/stream/{folder}there"
                    answer = await client.request(
                        method,
                        target.format(folder) if "{}" in target else folder + target,
                        headers=headers | given,
                        content=body,
                    )
                    expected = (200, 201, 204) if needed <= granted else (403,)
                    assert answer.status_code in expected, (method, target, headers, granted, answer.text)
                    if answer.status_code == 403 and method != "HEAD":
                        assert answer.json()["error"]["code"] == "FORBIDDEN"
                    if method == "PUT":  # what is refused has done nothing
                        there = await client.head(folder + "new", headers=ALL)
                        assert (there.status_code == 200) == (needed <= granted)

    run(work)


def test_a_grant_is_good_for_its_paths_only() -> None:
    async def work() -> None:
        async with client_of(ServerConfig(), by_header) as client:
            await prepare(client)
            assert (await client.put("jobs/1/log", headers=ALL)).status_code == 201
            for path, status in (("jobs/1/log", 200), ("there", 403), ("jobs", 403), ("jobs%2F1%2Flog", 200)):
                assert (await client.get(path, headers={"x-grant": "read:jobs/*/log"})).status_code == status
            # A fork carries away what its source holds.
            may_create = {"x-grant": "create:mine/** read:mine/**"}
            for source in ("/v1/stream/there", "http://server/v1/stream/there", "/v1/stream/%74here"):
                fork = await client.put("mine/fork", headers=may_create | {"stream-forked-from": source})
                assert fork.status_code == 403
                assert "read on there" in fork.json()["error"]["message"]

    run(work)


def test_an_unknown_caller() -> None:
    async def work() -> None:
        async with client_of(ServerConfig(), by_header) as client:
            for method, target, headers, body, _ in REQUESTS:
                answer = await client.request(method, target, headers=headers, content=body)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["code"] == "UNAUTHORIZED"
            assert answer.headers["access-control-allow-origin"] == "*"
            # What tells nothing is open: health, and what a browser asks before it asks.
            health = await client.get("http://server/health")
            preflight = await client.options(
                "there", headers={"access-control-request-headers": "authorization"}
            )
            assert (health.status_code, preflight.status_code) == (200, 204)
            assert "authorization" in preflight.headers["access-control-allow-headers"]

    run(work)


def test_who_may_only_create_learns_nothing_of_a_stream_that_is_there() -> None:
    async def work() -> None:
        async with client_of(ServerConfig(), by_header) as client:
            await prepare(client)
            text = {"content-type": "text/plain"}
            for grant, knows in (
                ("create:**", False),
                ("create,delete,trim:**", False),
                *((f"create,{operation}:**", True) for operation in ("read", "append", "list")),
            ):
                found = await client.put("there", headers=text | {"x-grant": grant})
                assert found.status_code == 200
                assert ("stream-next-offset" in found.headers) == knows
                made = await client.put(f"new/{grant}", headers=text | {"x-grant": grant})
                assert "stream-next-offset" in made.headers

    run(work)


def test_hidden_streams_answer_like_missing_ones() -> None:
    async def work() -> None:
        async with client_of(ServerConfig(hide_forbidden=True), by_header) as client:
            await prepare(client)
            for grant in ("read:mine/**", "append:**", ""):
                answers = [
                    await client.get(path, headers={"x-grant": grant}) for path in ("there", "not-there")
                ]
                missing = await client.get("not-there", headers=ALL)
                for answer in answers:
                    assert (answer.status_code, answer.content) == (404, missing.content)
                    assert dict(answer.headers) == dict(missing.headers)
            # Who may see the stream may know what is not allowed.
            for may_see in ("read:**", "list:**"):
                assert (await client.post("there", headers={"x-grant": may_see})).status_code == 403

    run(work)


@pytest.mark.parametrize(
    ("method", "path", "operation"),
    [
        ("GET", "jwks.json", None),
        ("GET", "streams", "list"),
        ("GET", "streams/a/b", "list"),
        ("POST", "streams/a/b/trim", "trim"),
        ("POST", "streams/a/retention", "admin"),
        ("POST", "streams/retention/trim", "trim"),
        ("GET", "producers/a/b", "read"),
        ("GET", "subscriptions/s", "subscribe"),
        ("PUT", "subscriptions/s", "subscribe"),
        ("POST", "subscriptions/s/claim", "subscribe"),
        ("POST", "subscriptions/s/ack", None),
        ("POST", "subscriptions/s/callback", None),
        ("POST", "subscriptions/s/release", None),
        ("DELETE", "subscriptions/ack", "subscribe"),
        ("GET", "metrics", "admin"),
        ("POST", "anything/else", "admin"),
        ("GET", "", "admin"),
    ],
)
def test_what_a_resource_needs(method: str, path: str, operation: str | None) -> None:
    assert operation_on_resource(method, path) == operation


def test_resources_are_behind_the_same_door() -> None:
    async def work() -> None:
        async with client_of(ServerConfig(), by_header) as client:
            for grant, status in (
                (None, 401),
                ("*:jobs/**", 403),
                ("admin:jobs/**", 403),
                ("admin:**", 404),
            ):
                headers = {} if grant is None else {"x-grant": grant}
                assert (await client.get("__ds/nothing", headers=headers)).status_code == status
            for grant, status in (("list:jobs/**", 404), ("read:**", 403)):
                assert (await client.get("__ds/streams", headers={"x-grant": grant})).status_code in (
                    status,
                    200,
                )

    run(work)


def test_trimming_needs_a_grant_of_it_on_that_stream() -> None:
    """Another policy goes on to hold, so that it is no trim."""

    async def work() -> None:
        async with client_of(ServerConfig(), by_header) as client:
            for action, operation in (("trim", "trim"), ("retention", "admin")):
                others = ",".join({str(other) for other in OPERATIONS} - {operation})
                for grant, status in (
                    (None, 401),
                    (f"{others}:**", 403),
                    (f"{operation}:other/**", 403),
                    (f"{operation}:jobs/*", 404),
                ):
                    headers = {} if grant is None else {"x-grant": grant}
                    answer = await client.post(
                        f"__ds/streams/jobs/1/{action}", json={"max_bytes": 1}, headers=headers
                    )
                    assert answer.status_code == status, (grant, action)

    run(work)


def test_live_reads_end_with_their_grant() -> None:
    """Also those that wait: neither the age of an event stream nor the wait of a long-poll keeps them."""
    asked = 0

    async def for_a_moment(_operation: str, _path: str, _request: ServerRequest) -> Grant:
        nonlocal asked
        asked += 1
        return Grant.of("*:**", expires=time.time() + 0.3)

    async def work() -> None:
        config = ServerConfig(long_poll_timeout=600, sse_max_age=600)
        async with client_of(config, for_a_moment) as client:
            assert (await client.put("s")).status_code == 201
            polled = await client.get("s?offset=now&live=long-poll", timeout=30)
            assert polled.status_code == 204
            events = await client.get("s?offset=now&live=sse", timeout=30)
            assert events.text.startswith("event: control")
            assert asked == 3

    run(work)


@pytest.mark.parametrize(
    "query", ["s?offset=now&live=sse", "s?offset=now&live=long-poll", "__ds/follow?streams=s"]
)
def test_live_reads_end_when_their_grant_is_taken_away(monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    """A grant without an end is looked at again, here after less than a minute."""
    assert access._LIVE_READ == 60
    monkeypatch.setattr(access, "_LIVE_READ", 0.3)
    known, admitted = True, asyncio.Event()

    async def while_known(operation: str, _path: str, _request: ServerRequest) -> Grant | None:
        if operation == "read":
            admitted.set()
        return Grant.of("*:**") if known else None

    async def work() -> None:
        nonlocal known
        config = ServerConfig(long_poll_timeout=600, sse_max_age=600)
        async with client_of(config, while_known) as client:
            assert (await client.put("s")).status_code == 201
            asked = asyncio.ensure_future(client.get(query, timeout=30))
            await admitted.wait()
            known = False
            answer = await asked
            assert answer.status_code in (200, 204)
            assert "follow" not in query or "UNAUTHORIZED" in answer.text
            after = await client.get("s?offset=now&live=sse")
            assert after.status_code == 401

    run(work)


def test_an_expired_grant_is_refused() -> None:
    async def expired(_operation: str, _path: str, _request: ServerRequest) -> Grant:
        return Grant.of("*:**", expires=time.time())

    async def work() -> None:
        async with client_of(ServerConfig(), expired) as client:
            answer = await client.get("s")
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED")

    run(work)


def test_shared_caches_keep_nothing() -> None:
    async def work() -> None:
        async with client_of(ServerConfig(), by_header) as client:
            await prepare(client, paths=["closed"])
            answer = await client.get("closed?offset=-1", headers=ALL)
            assert answer.headers["cache-control"].startswith("private, max-age")
            assert "authorization" in answer.headers["vary"]

    run(work)


async def named(_operation: str, _path: str, request: ServerRequest) -> Grant:
    return Grant.of("*:**", subject=request.header("x-name") or "")


@pytest.mark.parametrize("bind", [False, True])
def test_producers_of_a_caller(config: ServerConfig, *, bind: bool) -> None:
    async def work() -> None:
        async with client_of(replace(config, bind_producers=bind), named) as client:
            path = f"producers/{bind}"
            assert (await client.put(path, headers={"content-type": "text/plain"})).status_code == 201

            async def append(name: str, epoch: int, seq: int) -> int:
                stamp = {"producer-id": "p", "producer-epoch": str(epoch), "producer-seq": str(seq)}
                sent = {"x-name": name, "content-type": "text/plain"} | stamp
                answer = await client.post(path, headers=sent, content=f"{name}{epoch}{seq} ".encode())
                if answer.status_code in (200, 204):
                    assert answer.headers["producer-seq"] == str(seq)
                return answer.status_code

            assert await append("a", 0, 0) == 200
            assert await append("b", 1, 0) == 200  # fences the producer of a, unless it is another one
            assert await append("a", 0, 1) == (200 if bind else 403)
            assert await append("b", 1, 0) == 204
            assert await append("b", 0, 1) == 403
            whole = (await client.get(path)).text
            assert whole == ("a00 b10 a01 " if bind else "a00 b10 ")

    run(work)


def test_bound_producers_are_shown_to_their_caller_and_to_an_administrator() -> None:
    async def writes(_operation: str, _path: str, request: ServerRequest) -> Grant:
        name = request.header("x-name") or ""
        return Grant.of("*:**" if name == "admin" else "read,append,create:**", subject=name)

    async def work() -> None:
        async with client_of(replace(ServerConfig(), bind_producers=True), writes) as client:
            assert (await client.put("s", headers={"content-type": "text/plain"})).status_code == 201
            for name in ("a", "b"):
                for producer in ("p", "q"):
                    stamp = {"producer-id": producer, "producer-epoch": "0", "producer-seq": "0"}
                    sent = {"x-name": name, "content-type": "text/plain"} | stamp
                    assert (await client.post("s", headers=sent, content=b"x")).status_code == 200

            async def shown(name: str, query: str = "") -> tuple[list[str], str | None]:
                page = (await client.get(f"__ds/producers/s{query}", headers={"x-name": name})).json()
                return [one["id"] for one in page["producers"]], page["next"]

            assert await shown("a") == await shown("b") == (["p", "q"], None)
            assert await shown("b", "?limit=1") == (["p"], "p")
            assert await shown("a", "?limit=1&after=p") == (["q"], None)
            assert await shown("c") == ([], None)
            assert await shown("admin") == (["a→p", "a→q", "b→p", "b→q"], None)

    run(work)
