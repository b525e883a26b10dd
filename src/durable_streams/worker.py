"""Workers of subscriptions of pull-wake (protocol section 8): `Worker` for asyncio, `SyncWorker` for threads.

`webhook_app` is a worker that webhooks wake.

async with Worker("http://127.0.0.1:4437/v1/stream", "orders", "worker-1") as worker:
async for batch in worker:
for order in batch.items:
...
"""

from __future__ import annotations

from durable_streams.client.aio_worker import Worker
from durable_streams.client.sync_worker import SyncWorker
from durable_streams.client.webhook_app import webhook_app
from durable_streams.client.worker_base import AckMode, Batch
from durable_streams.protocol.leases import LeaseLostError

__all__ = ["AckMode", "Batch", "LeaseLostError", "SyncWorker", "Worker", "webhook_app"]
