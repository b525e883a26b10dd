from durable_streams import stream, DurableStream

# Read-only streaming
with stream("https://streams.example.com/my-stream") as res:
    for item in res.iter_json():
        print(item)

# Read/write handle
handle = DurableStream.create(
    "https://streams.example.com/my-stream",
    content_type="application/json",
)
handle.append({"message": "hello"})
