"""Durable streams inside a FastAPI application: an endpoint of your own writes, browsers follow the stream.

pip install . fastapi "uvicorn[standard]"    # in a checkout
uvicorn fastapi_app:app --app-dir examples

curl -X POST 'http://127.0.0.1:8000/jobs/42?steps=5'
curl -N 'http://127.0.0.1:8000/streams/v1/stream/jobs/42?offset=-1&live=sse'
"""

from __future__ import annotations

import asyncio
import logging
import os

from fastapi import FastAPI, HTTPException, Request

from durable_streams.embedded import DurableStreams

log = logging.getLogger("uvicorn.error")
streams = DurableStreams(os.environ.get("DATA_DIR", "durable-streams-data"))
app = FastAPI(lifespan=streams.lifespan)
app.mount("/streams", streams.asgi)


jobs: set[asyncio.Task[None]] = set()


@app.post("/jobs/{name}", status_code=202)
async def start_job(name: str, request: Request, steps: int = 10) -> dict[str, str]:
    """Start a job whose progress is a durable stream; answer with the stream's URL, once the stream is there."""
    stream = await streams.create(f"jobs/{name}", content_type="application/json")
    if not stream.created:
        raise HTTPException(409, f"there is a job {name!r} already")
    job = asyncio.create_task(run_job(name, steps))
    jobs.add(job)
    job.add_done_callback(jobs.discard)
    return {"stream": f"{request.base_url}streams/v1/stream/jobs/{name}"}


async def run_job(name: str, steps: int) -> None:
    """Do the work, step by step; a reader that reconnects misses none of them."""
    stream = streams.stream(f"jobs/{name}", content_type="application/json")
    try:
        for step in range(1, steps + 1):
            await asyncio.sleep(0.2)
            await stream.append({"step": step, "of": steps})
        await stream.close_stream()
    except asyncio.CancelledError:
        log.warning("/jobs/%s is not finished: the application ends", name)


async def end_jobs() -> None:
    """End the jobs while the streams are still open."""
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs)


streams.before_shutdown(end_jobs)
