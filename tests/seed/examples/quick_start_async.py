from durable_streams import astream, AsyncDurableStream
import asyncio

async def main():
    # Async streaming
    async with astream("https://streams.example.com/my-stream") as res:
        async for item in res.iter_json():
            print(item)

    # Async handle
    handle = await AsyncDurableStream.create(
        "https://streams.example.com/my-stream",
        content_type="application/json",
    )
    await handle.append({"message": "hello"})

asyncio.run(main())
