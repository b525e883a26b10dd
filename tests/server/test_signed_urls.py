"""Signed URLs: what they allow, until when, and that none of it can be changed; any Authorization header."""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_streams.protocol.commands import Rejection
from durable_streams.protocol.grants import EVERYTHING, Grant, PathPattern
from durable_streams.server import ServerConfig, ServerStartError, asgi_app, sign_url
from durable_streams.server.keys import KeyFile, Keys, new_key, new_signing_key
from durable_streams.server.signing import grant_of_url

NOW = datetime.now(timezone.utc).replace(microsecond=0)
SIGNER = new_signing_key(["*:jobs/**"], name="pages", created=NOW)
OTHER = new_signing_key(["*:**"], created=NOW)
TOKEN, KEY = new_key(["*:**"], name="operator", created=NOW)
ROOT = "http://server/v1/stream/"


def written(path: Path, *signers: Any) -> Path:
    """Write a file of keys as a user might."""
    lines = [f'[[key]]\nsha256 = "{KEY.sha256}"\nallow = ["*:**"]\n']
    for signer in signers:
        allow = msgspec.json.encode(signer.allow).decode()
        lines.append(
            f'[[signing_key]]\nname = "{signer.name}"\nsecret = "{signer.secret}"\nallow = {allow}\n'
        )
    path.write_text("\n".join(lines))
    return path


@asynccontextmanager
async def client_of(folder: Path, *signers: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = asgi_app(ServerConfig(auth=written(folder / "keys.toml", *signers), sse_max_age=0.2))
    transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport) as client:
        yield client
    await app.shutdown()


AS_OPERATOR = {"authorization": f"Bearer {TOKEN}", "content-type": "text/plain"}


def test_what_a_signed_url_is_good_for(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, SIGNER) as client:
            for path in ("jobs/1", "jobs/2", "other"):
                assert (await client.put(ROOT + path, headers=AS_OPERATOR, content=b"x")).status_code == 201
            signed = sign_url(f"{ROOT}jobs/1?offset=-1", SIGNER.secret)
            assert (await client.get(signed)).text == "x"
            assert (await client.head(signed)).status_code == 200
            assert (await client.get(signed + "&live=long-poll")).text == "x"
            assert (
                await client.get(f"{signed}&live=sse", headers={"last-event-id": "-1"})
            ).status_code == 200
            text = {"content-type": "text/plain"}
            assert (await client.post(signed, content=b"y", headers=text)).status_code == 403
            assert (await client.delete(signed)).status_code == 403
            for elsewhere in ("jobs/2", "other", "jobs", "jobs/1/2", "jobs//1"):
                moved = signed.replace("jobs/1", elsewhere)
                assert (await client.get(moved)).status_code == 401
            appends = sign_url(f"{ROOT}jobs/1", SIGNER.secret, allow=["append"])
            assert (await client.post(appends, content=b"y", headers=text)).status_code == 204
            assert (await client.get(appends)).status_code == 403
            # It allows no more than its key: that one has jobs only.
            beyond = sign_url(f"{ROOT}other", SIGNER.secret)
            assert (await client.get(beyond)).status_code == 403
            # A key in the header outranks it, also one that is not known.
            wrong = {"authorization": "Bearer ds_wrong"}
            assert (await client.get(signed, headers=wrong)).status_code == 401
            assert (await client.get(beyond, headers=AS_OPERATOR)).status_code == 200
            # A fork needs to read its source, for which this is no signature.
            creates = sign_url(f"{ROOT}jobs/3", SIGNER.secret, allow=["create", "read"])
            fork = await client.put(creates, headers={"stream-forked-from": "/v1/stream/other"})
            assert fork.status_code == 401
            assert (await client.put(creates)).status_code == 201

    asyncio.run(work())


