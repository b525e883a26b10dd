"""A chat whose answers survive: reload the page in the middle of one, open a second tab, leave and come back.

pip install . fastapi "uvicorn[standard]"    # in a checkout; make chat does it
python examples/chat/chat_app.py

The answers are in a folder, or with STREAMS=http://127.0.0.1:4437/v1/stream on a server, which may be killed and come
back in the middle of one, too. The model is scripted; docs/llm.md has the lines for real ones.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, PlainTextResponse

from durable_streams.ai import RunActiveError, Runs
from durable_streams.embedded import DurableStreams

PAGE = Path(__file__).with_name("page.html")
PAUSE = float(os.environ.get("PAUSE", "0.1"))  # seconds between two words
ANSWER = (
    "That is a good question, and this answer takes its time, so that the page can be reloaded in the middle of it: "
    "every word is there, once and in order, and the rest follows. A second tab shows the same. Its generation does "
    "not notice that a page has left."
)
STREAMS = os.environ.get("STREAMS", "chat-data")

if "://" in STREAMS:
    app = FastAPI()
    runs = Runs(STREAMS, format="events")
else:
    streams = DurableStreams(STREAMS)
    app = FastAPI(lifespan=streams.lifespan)
    runs = Runs(streams, format="events")


async def model(question: str) -> AsyncIterator[Any]:
    """Answer word by word, after the question, which other tabs show too."""
    yield {"question": question}
    answer = f"You asked: {question} {ANSWER}"
    for word in answer.split():
        await asyncio.sleep(PAUSE)
        yield f"{word} "


@app.get("/")
async def page() -> FileResponse:
    """Show the chat."""
    return FileResponse(PAGE)


@app.post("/chat/{chat}", status_code=202)
async def ask(chat: str, request: Request) -> None:
    """Start an answer."""
    await runs.start(chat, model((await request.body()).decode()))


@app.get("/chat/{chat}")
async def follow(chat: str, request: Request) -> Any:
    """Give an EventSource the last answer, from where it was."""
    return await runs.resume(chat, request, ended=True)


@app.delete("/chat/{chat}")
async def stop(chat: str) -> bool:
    """End the answer, for every tab."""
    return await runs.stop(chat)


@app.exception_handler(RunActiveError)
async def busy(_: Request, error: RunActiveError) -> PlainTextResponse:
    """Say that an answer is on its way."""
    return PlainTextResponse(error.message, 409)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), timeout_graceful_shutdown=1)
