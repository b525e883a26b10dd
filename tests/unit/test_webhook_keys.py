from __future__ import annotations

import asyncio

from durable_streams.server.subscriptions import keys
from durable_streams.server.subscriptions.keys import JWKS_SECONDS, Signer, rotate
from durable_streams.stores.subscriptions import MemorySubscriptions


def test_a_new_key_is_published_before_it_signs_and_an_old_one_stays_for_a_while() -> None:
    kept, now = MemorySubscriptions(list), [1000.0]

    def signer() -> Signer:
        return Signer(lambda: kept, lambda: now[0])

    async def main() -> None:
        first = await signer().kid()
        assert [key["kid"] for key in (await signer().jwks())["keys"]] == [first]
        since = await rotate(kept, now[0])
        assert since >= now[0] + JWKS_SECONDS
        published = {key["kid"] for key in (await signer().jwks())["keys"]}
        assert first in published
        assert len(published) == 2
        assert await signer().kid() == first
        now[0] = since
        second = await signer().kid()
        assert {first, second} == published
        await rotate(kept, now[0])  # before receivers forget what the first one signed
        assert first in {key["kid"] for key in (await signer().jwks())["keys"]}
        now[0] += 10 * JWKS_SECONDS
        await rotate(kept, now[0])
        assert first not in {key["kid"] for key in (await signer().jwks())["keys"]}

    asyncio.run(main())


def test_a_signer_takes_keys_that_were_rotated_elsewhere() -> None:
    kept, now = MemorySubscriptions(list), [1000.0]

    async def main() -> None:
        signer = Signer(lambda: kept, lambda: now[0])
        first = await signer.kid()
        now[0] = await rotate(kept, now[0])
        signer._read_at = float("-inf")
        assert await signer.kid() != first
        assert len((await signer.jwks())["keys"]) == 2

    asyncio.run(main())


def test_signatures_name_their_key_and_time() -> None:
    kept = MemorySubscriptions(list)

    async def main() -> str:
        return await Signer(lambda: kept, lambda: 1234.9).signature(b"body")

    fields = dict(part.split("=", 1) for part in asyncio.run(main()).split(","))
    assert fields["t"] == "1234"
    assert fields["kid"].startswith("ds_")
    assert keys.is_available()