def test_a_path_with_anything_in_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, OTHER) as client:
            for path in ("a b", "ä/%/é", "**", "a/*/b", "x?y#z", "v1/stream/x", "a//b/"):
                url = ROOT + quote(path)
                signed = sign_url(url, OTHER.secret, allow=["create", "read"])
                assert (await client.put(signed)).status_code == 201, path
                assert (await client.get(signed)).status_code == 200, path
            assert (
                await client.get(sign_url(ROOT + "**", OTHER.secret).replace("**", "x"))
            ).status_code == 401

    asyncio.run(work())


def test_a_signed_url_ends(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, SIGNER) as client:
            await client.put(f"{ROOT}jobs/1", headers=AS_OPERATOR)
            signed = sign_url(f"{ROOT}jobs/1?offset=now&live=long-poll", SIGNER.secret, expires_in=1.5)
            assert (await client.get(signed, timeout=30)).status_code == 204
            until = time.monotonic() + 20
            while (answer := await client.get(signed, timeout=30)).status_code == 204:
                assert time.monotonic() < until
            assert (answer.status_code, "has expired" in answer.text) == (401, True)

    asyncio.run(work())


def test_a_key_that_is_gone_takes_its_urls_along(tmp_path: Path) -> None:
    async def work() -> None:
        async with client_of(tmp_path, SIGNER) as client:
            await client.put(f"{ROOT}jobs/1", headers=AS_OPERATOR)
            signed = sign_url(f"{ROOT}jobs/1", SIGNER.secret)
            assert (await client.get(signed)).status_code == 200
            written(tmp_path / "keys.toml")
            until = time.monotonic() + 20
            while (await client.get(signed)).status_code == 200:
                assert time.monotonic() < until
                await asyncio.sleep(0.05)
            assert (await client.get(signed)).status_code == 401
            assert (await client.get(f"{ROOT}jobs/1", headers=AS_OPERATOR)).status_code == 200
            # A file that cannot be used changes nothing.
            (tmp_path / "keys.toml").write_text("[[key")
            await asyncio.sleep(2.1)
            assert (await client.get(f"{ROOT}jobs/1", headers=AS_OPERATOR)).status_code == 200

    asyncio.run(work())


SIGNERS = Keys(KeyFile(signing_key=[SIGNER, OTHER])).signing
GOOD = dict(parse_qsl(urlsplit(sign_url(f"{ROOT}jobs/1", SIGNER.secret)).query))


@given(
    st.sampled_from(sorted(GOOD)),
    st.one_of(
        st.text(max_size=80), st.sampled_from(["read", "append", "1", "9" * 12, "9" * 300, OTHER.id, ""])
    ),
)
def test_no_part_of_a_signed_url_can_be_changed(name: str, value: str) -> None:
    if value == GOOD[name]:
        return
    try:
        query = urlencode(GOOD | {name: value}, errors="surrogatepass")
    except UnicodeEncodeError:
        return
    with pytest.raises(Rejection) as refused:
        grant_of_url(query, "jobs/1", SIGNERS, "read")
    assert (refused.value.status in (400, 401), "\n" in refused.value.message) == (True, False)


@given(st.text(max_size=300))
def test_any_query_is_refused_in_one_sentence(query: str) -> None:
    with pytest.raises(Rejection) as refused:
        grant_of_url(query, "jobs/1", SIGNERS, "read")
    assert refused.value.status in (400, 401)


def test_the_signature_that_all_of_that_is_not() -> None:
    assert grant_of_url(urlencode(GOOD), "jobs/1", SIGNERS, "read").allows("read", "jobs/1")
    for path in ("jobs/2", "jobs", "", "jobs/1/"):
        with pytest.raises(Rejection):
            grant_of_url(urlencode(GOOD), path, SIGNERS, "read")


