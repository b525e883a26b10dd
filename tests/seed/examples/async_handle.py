import asyncio
from durable_streams import AsyncDurableStream

async def main():
    handle = await AsyncDurableStream.create(
        "https://streams.example.com/events",
        content_type="application/json",
    )

    await handle.append({"message": "hello"})

    async with handle.stream() as res:
        async for event in res.iter_json():
            print(event)

asyncio.run(main())
