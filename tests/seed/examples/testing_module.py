from durable_streams.testing import InMemoryStreamServer

server = InMemoryStreamServer()
handle = DurableStream(server.url("/test"))
handle.create_stream(content_type="application/json")
handle.append({"test": "data"})