def test_what_is_signed_stands_for_one_url() -> None:
    """A signature for a path with a line break in it would be one for another path, with a longer life."""
    until = "9" * 12
    said = {"ds-key": SIGNER.id, "ds-allow": f"read,append\n{GOOD['ds-expires']}", "ds-expires": until}
    content = "\n".join(["durable-streams url 1", *said.values(), "jobs/2"])
    digest = hmac.digest(SIGNER.secret.encode(), content.encode(), "sha256")
    query = urlencode(said | {"ds-signature": urlsafe_b64encode(digest).rstrip(b"=").decode()})
    with pytest.raises(Rejection) as refused:
        grant_of_url(query, "jobs/2", SIGNERS, "read")
    assert refused.value.status == 401


HEADERS = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
    st.builds(
        "{} {}".format,
        st.sampled_from(["Bearer", "bearer", "Basic", "ds_"]),
        st.text("abc.=-_ ,", max_size=60),
    ),
    st.binary(max_size=60).map(lambda content: content.decode("latin-1")),
    st.integers(0, len(TOKEN) - 1).map(lambda place: f"Bearer {TOKEN[:place]}{TOKEN[place + 1 :]}"),
    st.integers(0, len(TOKEN) - 1).map(lambda place: f"Bearer {TOKEN[:place]}~{TOKEN[place + 1 :]}"),
)


@settings(max_examples=60)
@given(st.lists(HEADERS, min_size=1, max_size=20))
def test_any_authorization_header_is_refused(
    tmp_path_factory: pytest.TempPathFactory, headers: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()

    async def work() -> None:
        async with client_of(folder) as client:
            for header in headers:
                sent = [(b"authorization", header.encode("latin-1"))]
                answer = await client.put(ROOT + "s", headers=sent)
                assert answer.status_code in (400, 401), header
                assert answer.headers["content-type"] == "application/json"
                assert answer.json()["error"]["code"] in ("UNAUTHORIZED", "BAD_REQUEST")

    asyncio.run(work())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sign_url("http://server/elsewhere", "x" * 43), "no URL of a stream"),
        (lambda: sign_url(ROOT, "x" * 43), "no URL of a stream"),
        (lambda: sign_url(ROOT + "a%0Ab", "x" * 43), "without control characters"),
        (lambda: sign_url(ROOT + "a/../b", "x" * 43), r"no segment that is \. or \.\."),
        (lambda: sign_url(ROOT + "x" * 1025, "x" * 43), "1 to 1024 characters"),
        (lambda: sign_url(ROOT + "s", "x" * 43, expires_in=math.inf), "above 0"),
        (lambda: sign_url(ROOT + "s", "x" * 43, expires_in=math.nan), "above 0"),
        (lambda: sign_url(ROOT + "s", "x" * 43, allow=["admin"]), "not for admin"),
        (lambda: sign_url(ROOT + "s", "x" * 43, allow=[cast("Any", "fly")]), "no operation"),
        (lambda: sign_url(ROOT + "s", "x" * 43, expires_in=0), "above 0"),
        (lambda: sign_url(ROOT + "s", "x" * 43, expires_in=1e15), "too long"),
    ],
)
def test_what_cannot_be_signed(make: Callable[[], str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_grant_of_one_path_takes_stars_literally() -> None:
    grant = Grant.on_path("a/**", ["read"])
    assert grant.allows("read", "a/**")
    assert not grant.allows("read", "a/b")
    assert not grant.allows("append", "a/**")
    assert not Grant.on_path("**", ["list"]).allows_everywhere("list")
    assert not PathPattern.literal("**").matches("x")


def test_an_application_decides_or_the_settings(tmp_path: Path) -> None:
    async def authorize(*_: object) -> Grant:
        return EVERYTHING

    config = ServerConfig(auth=written(tmp_path / "keys.toml"))
    with pytest.raises(ServerStartError, match="exclude each other"):
        asgi_app(config, authorize=authorize)


def test_secrets_of_keys_are_random() -> None:
    made = {new_key(["read:**"], created=NOW)[0] for _ in range(20)}
    assert len(made) == 20
    assert min(map(len, made)) >= len(secrets.token_urlsafe(32))
