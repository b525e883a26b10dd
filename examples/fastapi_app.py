"""Durable streams inside a FastAPI application: an endpoint of your own writes, browsers follow the stream.

pip install . fastapi "uvicorn[standard]"    # in a checkout
uvicorn fastapi_app:app --app-dir examples

curl -X POST 'http://127.0.0.1:8000/jobs/42?steps=5'
curl -N 'http://127.0.0.1:8000/streams/v1/stream/jobs/42?offset=-1&live=sse'
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request

from durable_streams import AsyncDurableStream, DurableStream, DurableStreamError
from durable_streams.server import ServerConfig, asgi_app

log = logging.getLogger("uvicorn.error")
streams = asgi_app(ServerConfig(data_dir=Path(os.environ.get("DATA_DIR", "durable-streams-data"))))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open and close the streams with the application: frameworks do not tell mounted apps."""
    await streams.startup()
    yield
    await streams.shutdown()


app = FastAPI(lifespan=lifespan)
app.mount("/streams", streams)


@app.post("/jobs/{name}", status_code=202)
async def start_job(name: str, request: Request, tasks: BackgroundTasks, steps: int = 10) -> dict[str, str]:
    """Start a job whose progress is a durable stream; answer with the stream's URL, once the stream is there."""
    url = f"{request.base_url}streams/v1/stream/jobs/{name}"
    async with await AsyncDurableStream.create(url, content_type="application/json") as job:
        if not job.created:
            raise HTTPException(409, f"there is a job {name!r} already")
    tasks.add_task(run_job, url, steps)
    return {"stream": url}


def run_job(url: str, steps: int) -> None:
    """Do the work, step by step; a reader that reconnects misses none of them. Runs in FastAPI's thread pool.

    The streams end with the application, so that a job ends at its next step after Ctrl-C.
    """
    with DurableStream(url, content_type="application/json") as job:
        try:
            for step in range(1, steps + 1):
                time.sleep(0.2)
                job.append({"step": step, "of": steps})
            job.close_stream()
        except DurableStreamError as error:
            log.warning("%s is not finished: %s", url, error)
