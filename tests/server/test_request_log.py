"""What is logged of requests, over both interfaces; nothing stands in the way where nothing is."""

from __future__ import annotations

import asyncio
import logging

import pytest

from durable_streams.server import request_log
from durable_streams.server.app import App
from durable_streams.server.config import ServerConfig
from durable_streams.server.http import ServerResponse
from durable_streams.stores.memory import MemoryStore


class _Request:
    method, path, query = "PUT", "/v1/stream/x\n", "token=secret"

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


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_none_to_all(share: float) -> None:
    with pytest.raises(ValueError, match="access_log"):
        ServerConfig(access_log=share)
