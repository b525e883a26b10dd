from durable_streams import IdempotentProducer
import httpx

async def main():
    async with httpx.AsyncClient() as client:
        producer = IdempotentProducer(
            url="https://streams.example.com/orders",
            producer_id="order-service-1",
            client=client,
            epoch=0,
            auto_claim=True,
            max_batch_bytes=1024 * 1024,
            linger_ms=5,
        )

        # Fire-and-forget (returns immediately)
        producer.append(b'{"orderId":"123"}')
        producer.append(b'{"orderId":"456"}')

        # Ensure delivery
        await producer.flush()
        await producer.close()
