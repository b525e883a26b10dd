"""Durable streams inside a FastAPI application: an endpoint of your own writes, browsers follow the stream.

pip install durable-streams fastapi "uvicorn[standard]"
uvicorn fastapi_app:app --app-dir examples

curl -X POST 'http://127.0.0.1:8000/jobs/42?steps=5'
curl -N 'http://127.0.0.1:8000/streams/v1/stream/jobs/42?offset=-1&live=sse'
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI, Request

from durable_streams import DurableStream
from durable_streams.server import ServerConfig, asgi_app

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
    """Start a job whose progress is a durable stream; answer with the stream's URL."""
    url = f"{request.base_url}streams/v1/stream/jobs/{name}"
    tasks.add_task(run_job, url, steps)
    return {"stream": url}


def run_job(url: str, steps: int) -> None:
    """Do the work, step by step; a reader that reconnects misses none of them. Runs in FastAPI's thread pool."""
    job = DurableStream.create(url, content_type="application/json")
    for step in range(1, steps + 1):
        time.sleep(0.2)
        job.append({"step": step, "of": steps})
    job.close_stream()
