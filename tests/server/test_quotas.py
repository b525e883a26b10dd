"""How much callers may do: each limit alone, together, and changed while a server runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import Grant
from durable_streams.server import ServerConfig, ServerRequest, ServerStartError, asgi_app, quotas
from durable_streams.server.quotas import Quotas, parse_quotas
from durable_streams.server.toml import Watched

ROOT = "http://server/v1/stream/"


async def named(_operation: str, _path: str, request: ServerRequest) -> Grant:
    return Grant.of("*:**", subject=request.header("x-name") or "")


@asynccontextmanager
async def client_of(folder: Path, limits: str, **settings: float) -> AsyncIterator[httpx.AsyncClient]:
    path = folder / "limits.toml"
    path.write_text(limits)
    app = asgi_app(ServerConfig(limits=path, **settings), authorize=named)  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url=ROOT) as client:
        yield client
    await app.shutdown()


def refused(answer: httpx.Response, what: str) -> bool:
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "RATE_LIMITED"
    assert int(answer.headers["retry-after"]) >= 1
    return what in answer.json()["error"]["message"]


def test_requests_a_second(tmp_path: Path) -> None:
    limits = "[default]\nrequests = 0.01\nburst = 300\n[caller.busy]\nrequests = 1000\n"

    async def work() -> None:
        async with client_of(tmp_path, limits) as client:
            assert [(await client.put("s", headers={"x-name": "a"})).status_code for _ in range(3)] == [
                201,
                200,
                200,
            ]
            for method in ("PUT", "POST", "GET", "DELETE"):
                assert refused(
                    await client.request(method, "s", headers={"x-name": "a"}), "requests a second"
                )
            assert refused(await client.get("__ds/nothing", headers={"x-name": "a"}), "requests a second")
            # Others are not concerned, and one with a table of its own may do more.
            assert (await client.get("s", headers={"x-name": "b"})).status_code == 200
            for _ in range(50):
                assert (await client.get("s", headers={"x-name": "busy"})).status_code == 200

    asyncio.run(work())


def test_bytes_a_second(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, "[default]\nbytes = 0.1\nburst = 1000\n") as client:
            text = {"content-type": "text/plain"}
            assert (await client.put("s", headers=text, content=b"x" * 50)).status_code == 201
            # How long a body is, is known when it was read: it is taken, and what follows has to wait.
            assert (await client.post("s", headers=text, content=b"x" * 500)).status_code == 204
            answer = await client.post("s", headers=text, content=b"x")
            assert refused(answer, "bytes a second")
            assert 4000 < int(answer.headers["retry-after"]) < 5000
            assert len((await client.get("s", headers={"x-name": "other"})).content) == 550

    asyncio.run(work())


@pytest.mark.parametrize("query", ["live=long-poll", "live=sse", "%6Cive=long-poll"])
def test_live_reads_at_a_time(tmp_path: Path, query: str) -> None:
    limits = "[default]\nlive_reads = 2\n[all]\nlive_reads = 3\n"

    async def work() -> None:
        async with client_of(tmp_path, limits, sse_max_age=1.0, long_poll_timeout=1.0) as client:
            assert (await client.put("s", headers={"content-type": "text/plain"})).status_code == 201

            async def read(name: str) -> httpx.Response:
                return await client.get(f"s?offset=now&{query}", headers={"x-name": name}, timeout=30)

            for _ in range(2):  # those that have ended count no more
                reads = [asyncio.ensure_future(read(name)) for name in ("a", "a", "b")]
                await asyncio.sleep(0.3)
                assert refused(await read("a"), "live reads at a time")
                assert refused(await read("c"), "live reads of all callers")
                assert (await client.get("s", headers={"x-name": "a"})).status_code == 200
                assert {one.status_code for one in await asyncio.gather(*reads)} <= {200, 204}
            # One that fails is none.
            for _ in range(5):
                assert (
                    await client.get(f"missing?offset=now&{query}", headers={"x-name": "a"})
                ).status_code == 404
                assert (await client.get("s?live=x", headers={"x-name": "a"})).status_code == 400

    asyncio.run(work())


def test_changed_limits(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, "[default]\nrequests = 0.01\nburst = 200\n") as client:
            for status in (201, 200, 429):
                assert (await client.put("s")).status_code == status
            (tmp_path / "limits.toml").write_text("[default]\nrequests = 1000\n")
            until = time.monotonic() + 20
            while (await client.put("s")).status_code == 429:
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
            # What cannot be used changes nothing.
            (tmp_path / "limits.toml").write_text("[default]\nrequests = 0\n")
            await asyncio.sleep(2.1)
            assert (await client.put("s")).status_code == 200

    asyncio.run(work())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[default]\nrequests = 0", r"requests of \[default\] is a number above 0"),
        ("[caller.x]\nbytes = -1", r"bytes of \[caller.x\]"),
        ("[default]\nburst = inf", "number above 0"),
        ("[default]\nbytes = nan", "number above 0"),
        ("[all]\nlive_reads = 0", r"live_reads of \[all\]"),
        ("[default]\nrequest = 1", "unknown field `request`"),
        ("[default]\nrequests = 'x'", "Expected"),
        ("[default", "not TOML"),
        ("[prefix.x]\nstreams = -1", r"streams of \[prefix.'x'\] is a number from 0"),
        ("[prefix.x]\nbytes = 1.5", "Expected"),
        ("[prefix.'/x']\nbytes = 1", "no beginning of a stream's path"),
        ("[prefix.'']\nbytes = 1", "no beginning of a stream's path"),
    ],
)
def test_limits_that_make_no_sense(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(ServerStartError, match=said) as refusal:
        asgi_app(ServerConfig(limits=path), authorize=named)
    assert "\n" not in str(refusal.value)


def test_limits_need_callers(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("")
    with pytest.raises(ServerStartError, match="who they are"):
        asgi_app(ServerConfig(limits=tmp_path / "limits.toml"))


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "_MAX_CALLERS", 10)
    path = tmp_path / "limits.toml"
    path.write_text("[default]\nrequests = 1\nlive_reads = 1\n")
    now = 0.0
    counted = Quotas(Watched(path, parse_quotas), lambda: now)
    reads = [counted.begin_live_read(f"reader {number}") for number in range(3)]
    for number in range(50):
        now += 0.3
        counted.admit(f"caller {number}")
        assert len(counted._callers) <= 10
    with pytest.raises(Rejection):
        counted.admit("caller 49")
    with pytest.raises(Rejection):
        counted.begin_live_read("reader 2")
    for read in reads:
        read.release()
        read.release()
    counted.begin_live_read("reader 2").release()
    assert counted._live_reads == 0
