"""The streams of an application in FastAPI, Starlette, Litestar and under Uvicorn: mounted, opened by the lifespan."""

import asyncio
import contextlib
import socket
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from durable_streams import AsyncDurableStream
from durable_streams.embedded import DurableStreams

uvicorn = pytest.importorskip("uvicorn")


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """Serve an application on a free port, on this event loop."""
    # Named as TCP: asyncio turns off Nagle's algorithm only where it knows that it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def in_fastapi(streams: DurableStreams) -> Any:
    pytest.importorskip("fastapi")
    from fastapi import FastAPI

    app = FastAPI(lifespan=streams.lifespan)
    app.mount("/streams", streams.asgi)

    @app.post("/say/{word}")
    async def say(word: str) -> dict[str, str]:
        result = await streams.stream("words", content_type="text/plain").append(word)
        return {"offset": result.next_offset}

    @app.post("/say-in-a-thread/{word}")
    def say_in_a_thread(word: str) -> dict[str, str]:
        result = streams.sync_stream("words", content_type="text/plain").append(word)
        return {"offset": result.next_offset}

    return app


def in_starlette(streams: DurableStreams) -> Any:
    pytest.importorskip("starlette")
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    async def say(request: Request) -> JSONResponse:
        stream = streams.stream("words", content_type="text/plain")
        return JSONResponse({"offset": (await stream.append(request.path_params["word"])).next_offset})

    def say_in_a_thread(request: Request) -> JSONResponse:
        stream = streams.sync_stream("words", content_type="text/plain")
        return JSONResponse({"offset": stream.append(request.path_params["word"]).next_offset})

    routes = [
        Mount("/streams", streams.asgi),
        Route("/say/{word}", say, methods=["POST"]),
        Route("/say-in-a-thread/{word}", say_in_a_thread, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=streams.lifespan)


def in_litestar(streams: DurableStreams) -> Any:
    pytest.importorskip("litestar")
    import litestar
    from litestar.params import FromPath

    @litestar.post("/say/{word:str}")
    async def say(word: FromPath[str]) -> dict[str, str]:
        result = await streams.stream("words", content_type="text/plain").append(word)
        return {"offset": result.next_offset}

    @litestar.post("/say-in-a-thread/{word:str}", sync_to_thread=True)
    def say_in_a_thread(word: FromPath[str]) -> dict[str, str]:
        result = streams.sync_stream("words", content_type="text/plain").append(word)
        return {"offset": result.next_offset}

    mounted = litestar.asgi("/streams", is_mount=True, copy_scope=True)(streams.asgi)
    return litestar.Litestar([say, say_in_a_thread, mounted], lifespan=[streams.lifespan])


def in_django(streams: DurableStreams) -> Any:
    pytest.importorskip("django")
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    async def say(_: HttpRequest, word: str) -> JsonResponse:
        stream = streams.stream("words", content_type="text/plain")
        return JsonResponse({"offset": (await stream.append(word)).next_offset})

    def say_in_a_thread(_: HttpRequest, word: str) -> JsonResponse:
        stream = streams.sync_stream("words", content_type="text/plain")
        return JsonResponse({"offset": stream.append(word).next_offset})

    urls = types.ModuleType("urls_of_the_test")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("say/<word>", say),
        path("say-in-a-thread/<word>", say_in_a_thread),
    ]
    if not settings.configured:
        settings.configure(SECRET_KEY="none", ALLOWED_HOSTS=["*"], ROOT_URLCONF=urls, LOGGING_CONFIG=None)
        django.setup()
    return streams.beside(get_asgi_application())


@pytest.mark.parametrize("application", [in_fastapi, in_starlette, in_litestar, in_django])
def test_mounted(application: Callable[[DurableStreams], Any]) -> None:
    """A browser reads over HTTP what a handler wrote without it, from the event loop and from its thread pool."""
    aiohttp = pytest.importorskip("aiohttp")
    streams = DurableStreams()

    async def main() -> None:
        async with served(application(streams)) as base, aiohttp.ClientSession(base) as session:
            await streams.create("words", content_type="text/plain", body="zero")
            async with AsyncDurableStream(f"{base}/streams/v1/stream/words").stream() as read:
                words = aiter(read)
                assert await anext(words) == b"zero"
                for path, word in (("say", "one"), ("say-in-a-thread", "two")):
                    async with session.post(f"/{path}/{word}") as answer:
                        assert answer.status in {200, 201}
                        offset = (await answer.json())["offset"]
                    assert await asyncio.wait_for(anext(words), 30) == word.encode()
                    assert read.offset == offset
            # Litestar adds a slash at the end to every path, and takes the prefix away.
            async with session.put("/streams/v1/stream/a%20b/%C3%BC/") as answer:
                assert answer.headers["location"] == f"{base}/streams/v1/stream/a%20b/%C3%BC/"
        with pytest.raises(Exception, match="lifespan has ended"):
            await streams.stream("words").head()

    asyncio.run(main())


def test_a_prefix_is_a_path() -> None:
    for prefix in ("", "streams", "/", "/streams/"):
        with pytest.raises(ValueError, match="prefix"):
            DurableStreams().beside(DurableStreams().asgi, prefix)


def test_alone_under_an_asgi_server() -> None:
    """Its own lifespan opens the streams, and handles of the process use them."""
    streams = DurableStreams()

    async def main() -> None:
        async with served(streams.asgi) as base:
            await AsyncDurableStream.create(f"{base}/v1/stream/x", content_type="application/json", body=1)
            assert await (await streams.stream("x").stream(live=False)).read_json() == [1]

    asyncio.run(main())
