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

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request

from durable_streams import DurableStreamError
from durable_streams.embedded import DurableStreams

log = logging.getLogger("uvicorn.error")
streams = DurableStreams(os.environ.get("DATA_DIR", "durable-streams-data"))
app = FastAPI(lifespan=streams.lifespan)
app.mount("/streams", streams.asgi)


@app.post("/jobs/{name}", status_code=202)
async def start_job(name: str, request: Request, tasks: BackgroundTasks, steps: int = 10) -> dict[str, str]:
    """Start a job whose progress is a durable stream; answer with the stream's URL, once the stream is there."""
    job = await streams.create(f"jobs/{name}", content_type="application/json")
    if not job.created:
        raise HTTPException(409, f"there is a job {name!r} already")
    tasks.add_task(run_job, name, steps)
    return {"stream": f"{request.base_url}streams/v1/stream/jobs/{name}"}


def run_job(name: str, steps: int) -> None:
    """Do the work, step by step; a reader that reconnects misses none of them. Runs in FastAPI's thread pool.

    The streams end with the application, so that a job ends at its next step after Ctrl-C.
    """
    with streams.sync_stream(f"jobs/{name}", content_type="application/json") as job:
        try:
            for step in range(1, steps + 1):
                time.sleep(0.2)
                job.append({"step": step, "of": steps})
            job.close_stream()
        except DurableStreamError as error:
            log.warning("/jobs/%s is not finished: %s", name, error)
