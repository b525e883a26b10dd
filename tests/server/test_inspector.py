"""The inspector's files and the figures that it draws; the page itself is tested in Chromium (tests/interop)."""
# ruff: noqa: ANN001 - fixtures

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import msgspec
import pytest
from servers import ServerProcess

from durable_streams.server.app import App
from durable_streams.server.config import ServerConfig
from durable_streams.server.inspector import Inspector
from durable_streams.server.stats import Stats
from durable_streams.stores.memory import MemoryStore


def _get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(
            method, path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_page_is_served_with_a_strict_policy(shared_server) -> None:
    status, headers, body = _get(shared_server.port, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<script" in body
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-cache")
    assert _get(shared_server.port, "/", if_none_match=headers["etag"])[0] == 304
    assert _get(shared_server.port, "/page/app.js")[1]["content-type"] == "text/javascript; charset=utf-8"
    assert _get(shared_server.port, "/", "HEAD")[2] == b""
    assert _get(shared_server.port, "/", "POST")[0] == 405


@pytest.mark.parametrize(
    "path", ["/page/", "/page/nothing.js", "/page/../app.js", "/page/%2e%2e/inspector.py", "/page"]
)
def test_nothing_but_the_page_is_there(shared_server, path: str) -> None:
    assert _get(shared_server.port, path)[0] == 404


def test_every_file_belongs_to_a_small_page_without_code_in_html() -> None:
    folder = Path(__file__).parents[2] / "src" / "durable_streams" / "server" / "page"
    files = list(folder.iterdir())
    assert sum(file.stat().st_size for file in files) < 150_000
    html = (folder / "index.html").read_text()
    assert "<script>" not in html
    assert "style=" not in html
    assert all(Inspector().has("/" if file.name == "index.html" else f"/page/{file.name}") for file in files)


@pytest.fixture
def public_server(run_server, server_command) -> Callable[..., ServerProcess]:
    """Give a function that starts a server that other machines reach."""

    def start(**settings: object) -> ServerProcess:
        python, _, program, given = server_command(None, host="0.0.0.0", sse_heartbeat=15.0, **settings)
        shown = program.replace("root, flush", 'root.replace("0.0.0.0", "127.0.0.1"), flush')
        return run_server([python, "-c", shown, given]).wait_until_ready()

    return start


def test_it_is_shown_on_a_loopback_address_and_where_callers_are_known(
    start_server, public_server, tmp_path: Path
) -> None:
    assert _get(start_server(None, ui=False).port, "/")[0] == 404
    assert _get(public_server(no_auth=True).port, "/")[0] == 404
    assert _get(public_server(no_auth=True, ui=True).port, "/")[0] == 200
    keys = tmp_path / "keys.toml"
    keys.write_text("")
    keys.chmod(0o600)
    guarded = public_server(auth=str(keys))
    assert _get(guarded.port, "/")[0] == 200
    assert _get(guarded.port, "/v1/stream/__ds/stats")[0] == 401


def test_the_figures_count_what_is_stored_and_refused(shared_server, stream: str) -> None:
    before = shared_server.request("GET", "__ds/stats").json
    shared_server.create(stream, "text/plain")
    shared_server.append(stream, b"12345", "text/plain")
    assert shared_server.request("GET", f"{stream}-missing").status == 404
    after = shared_server.request("GET", "__ds/stats").json
    # Other tests use this server at the same time.
    assert after["appends"] > before["appends"]
    assert after["append_bytes"] >= before["append_bytes"] + 5
    assert after["commit_seconds"] > before["commit_seconds"]
    assert after["refusals"]["NOT_FOUND"] > before["refusals"].get("NOT_FOUND", 0)
    assert after["uptime"] > before["uptime"]


class _Asks:
    """A request for the figures."""

    def __init__(self, query: str = "") -> None:
        self.query = query


def test_what_the_figures_were_is_kept_for_a_while() -> None:
    async def work() -> None:
        app = App(MemoryStore(), ServerConfig(ui=True))
        await app.startup()
        stats = Stats(app.metrics, every=0.001, most=3)

        async def asked(query: str = "") -> dict:
            answer = await stats.read(_Asks(query), "")  # type: ignore[arg-type]
            return msgspec.json.decode(answer.body)

        stats.start()
        first = await asked()
        while True:
            now = await asked("history=true")
            if (
                len(now["history"]) == 3 and now["history"][0]["uptime"] > first["uptime"]
            ):  # the first is gone
                break
            await asyncio.sleep(0.002)
        moments = [one["uptime"] for one in now["history"]]
        assert moments == sorted(moments)
        assert moments[-1] <= now["uptime"]
        assert now.keys() - now["history"][0].keys() == {"version", "instance", "history"}
        assert "history" not in first
        await stats.stop()
        await app.shutdown()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_server_that_shows_its_page_keeps_them(shared_server) -> None:
    assert shared_server.request("GET", "__ds/stats?history=true").json["history"]
