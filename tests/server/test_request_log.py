"""What is logged of requests, over both interfaces; nothing stands in the way where nothing is."""

from __future__ import annotations

import asyncio
import logging

import httpx
import msgspec
import pytest

from durable_streams.protocol.grants import Grant
from durable_streams.server import ServerRequest, asgi_app, request_log
from durable_streams.server.app import App
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ServerResponse
from durable_streams.stores.memory import MemoryStore


class _Request:
    method, path, query, grant = "PUT", "/v1/stream/x\n", "token=secret", None

    def peer(self) -> str:
        return "127.0.0.1"


def _note(config: ServerConfig, status: int, caplog: pytest.LogCaptureFixture, times: int = 1) -> list[str]:
    async def handle(_: object) -> ServerResponse:
        return ServerResponse(status, [])

    async def main() -> None:
        answer = request_log.logged(handle, config)
        for _ in range(times):
            assert (await answer(_Request())).status == status

    caplog.clear()
    with caplog.at_level(logging.INFO, logger="durable_streams"):
        asyncio.run(main())
    return [record.getMessage() for record in caplog.records]


def test_without_a_log_requests_take_no_other_way() -> None:
    app = App(MemoryStore())
    assert app.answer == app.handle


def test_credentials_that_are_refused_are_audited(caplog: pytest.LogCaptureFixture) -> None:
    config = ServerConfig(audit_log=True)
    for status in (401, 403):
        [line] = _note(config, status, caplog)
        assert line == f"refused method='PUT' path='/v1/stream/x\\n' status={status} peer='127.0.0.1'"
    assert _note(config, 404, caplog) == _note(config, 200, caplog) == []


def test_a_share_of_requests_and_every_failure_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServerConfig(access_log=0.25)
    course = iter([0.1, 0.2, 0.25, 0.9] * 10)
    monkeypatch.setattr(request_log, "_random", lambda: next(course))
    assert len(_note(config, 200, caplog, times=40)) == 20
    assert len(_note(config, 503, caplog, times=5)) == 5


async def by_name(_operation: str, _path: str, request: ServerRequest) -> Grant | None:
    name = request.header("x-name")
    return None if name is None else Grant.of("*:jobs/**" if name == "ann" else "create:**", subject=name)


def test_who_did_what_is_audited(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is answered like a missing stream; a caller that is known once from each address."""
    requests = [
        ("ann", "PUT", "jobs/1", {}),
        ("ann", "POST", "__ds/streams/jobs/1/trim", {"max_bytes": 0}),
        ("ann", "POST", "__ds/streams/jobs/1/retention", {"max_bytes": 5}),
        ("ann", "POST", "__ds/streams/jobs/1/trim", {"max_bytes": -1}),
        ("ann", "GET", "jobs/1", None),
        ("ann", "GET", "secret", None),
        ("ann", "GET", "jobs/2", None),
        (None, "GET", "jobs/1", None),
        ("bob", "PUT", "jobs/1", {}),
        ("bob", "DELETE", "jobs/1", None),
        ("ann", "DELETE", "jobs/1", None),
    ]

    async def main() -> None:
        config = ServerConfig(audit_log=True, hide_forbidden=True)
        app = asgi_app(config, authorize=by_name)
        transport = httpx.ASGITransport(app, client=("10.1.1.1", 1))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://server/v1/stream/") as client:
            for name, method, path, body in requests:
                headers = {"content-type": "application/json"} | ({} if name is None else {"x-name": name})
                content = None if not body else msgspec.json.encode(body)
                await client.request(method, path, content=content, headers=headers)
        await app.shutdown()

    with caplog.at_level(logging.INFO, logger="durable_streams.audit"):
        asyncio.run(main())
    fields = [record.fields for record in caplog.records if record.name == "durable_streams.audit"]  # type: ignore[attr-defined]
    assert {one["peer"] for one in fields} == {"10.1.1.1"}
    assert [(one["event"], one.get("by"), one["path"].removeprefix("/v1/stream/")) for one in fields] == [
        ("created", "ann", "jobs/1"),
        ("used", "ann", "jobs/1"),
        ("trimmed", "ann", "__ds/streams/jobs/1/trim"),
        ("retention", "ann", "__ds/streams/jobs/1/retention"),
        ("refused", "ann", "secret"),
        ("refused", None, "jobs/1"),
        ("used", "bob", "jobs/1"),
        ("refused", "bob", "jobs/1"),
        ("deleted", "ann", "jobs/1"),
    ]


def test_callers_that_are_remembered_are_bounded(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "_MAX_USES", 3)
    audit = request_log._Audit()
    for number in range(10):
        assert audit._is_first(f"caller {number}", "peer")
        assert not audit._is_first(f"caller {number}", "peer")
        assert len(audit._uses) <= 3


def test_a_producer_that_was_replaced_is_not_refused(caplog: pytest.LogCaptureFixture) -> None:
    fenced = ServerResponse(403, [("producer-epoch", "2")])
    assert request_log._event(_Request(), fenced) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_none_to_all(share: float) -> None:
    with pytest.raises(ValueError, match="access_log"):
        ServerConfig(access_log=share)
