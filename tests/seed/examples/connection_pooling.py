import httpx
from durable_streams import DurableStream

with httpx.Client(timeout=30.0) as client:
    stream1 = DurableStream("https://.../stream1", client=client)
    stream2 = DurableStream("https://.../stream2", client=client)
    # Reuses connections
