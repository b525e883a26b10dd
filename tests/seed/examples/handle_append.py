handle = DurableStream("https://streams.example.com/events")

# JSON stream - pass dict (auto-serialized)
result = handle.append({"message": "hello"})
print(f"Next offset: {result.next_offset}")

# Or pre-serialize
result = handle.append('{"message":"hello"}')

# Byte stream
result = handle.append(b"raw bytes")
