# ruff: noqa: T201 - it says where it serves
"""A back end of chats over `Runs`, for front ends from npm: the answers are scripted, everything else is real.

POST /api/chat {id}           useChat's default transport: starts an answer
GET  /api/chat/{id}/stream    resumes it
POST /api/chat/{id}/stop      ends it
POST /durable {id}            a transport that reads streams itself: the URL of the answer's stream
GET  /durable/{id}/stream     the same of the answer that goes on
POST /tanstack                TanStack AI's connection: starts an answer, or goes on behind the Last-Event-ID
GET  /tanstack?threadId=      replays and follows it, for a page that has come back
POST /events/{id}             starts an answer for an EventSource
GET  /events/{id}             which reads it here, again and again
GET  /generated               how many words were generated, by chat
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from durable_streams.ai import RunActiveError, Runs
from durable_streams.embedded import DurableStreams

WORDS = ["Every", "token", "arrives", "once,", "流", "included.\nAnd", "in", "order:", "", *"0123456789"]

PAUSE = 0.1  # seconds between two of them: long enough to come in the middle on a busy machine

streams = DurableStreams(sys.argv[1])
app = FastAPI(lifespan=streams.lifespan)
app.mount("/streams", streams.asgi)
chats = Runs(streams, prefix="chats", lease=2)
durable = Runs(streams, prefix="durable", lease=2)
events = Runs(streams, prefix="events", format="events", lease=2)
tanstack = Runs(streams, prefix="tanstack", format="ag-ui", lease=2)
generated: Counter[str] = Counter()


async def answer(chat: str, pause: float = PAUSE) -> AsyncIterator[str]:
    """Say the words, one after the other."""
    for number, word in enumerate(WORDS):
        await asyncio.sleep(pause)
        generated[chat] += 1
        yield word if number == 0 else f" {word}"


@app.exception_handler(RunActiveError)
async def active(_: Request, error: RunActiveError) -> JSONResponse:
    """Say that the chat is busy."""
    return JSONResponse({"error": error.message}, 409)


@app.post("/api/chat")
async def start(request: Request) -> Any:
    """Start an answer, and send it."""
    body = await request.json()
    return await chats.start(body["id"], answer(body["id"], body.get("pause", PAUSE)), request)


@app.get("/api/chat/{chat}/stream")
async def resume(chat: str, request: Request) -> Any:
    """Send the answer that is being generated."""
    return await chats.resume(chat, request)


@app.post("/api/chat/{chat}/stop")
async def stop(chat: str) -> bool:
    """End the answer."""
    return await chats.stop(chat)


@app.post("/tanstack")
async def start_tanstack(request: Request) -> Any:
    """Start an answer, or go on with it: a connection that broke posts again, with the id that it had."""
    chat = (await request.json())["threadId"]
    if request.headers.get("last-event-id"):
        return await tanstack.resume(chat, request)
    return await tanstack.start(chat, answer(chat, 0.05), request)


@app.get("/tanstack")
async def resume_tanstack(threadId: str, request: Request) -> Any:  # noqa: N803 - the name on the wire
    """Send the answer from its start."""
    return await tanstack.resume(threadId, request, ended=True)


async def where(chat: str, request: Request) -> dict[str, str]:
    """Return where a client that reads streams itself finds the answer."""
    run = await durable.current(chat)
    assert run is not None
    return {"streamUrl": f"{request.base_url}streams/v1/stream/{run.stream.replace('%', '%25')}"}


@app.post("/durable")
async def start_durable(request: Request) -> dict[str, str]:
    """Start an answer, and say where it is."""
    body = await request.json()
    await durable.start(body["id"], answer(body["id"]))
    return await where(body["id"], request)


@app.get("/durable/{chat}/stream")
async def resume_durable(chat: str, request: Request) -> Any:
    """Say where the answer is."""
    return await where(chat, request)


@app.post("/events/{chat}", status_code=202)
async def start_events(chat: str) -> None:
    """Start an answer that another request reads."""
    await events.start(chat, answer(chat))


@app.get("/events/{chat}")
async def read_events(chat: str, request: Request) -> Any:
    """Send the answer to an EventSource."""
    return await events.resume(chat, request, ended=True)


@app.get("/generated")
async def count() -> dict[str, int]:
    """Return how many words were generated."""
    return generated


async def main() -> None:
    """Serve on a free port until SIGTERM."""
    # Named as TCP: asyncio turns off Nagle's algorithm only where it knows that it is TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - Uvicorn has no event for it
        await asyncio.sleep(0.01)
    print(f"serving http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await serving


asyncio.run(main())
