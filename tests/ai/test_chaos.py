"""Answers while everything fails: browsers that leave and come back, and a server of the streams that is killed.

``--chaos-answers 30 --chaos-kills 5`` is the long run. Each browser ends with exactly the tokens, in order, and each
answer was generated once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from durable_streams import FetchError
from durable_streams.ai import Runs

aiohttp = pytest.importorskip("aiohttp")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

TOKENS = 300
BROWSERS = 2  # of each answer
PATIENCE = 100  # questions
WITHIN = 100.0  # seconds, and five more for each answer


class Application:
    """A back end of chats, over the streams of a server: POST starts an answer, GET resumes it."""

    def __init__(self, root: str) -> None:
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.routing import Route

        self.runs = Runs(root, format="events", lease=600)  # it is the server that is killed
        self.generated: Counter[str] = Counter()

        async def start(request: Request) -> Any:
            chat = request.path_params["chat"]
            return await self.runs.start(chat, self._generate(chat), request)

        async def resume(request: Request) -> Any:
            return await self.runs.resume(request.path_params["chat"], request, ended=True)

        routes = [Route("/{chat}", start, methods=["POST"]), Route("/{chat}", resume, methods=["GET"])]
        self.app = Starlette(routes=routes, exception_handlers={FetchError: self._unavailable})

    @staticmethod
    async def _unavailable(_: Any, error: Exception) -> Any:
        from starlette.responses import PlainTextResponse

        return PlainTextResponse(str(error), 503)

    async def _generate(self, chat: str) -> AsyncIterator[dict[str, Any]]:
        self.generated[chat] += 1
        for number in range(TOKENS):
            await asyncio.sleep(random.random() * 0.005)
            yield {"chat": chat, "token": number}

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
            await self.runs.aclose()


class Browser:
    """An EventSource with a user who closes the page in the middle, again and again."""

    def __init__(self, session: Any, url: str, leaves: int) -> None:
        self._session = session
        self._url = url
        self._leaves = leaves
        self._last_event_id: str | None = None
        self.tokens: list[int] = []
        self.states: list[str] = []

    async def watch(self) -> None:
        while not self.states:
            headers = {} if self._last_event_id is None else {"last-event-id": self._last_event_id}
            left = random.randrange(1, TOKENS // 2) if self._leaves else sys.maxsize
            self._leaves -= self._leaves > 0
            try:
                async with self._session.get(self._url, headers=headers) as answer:
                    if answer.status == 200:
                        await self._read(answer.content, left)
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(random.random() * 0.05)

    async def _read(self, lines: AsyncIterator[bytes], left: int) -> None:
        event: dict[str, str] = {}
        async for line in lines:
            name, _, value = line.decode().rstrip("\n").partition(":")
            if value:
                event[name] = value.removeprefix(" ")
            elif not name and "data" in event:
                self._last_event_id = event["id"]
                data = json.loads(event["data"])
                if event.get("event") == "end":
                    self.states.append(data["state"])
                else:
                    self.tokens.append(data["token"])
                event = {}
                left -= 1
                if left <= 0:
                    return


async def asked(session: Any, url: str) -> bool:
    """Start an answer, and leave; false where the streams could not be reached: a person asks again."""
    async with session.post(url) as answer:
        assert answer.status in {200, 503}, await answer.text()
        if answer.status == 200:
            await answer.content.readany()
        return bool(answer.status == 200)


def test_each_browser_has_every_token_once(
    run_server: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    answers, kills = request.config.getoption("--chaos-answers"), request.config.getoption("--chaos-kills")
    command = [sys.executable, "-m", "durable_streams.cli", "serve", "--data-dir", str(tmp_path), "--port"]
    server = run_server([*command, "0"]).wait_until_ready()
    port = server.port
    application = Application(f"http://127.0.0.1:{port}/v1/stream")
    chats = [f"chat-{number}" for number in range(answers)]

    async def chat(session: Any, base: str, name: str) -> list[Browser]:
        await asyncio.sleep(random.random())
        for _ in range(PATIENCE):
            if await asked(session, f"{base}/{name}"):
                break
            await asyncio.sleep(0.5)
        browsers = [Browser(session, f"{base}/{name}", leaves=random.randrange(4)) for _ in range(BROWSERS)]
        await asyncio.gather(*[browser.watch() for browser in browsers])
        return browsers

    async def kill(watching: asyncio.Future[Any]) -> int:
        nonlocal server
        done = 0
        while done < kills and not watching.done():
            await asyncio.sleep(0.3 + random.random() * 1.5)
            server.kill()
            starting = run_server([*command, str(port)])
            server = await asyncio.to_thread(starting.wait_until_ready)
            done += 1
        return done

    async def main() -> tuple[list[list[Browser]], int]:
        connector, forever = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
        async with (
            application.served() as base,
            aiohttp.ClientSession(connector=connector, timeout=forever) as session,
        ):
            watching = asyncio.gather(*[chat(session, base, name) for name in chats])
            killing = asyncio.create_task(kill(watching))
            found = await asyncio.wait_for(watching, WITHIN + 5 * answers)
            return found, await killing

    found, killed = asyncio.run(main())
    assert killed == kills, f"it was over after {killed} kills: more answers take longer"
    for browsers in found:
        for browser in browsers:
            assert browser.tokens == list(range(TOKENS))
            assert browser.states == ["completed"]
    assert application.generated == dict.fromkeys(chats, 1)
